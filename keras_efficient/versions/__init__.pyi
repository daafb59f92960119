from ._archive import archive as archive
from ._check_manifest import check_manifest as check_manifest
from ._destination import check_destination as check_destination
from ._find_version import find_version as find_version
from ._manifest import write_manifest as write_manifest
from ._unpack import unpack as unpack
