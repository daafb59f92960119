"""Load a SavedModel where there is no Keras, run a sample and time it.

A script, run as `python -P bare.py FOLDER`; it imports the standard library, NumPy and TensorFlow
only. FOLDER holds `request.json` ({"saved_model": path, "latency": bool, "texts": [str] or null,
"batches": int}) and, as far as asked, `inputs.npz` for the signature "tokens" and
`batch-0.npz`, ...; the script adds `outputs.npz`, `texts.npz`, `served-0.npz`, ... and
`result.json`.
"""

import json
import resource
import sys
import time
from pathlib import Path

FORBIDDEN = ("keras", "tf_keras", "keras_efficient", "keras_hub", "transformers", "official")
BATCHES = (1, 8)
CALLS = 30
SECONDS = 3.0


def main(folder):
    # `import tensorflow` imports an installed Keras for its own optimizers, and does without a
    # missing one. None in sys.modules makes it missing: a model that needs it fails here.
    for name in FORBIDDEN:
        sys.modules.setdefault(name, None)
    import numpy as np
    import tensorflow as tf

    folder = Path(folder)
    request = json.loads((folder / "request.json").read_text())
    signatures = tf.saved_model.load(request["saved_model"]).signatures
    timed = None
    if request["texts"] is not None:
        texts = tf.constant(request["texts"])
        outputs = signatures["text"](text=texts)
        # (Strings are no arrays without pickling.)
        save(folder / "texts.npz", {k: v for k, v in outputs.items() if v.dtype != tf.string})
        timed = signatures["text"], {"text": np.array(request["texts"][:1], object)}
    if (folder / "inputs.npz").exists():
        serve, inputs = signatures["tokens"], arrays(folder / "inputs.npz")
        save(folder / "outputs.npz", call(serve, inputs))
        timed = serve, inputs
    for number in range(request["batches"]):
        outputs = call(signatures["tokens"], arrays(folder / f"batch-{number}.npz"))
        save(folder / f"served-{number}.npz", outputs)

    latency = None
    if request["latency"]:
        latency = {}
        serve, inputs = timed
        for batch in BATCHES:
            tiled = {
                name: tf.constant(np.take(value, np.arange(batch) % len(value), axis=0))
                for name, value in inputs.items()
            }
            times = milliseconds(lambda tiled=tiled: [y.numpy() for y in serve(**tiled).values()])
            latency[f"batch_{batch}"] = {
                "median": float(np.median(times)),
                "p95": float(np.percentile(times, 95)),
            }
    result = {
        "latency_ms": latency,
        "max_rss_bytes": max_rss_bytes(),
        "forbidden_modules": [name for name in FORBIDDEN if sys.modules.get(name) is not None],
    }
    (folder / "result.json").write_text(json.dumps(result))


def arrays(path):
    import numpy as np

    with np.load(path) as file:
        return dict(file)


def call(serve, inputs):
    import tensorflow as tf

    return serve(**{name: tf.constant(value) for name, value in inputs.items()})


def save(path, outputs):
    import numpy as np

    np.savez(path, **{name: value.numpy() for name, value in outputs.items()})


def max_rss_bytes():
    try:
        # Not ru_maxrss: Linux lets a child inherit its parent's.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def milliseconds(call):
    """The durations of up to `CALLS` calls, within about `SECONDS`, after a warm-up."""
    for _ in range(3):
        call()
    times = []
    deadline = time.perf_counter() + SECONDS
    while len(times) < CALLS and (not times or time.perf_counter() < deadline):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


if __name__ == "__main__":
    main(sys.argv[1])
