"""Run an exported SavedModel in a process without Keras and compare its outputs."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.runtime._bare_process import load_arrays
from keras_efficient.runtime._run_script import run_script

_SCRIPT = Path(__file__).with_name("_verify_script.py")


def run_without_keras(saved_model, inputs, *, answering=(), batches=(), latency=True):
    """Load and run a SavedModel in a process without Keras, on the CPU.

    Args:
        saved_model: path of the SavedModel.
        inputs: dict of arrays by the input names of the signature "tokens", or None if there is no
            such signature.
        answering: dict by the names of further signatures, such as "text", of lists of str or
            arrays by the names of their inputs. Default: none.
        batches: list of dicts of arrays like `inputs`, to evaluate on. Default: none.
        latency: bool, whether to time batches of 1 and 8, for a few seconds at most. Default: True.

    Returns:
        `(served, result)`: {"tokens", "text" and so on: dict of arrays, "batches": list of dicts of
        arrays}, and a dict with `latency_ms`, which may be None, and `max_rss_bytes`.

    Raises:
        VerificationError: the process failed, and the message quotes its last lines; or it had
            loaded Keras.
    """
    with tempfile.TemporaryDirectory(prefix="keras_efficient-") as folder:
        folder = Path(folder)
        request = {
            "saved_model": str(saved_model),
            "latency": latency,
            "answering": {
                name: {key: np.asarray(values).tolist() for key, values in inputs.items()}
                for name, inputs in dict(answering).items()
            },
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
        served: dict[str, Any] = {
            name: load_arrays(folder / file)
            for name, file in (
                ("tokens", "outputs.npz"),
                *((name, f"answers-{name}.npz") for name in request["answering"]),
            )
            if (folder / file).exists()
        }
        files = [folder / f"served-{number}.npz" for number in range(len(batches))]
        served["batches"] = [load_arrays(file) for file in files]
    if found := result.pop("forbidden_modules"):
        raise VerificationError(
            f"An exported model must run without Keras. Its process had loaded: {found}."
        )
    return served, result


def compare(reference, outputs, tolerance) -> float:
    """Return the largest difference between two dicts of outputs, and refuse too large ones.

    Each float output must satisfy `max|served - reference| <= tolerance * max(1, max|reference|)`,
    where the latter maximum leaves out values that agree exactly, as those of masked tokens do.
    Other outputs must only have the same shape, since an argmax can change on a rounding error; but
    they must be equal if there are no float outputs at all.

    Args:
        reference: dict of arrays, the outputs of the model in memory.
        outputs: dict of arrays, the outputs of the served model.
        tolerance: float >= 0.

    Returns:
        The largest absolute difference over all float outputs, or over all outputs if none is
        float.

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
            # inf - inf is NaN, but equal infinities, such as those of masked positions, agree.
            gaps = np.where(expected == served, 0.0, np.abs(expected - served))
        difference = float(gaps.max(initial=0.0))
        finite = np.abs(expected[np.isfinite(expected) & (expected != served)])
        allowed = tolerance * max(1.0, float(finite.max(initial=0.0))) if floats else 0.0
        if not difference <= allowed:
            raise VerificationError(
                f"Output {name!r} of the served model differs by {difference:.3g} from the model "
                f"in memory, and at most {allowed:.3g} is allowed (tolerance {tolerance:g} times "
                "the largest output, or 1). If the model is random or computes in low precision, "
                "raise `tolerance`."
            )
        largest = max(largest, difference)
    return largest


def check_reference(reference):
    """Refuse a model whose outputs in memory contain NaN.

    Raises:
        InputError: an output contains NaN.
    """
    for name, value in reference.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise InputError(
                "A model must give numbers on the sample before it is exported. Received: "
                f"{int(np.isnan(value).sum())} NaN among the {value.size} values of output "
                f"{name!r}. Check the sample, and whether training diverged."
            )
