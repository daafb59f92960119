"""Script that runs and times an exported SavedModel in a process without Keras.

Run as `python -P _verify_script.py FOLDER`. FOLDER holds `request.json` ({"saved_model": path,
"latency": bool, "answering": {signature: {input: list}}, "batches": int}), `inputs.npz` if the
signature "tokens" is to be run, and `batch-0.npz`, `batch-1.npz` and so on. The script adds
`outputs.npz`, `answers-SIGNATURE.npz`, `served-0.npz`, `served-1.npz` and so on, and `result.json`.
"""

import json
import sys
from pathlib import Path

# At the end of the path, where the folder shadows nothing.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from keras_efficient.runtime._bare_process import (
    block_imports,
    end_with_parent,
    imported,
    load_arrays,
    peak_memory_bytes,
    time_calls,
)

BATCHES = (1, 8)
WARMUP_CALLS = 3
CALLS = 30
SECONDS = 3.0


def main(folder):
    folder = Path(folder)
    end_with_parent(folder)
    block_imports()
    import tensorflow as tf

    request = json.loads((folder / "request.json").read_text())
    signatures = tf.saved_model.load(request["saved_model"]).signatures
    serve, inputs = None, {}
    for name, values in request["answering"].items():
        outputs = call(signatures[name], values)
        # NumPy stores string tensors by pickling only.
        floats = {k: v for k, v in outputs.items() if v.dtype != tf.string}
        save(folder / f"answers-{name}.npz", floats)
        serve = signatures[name]
        inputs = {key: first(rows) for key, rows in values.items()}
    if (folder / "inputs.npz").exists():
        serve, inputs = signatures["tokens"], load_arrays(folder / "inputs.npz")
        save(folder / "outputs.npz", call(serve, inputs))
    for number in range(request["batches"]):
        outputs = call(signatures["tokens"], load_arrays(folder / f"batch-{number}.npz"))
        save(folder / f"served-{number}.npz", outputs)

    result = {
        "latency_ms": latency(serve, inputs) if request["latency"] else None,
        "max_rss_bytes": peak_memory_bytes(),
        "forbidden_modules": imported(),
    }
    (folder / "result.json").write_text(json.dumps(result))


def first(rows):
    """Return the first example, as an array of strings or of numbers."""
    import numpy as np

    return np.array(rows[:1], object if isinstance(rows[0], str) else "int32")


def call(serve, inputs):
    import tensorflow as tf

    return serve(**{name: tf.constant(value) for name, value in inputs.items()})


def save(path, outputs):
    import numpy as np

    np.savez(path, **{name: value.numpy() for name, value in outputs.items()})


def latency(serve, inputs):
    """Time batches that repeat the examples of `inputs`."""
    import numpy as np
    import tensorflow as tf

    found = {}
    for batch in BATCHES:
        tiled = {
            name: tf.constant(np.take(value, np.arange(batch) % len(value), axis=0))
            for name, value in inputs.items()
        }
        times = milliseconds(lambda tiled=tiled: [y.numpy() for y in serve(**tiled).values()])
        found[f"batch_{batch}"] = {
            "median": float(np.median(times)),
            "p95": float(np.percentile(times, 95)),
        }
    return found


def milliseconds(call):
    """Time up to `CALLS` calls within about `SECONDS`, after warm-up calls."""
    for _ in range(WARMUP_CALLS):
        call()
    return time_calls(call, CALLS, SECONDS)[0]


if __name__ == "__main__":
    main(sys.argv[1])
