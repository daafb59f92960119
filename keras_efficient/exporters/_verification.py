"""Run an exported SavedModel in a bare process and compare it with the model in memory."""

import json
import tempfile
from pathlib import Path

import numpy as np

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters._evaluation import scores_of
from keras_efficient.runtime._bare_process import load_arrays
from keras_efficient.runtime._run_script import run_script

_SCRIPT = Path(__file__).with_name("_verify_script.py")


def run_without_keras(saved_model, inputs, *, texts=None, batches=(), latency=True):
    """Load `saved_model` in a process without Keras, on the CPU, and run it.

    Args:
        saved_model: path of the SavedModel.
        inputs: dict of arrays by the names of the signature "tokens"; None: it has none.
        texts: list of str for the signature "text". Default: None: it has none.
        batches: list of dicts of arrays as `inputs`, to classify. Default: none.
        latency: bool, whether to time it at batch 1 and 8 (a few seconds at most). Default True.

    Returns:
        `(served, result)`: {"tokens" and "text": dict of arrays, "scores": list of float arrays
        [batch, classes]}, and a dict with `latency_ms` (or None) and `max_rss_bytes`.

    Raises:
        VerificationError: the process failed (its last lines are in the message) or found a
            Keras loaded.
    """
    with tempfile.TemporaryDirectory(prefix="keras_efficient-") as folder:
        folder = Path(folder)
        request = {
            "saved_model": str(saved_model),
            "latency": latency,
            "texts": None if texts is None else list(texts),
            "batches": len(batches),
        }
        (folder / "request.json").write_text(json.dumps(request))
        if inputs is not None:
            np.savez(folder / "inputs.npz", **inputs)
        for number, batch in enumerate(batches):
            np.savez(folder / f"batch-{number}.npz", **batch)
        child = run_script(_SCRIPT, folder)
        if child.returncode:
            tail = "\n".join(child.stderr.strip().splitlines()[-12:])
            raise VerificationError(
                "An exported model must run in a process that has TensorFlow but no Keras. That "
                f"process ended with code {child.returncode}:\n{tail}"
            )
        result = json.loads((folder / "result.json").read_text())
        served = {
            name: load_arrays(folder / file)
            for name, file in (("tokens", "outputs.npz"), ("text", "texts.npz"))
            if (folder / file).exists()
        }
        files = [folder / f"served-{number}.npz" for number in range(len(batches))]
        served["scores"] = [scores_of(load_arrays(file)) for file in files]
    if found := result.pop("forbidden_modules"):
        raise VerificationError(
            f"An exported model must run without Keras. Its process had loaded: {found}."
        )
    return served, result


def compare(reference, outputs, tolerance) -> float:
    """The largest difference between two dicts of outputs; refuse one beyond the tolerance.

    The rule, for each float output: `max|served - reference| <= tolerance * max(1,
    max|reference|)`. Outputs that are not floats (an arg max can flip on a rounding error) must be
    equal where no output is a float, and have the same shape elsewhere.

    Args:
        reference: dict of arrays: what the model in memory computes.
        outputs: dict of arrays of the served model.
        tolerance: float >= 0.

    Returns:
        The largest absolute difference over all float outputs (over all, where none is a float).

    Raises:
        VerificationError: names, shapes or values differ.
    """
    if set(reference) != set(outputs):
        raise VerificationError(
            f"A served model must have the outputs of the model in memory, {sorted(reference)}. "
            f"It has {sorted(outputs)}."
        )
    floats = [name for name, value in reference.items() if value.dtype.kind == "f"]
    largest = 0.0
    for name, expected in reference.items():
        served = outputs[name]
        if served.shape != expected.shape:
            raise VerificationError(
                f"Output {name!r} has shape {expected.shape} in memory but {served.shape} served."
            )
        if floats and name not in floats:
            continue
        expected, served = expected.astype("float64"), served.astype("float64")
        with np.errstate(invalid="ignore"):
            # Infinities, such as masked positions, differ by 0 from themselves.
            gaps = np.where(expected == served, 0.0, np.abs(expected - served))
        difference = float(gaps.max(initial=0.0))
        finite = np.abs(expected[np.isfinite(expected)])
        allowed = tolerance * max(1.0, float(finite.max(initial=0.0))) if floats else 0.0
        if not difference <= allowed:
            raise VerificationError(
                f"Output {name!r} of the served model differs by {difference:.3g} from the model "
                f"in memory, and at most {allowed:.3g} is allowed (tolerance {tolerance:g} times "
                "the largest output, or 1). If the model computes at random or in low precision, "
                "say so with `tolerance=`."
            )
        largest = max(largest, difference)
    return largest


def check_reference(reference):
    """Refuse a model whose own outputs cannot be compared with anything."""
    for name, value in reference.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise InputError(
                "A model must give numbers on the sample before it is exported. Received: "
                f"{int(np.isnan(value).sum())} NaN among the {value.size} values of output "
                f"{name!r}. Check the sample, and whether training diverged."
            )
