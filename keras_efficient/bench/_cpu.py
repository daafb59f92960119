"""`cpu_name`: this machine's CPU and the instruction sets that matter for products."""

import os
import platform
from pathlib import Path

#: What to call each of Linux's names of CPU flags.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bfloat16",
    "amx_tile": "AMX",
}


def cpu_name(information: str | os.PathLike = "/proc/cpuinfo") -> str:
    """Return a CPU's model, number of logical cores, and instruction sets, if Linux names them.

    Args:
        information: path of Linux's description of the CPU. Default: this machine's.
    """
    lines = []
    if Path(information).is_file():
        lines = Path(information).read_text(encoding="utf-8").splitlines()
    found = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    model = found.get("model name") or platform.processor() or platform.machine()
    flags = set(found.get("flags", "").split())
    known = dict.fromkeys(name for flag, name in _INSTRUCTIONS.items() if flag in flags)
    return ", ".join([model, f"{os.cpu_count()} cores", *known])
