from ._archive import archive as archive
from ._check_manifest import check_manifest as check_manifest
from ._find_version import find_version as find_version
from ._unpack import unpack as unpack
