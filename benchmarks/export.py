"""Bytes on disk of MiniLM as a SavedModel: `ke.export` against Keras' own `model.export`.

python benchmarks/export.py [--json FILE]
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    arguments = parser.parse_args()

    import keras_efficient as ke

    model, _ = ke.models.load(ke.data.demo_model())
    ids = np.ones((2, 16), "int32")
    sample = {"token_ids": ids, "padding_mask": ids, "segment_ids": 0 * ids}
    with tempfile.TemporaryDirectory() as scratch:
        report = ke.export(model, f"{scratch}/ours", sample=sample, latency=False)
        model.export(f"{scratch}/keras", verbose=False)
        files = Path(scratch, "keras").rglob("*")
        theirs = sum(file.stat().st_size for file in files if file.is_file())
    table = {
        "ours": report.bytes / report.weight_bytes,
        "keras model.export": theirs / report.weight_bytes,
    }
    for name, ratio in table.items():
        print(f"{name:<20} {ratio:.3f} times the weights' bytes")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
