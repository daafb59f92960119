"""`ModelFile`: a model in one file, verified in a process without Keras."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters._signature import Features, call_by_name, flat_outputs, trace
from keras_efficient.exporters._verification import check_reference, compare
from keras_efficient.flavor import Model


class MissingOperationError(VerificationError):
    """The format lacks an operation of the model, at any length."""


@dataclass(frozen=True)
class ModelFile:
    """A verified file.

    Attributes:
        file: path of the file.
        bytes: int, size of the file in bytes.
        signature: {"inputs" and "outputs": {name: {"dtype", "shape"}}}; None is any size.
        max_abs_difference: float, largest difference from the model in memory, on the sample and
            on a shorter example.
        tolerance: float, the difference allowed, relative to the largest output or 1.
        recipe: dict of facts about the conversion for the manifest.
    """

    file: Path
    bytes: int
    signature: dict
    max_abs_difference: float
    tolerance: float
    recipe: dict


def write_verified(
    model: Model,
    flavor: Any,
    features: Features,
    file: Path,
    write: Callable[[bool], dict],
    run: Callable[..., list[dict]],
    tolerance: float,
    recipe: dict,
) -> ModelFile:
    """Write a file and compare its outputs with those of the model in memory.

    It is run on the sample, and on the first example cut to about half its length. If that fails
    because of the length, the file is written again for the sample's length, with a warning.

    Args:
        model: the model.
        flavor: its `Flavor`.
        features: `Features` of the sample.
        file: path of the file.
        write: function of `any_length` that writes it and returns its signature.
        run: function of the file and samples that returns a dict of outputs for each.
        tolerance: float, the difference allowed.
        recipe: dict that becomes the `recipe` of the result.

    Raises:
        VerificationError: the file cannot be written or run, or its outputs differ.
    """
    sample, shorter = features.arrays, _shorter_example(features)
    reference = reference_outputs(model, flavor, features, sample)
    samples = [sample, shorter]
    try:
        signature = write(True)
        outputs = run(file, *samples)
    except VerificationError as error:
        lengths = _lengths(features)
        if not lengths or isinstance(error, MissingOperationError):
            raise
        samples = [sample]
        signature = write(False)
        outputs = run(file, sample)
        warnings.warn(
            "This model's file only runs at one length: its signature takes the sample's "
            f"({lengths}) instead of any. With any it failed: {_first_line(error)}",
            stacklevel=3,
        )
    references = [
        reference,
        *(reference_outputs(model, flavor, features, shorter) for _ in samples[1:]),
    ]
    differences = [compare(*pair, tolerance) for pair in zip(references, outputs, strict=True)]
    size = file.stat().st_size
    return ModelFile(file, size, signature, max(differences), tolerance, recipe)


def reference_outputs(model, flavor, features, arrays) -> dict:
    """Return the outputs of the model in memory, on the CPU.

    Raises:
        InputError: there are NaN among them.
    """
    with tf.device("CPU:0"):
        reference = call_by_name(flavor, model, features, arrays)
    check_reference(reference)
    return reference


def check_precision(model: Model, file: str) -> None:
    """Require a model whose layers compute in float32.

    Raises:
        InputError: a layer computes in less; `file` begins the message.
    """
    low = {str(getattr(x, "compute_dtype", None)) for x in model._flatten_layers()}
    if low := sorted(low & {"bfloat16", "float16"}):
        raise InputError(
            f"{file} needs a model that computes in float32. Received: "
            f"{model.name!r} with layers in {low[0]}. Make the model under "
            'ke.mixed_precision("float32") and load the trained weights into it.'
        )


def calibration_batches(representative: Iterable[dict] | None, features: Features) -> list[dict]:
    """Return the batches on which ranges are measured, by default the sample.

    Raises:
        InputError: there are none, or they have other features than the sample.
    """
    batches = [features.arrays] if representative is None else list(representative)
    names = set(features.arrays)
    for batch in batches:
        if not isinstance(batch, dict) or set(batch) != names:
            received = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise InputError(
                f"`representative` must give dicts of arrays with the sample's features, "
                f"{sorted(names)}. Received: {received}. Give `Features(model, batch).arrays`."
            )
    if not batches:
        raise InputError(
            "`representative` must give at least one batch. Received: none. Leave it out for the "
            "sample."
        )
    return [
        {name: array.astype(features.arrays[name].dtype) for name, array in batch.items()}
        for batch in batches
    ]


def trace_model(model: Model, flavor: Any, features: Features, any_length: bool) -> Any:
    """Trace a model in inference mode as a concrete function of tensors by name.

    Args:
        model: the model.
        flavor: its `Flavor`.
        features: `Features` of the sample.
        any_length: whether integer features may have any length instead of the sample's.
    """

    def serve(**tensors):
        return flat_outputs(model, flavor.call(model, features.restore(tensors), training=False))

    if any_length:
        return trace(serve, features, autograph=flavor.uses_autograph)
    specs = features.specs(dynamic_length=False)
    return tf.function(serve, autograph=flavor.uses_autograph).get_concrete_function(**specs)


def _lengths(features):
    """Return the sample's lengths by feature, for features of variable length."""
    fixed = features.specs(dynamic_length=False)
    return {
        name: fixed[name].shape[1] for name, spec in features.specs().items() if spec != fixed[name]
    }


def _shorter_example(features):
    """Return the first example of the sample, cut to about half its length."""
    lengths = _lengths(features)
    return {
        name: array[:1, : (lengths[name] + 1) // 2] if name in lengths else array[:1]
        for name, array in features.arrays.items()
    }


def _first_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
