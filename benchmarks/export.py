"""Bytes on disk and load time of MiniLM as a SavedModel, dense and compressed.

    python benchmarks/export.py [--only dense "32 clusters" ...] [--rounds 5] [--json FILE]

"dense" is also compared with Keras' own `model.export`. The other rows are those of
`benchmarks/compression.py`, without its training: the bytes follow from the number of zeros,
clusters and bits. Bytes are those of all files of the version, and of its archive
(`compress=True`), relative to 4 for each parameter. Load times are processor and wall time of
`tf.saved_model.load`: medians over processes that load each version once, after a first one that is
not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

#: name: (`quantize` of the export, method applied to the model).
ROWS = {
    "dense": (None, lambda ke, m: None),
    "50% unstructured": (None, lambda ke, m: ke.prune(m, 0.5)),
    "70% unstructured": (None, lambda ke, m: ke.prune(m, 0.7)),
    "80% unstructured": (None, lambda ke, m: ke.prune(m, 0.8)),
    "90% unstructured": (None, lambda ke, m: ke.prune(m, 0.9)),
    "2:4": (None, lambda ke, m: ke.prune(m, pattern="2:4")),
    "32 clusters": (None, lambda ke, m: ke.cluster(m, clusters=32)),
    "8 bits": ("int8-weights", lambda ke, m: quantize(ke, m, 8)),
    "4 bits": ("int8-weights", lambda ke, m: quantize(ke, m, 4)),
    "4 bits, groups of 32": ("int8-weights", lambda ke, m: quantize(ke, m, 4, 32)),
    "80% + 8 bits": ("int8-weights", lambda ke, m: both(ke, m)),
}

_LOAD = """
import json, sys, time
import tensorflow as tf
times = []
for path in [sys.argv[1], *sys.argv[1:]]:
    start = time.process_time(), time.perf_counter()
    tf.saved_model.load(path)
    times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
print(json.dumps(times[1:]))
"""


def quantize(ke, model, bits, group_size=None):
    ke.quantize_aware(model, weight_bits=bits, group_size=group_size, activation_bits=None)


def both(ke, model):
    ke.prune(model, 0.8)
    ke.prune(model, 0.6, layers="token_embedding|word_embeddings/weight")
    quantize(ke, model, 8)


def write(name, folder):
    """Export a row; return its directory and bytes, relative to those of the parameters."""
    import numpy as np

    import keras_efficient as ke

    form, change = ROWS[name]
    model, _ = ke.models.load(ke.data.demo_model(), seed=0)
    parameters = 4 * model.count_params()
    ids = np.ones((2, 16), "int32")
    sample = {"token_ids": ids, "padding_mask": ids, "segment_ids": 0 * ids}
    change(ke, model)
    target = folder / name.replace("%", "").replace(":", "-").replace(" ", "_")
    report = ke.export(model, target, sample=sample, quantize=form, latency=False, compress=True)
    (archive,) = (path for path in target.iterdir() if path.is_file())
    found = {
        "directory": str(report.directory),
        "files": report.bytes / parameters,
        "archive": archive.stat().st_size / parameters,
        "weight_bytes": report.weight_bytes,
        "storage": report.storage,
    }
    if name == "dense":
        model.export(f"{folder}/keras", verbose=False)
        files = Path(folder, "keras").rglob("*")
        found["keras"] = sum(file.stat().st_size for file in files if file.is_file()) / parameters
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(ROWS), help="rows [all]; dense is needed")
    parser.add_argument("--rounds", type=int, default=5, help="processes that load [5]")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = [n for n in ROWS if not arguments.only or n in arguments.only or n == "dense"]
    with tempfile.TemporaryDirectory() as scratch:
        rows = {}
        for name in names:
            rows[name] = write(name, Path(scratch))
            print(f"{name}: written", file=sys.stderr)
        paths = [row["directory"] for row in rows.values()]
        loads = []
        for _ in range(arguments.rounds):
            command = [sys.executable, "-c", _LOAD, *paths]
            loads.append(
                json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            )
    print(f"{'':<22} {'files':>6} {'archive':>7} {'load, processor':>15} {'wall':>7}")
    for number, (name, row) in enumerate(rows.items()):
        del row["directory"]
        for part, clock in enumerate(("processor", "wall")):
            row[f"load_{clock}_seconds"] = statistics.median(t[number][part] for t in loads)
        print(
            f"{name:<22} {row['files']:>6.3f} {row['archive']:>7.3f} "
            f"{row['load_processor_seconds']:>13.2f} s {row['load_wall_seconds']:>5.2f} s"
        )
    table = {
        "ours": rows["dense"]["files"],
        "keras model.export": rows["dense"]["keras"],
        "rows": rows,
    }
    print(f"Keras' own model.export: {table['keras model.export']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
