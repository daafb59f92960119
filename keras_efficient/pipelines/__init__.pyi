from ._compress import compress as compress
from ._compress_report import CompressReport as CompressReport
from ._compress_run import CompressRun as CompressRun
from ._compress_settings import CompressSettings as CompressSettings
from ._plan import CompressPlan as CompressPlan
from ._quantized_export import quantized_export as quantized_export
