"""Check a wheel and a source archive: their files, and the wheel in an environment of its own.

    python .ci/check_dist.py dist

Install the wheel, with the versions of constraints.txt, into a new virtual environment, run
`keras-efficient --version` there and export a small model. This takes minutes and 3.5 GB.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPORT = """
import keras
import numpy as np
import keras_efficient as ke

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
report = ke.export(model, "model", sample=np.ones((2, 3), "float32"))
assert report.directory.joinpath("saved_model.pb").exists()
print(report)
"""


def check_files(dist: Path) -> Path:
    """Compare the archives with the files in git, and return the wheel."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    package = {name for name in tracked if name.startswith("keras_efficient/")}
    with zipfile.ZipFile(wheel) as archive:
        missing = package - set(archive.namelist())
    if missing:
        sys.exit(f"{wheel.name} lacks {sorted(missing)}")
    wanted = package | {
        name
        for name in tracked
        if name.split("/")[0] in ("tests", "docs", "examples", "benchmarks")
    }
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    if wanted - inside:
        sys.exit(f"{sdist.name} lacks {sorted(wanted - inside)}")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        readme = archive.read(metadata).decode()
    if "](docs/" in readme or "](examples/" in readme:
        sys.exit(
            "the README in the wheel has relative links, which lead nowhere on a package index"
        )
    print(f"{wheel.name} and {sdist.name} hold every file.")
    return wheel


def check_install(wheel: Path) -> None:
    """Install the wheel into an empty environment, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder) / "bin"
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        for command in (
            [binaries / "python", "-m", "pip", "install", "--quiet", *constraints, wheel.resolve()],
            [binaries / "keras-efficient", "--version"],
            [binaries / "python", "-m", "keras_efficient", "--version"],
            [binaries / "python", "-c", EXPORT],
        ):
            subprocess.run(list(map(str, command)), cwd=folder, check=True)


if __name__ == "__main__":
    check_install(check_files(Path(sys.argv[1])))
