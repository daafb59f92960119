from ._bench import bench as bench
from ._bench_report import BenchReport as BenchReport
from ._export_latency import ExportLatency as ExportLatency
