"""Validate the arguments of `export` before anything is written."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

from keras_efficient import flavor as flavors, tasks
from keras_efficient._errors import InputError, listed
from keras_efficient.architecture._weights import EMBEDDING, KERNEL, all_weights
from keras_efficient.compression._activation_quantization import rounds_inputs
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.exporters._destination import ARCHIVES, is_version
from keras_efficient.exporters._evaluation import Evaluation
from keras_efficient.exporters._export_report import check_facts
from keras_efficient.exporters.inference_ops.matmul import saturates
from keras_efficient.exporters.onnx.converter import check_installed
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_tokenizer
from keras_efficient.parametrize._checks import check_weights
from keras_efficient.parametrize._parametrized_layer import transforms

#: Default tolerances, relative to the largest output or 1, by whether a layer of the model computes
#: in less than float32.
_TOLERANCE = {False: 1e-5, True: 2e-2}
#: Default tolerance where activations are quantized, in memory or in the export: a rounding error
#: beside a tie becomes a whole quantization step.
_QUANTIZED_TOLERANCE = 1e-1
#: Default tolerances by `quantize`.
_FORMAT_TOLERANCE = {"bfloat16": 5e-2, "int8": _QUANTIZED_TOLERANCE}
_QUANTIZE = (None, "int8", "int8-weights", "bfloat16")
_SIGNATURES = ("tokens", "text", "generate")
_TARGETS = ("avx2", "vnni", "amx")
FORMATS = ("saved_model", "litert", "onnx")
#: Exports that multiply integers, for which it matters how a CPU adds products.
_INTEGERS = (("saved_model", "int8"), ("onnx", "int8"), ("onnx", "int8-weights"))


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """Validated arguments of `export`; `widens` says that the tolerance may depend on rounding."""

    quantize: str | None
    signatures: tuple[str, ...]
    tokenizer: Any
    task: tasks.Task
    evaluate: Evaluation | None
    facts: dict
    tolerance: float | None
    latency: bool
    target: str | None = None
    widens: bool = False

    @property
    def reduce_range(self) -> bool:
        """Whether weights of 8 bits are rounded to 7."""
        return self.target == "avx2"


def validate_arguments(
    model,
    directory,
    *,
    quantize,
    format,
    signatures,
    tokenizer,
    labels,
    task=None,
    evaluate,
    compress,
    facts=None,
    tolerance=None,
    latency=True,
    target=None,
    trained=True,
) -> ExportArguments:
    """Validate the arguments of `export` and fill in the defaults.

    Before training, `trained=False` leaves out that the quantization of the weights has begun.

    Raises:
        InputError: an argument is invalid, or this machine cannot run what it asks for.
    """
    _check_model(model)
    if quantize not in _QUANTIZE:
        raise InputError(f"`quantize` must be one of {_QUANTIZE}. Received: {quantize!r}.")
    _check_format(format, quantize, signatures, tokenizer)
    task = tasks.get(task)
    signatures = _check_signatures(signatures, tokenizer, task)
    if quantize is not None and format == "saved_model":
        _check_quantizable(model, quantize, trained)
    target = _check_target(target, quantize, format, model)
    if target == "avx2":
        _warn_of_reduction(model)
    if evaluate is not None and not isinstance(evaluate, Evaluation):
        evaluate = Evaluation(evaluate)
    if evaluate is not None and "tokens" not in signatures:
        raise InputError(
            "`evaluate` runs features through the signature 'tokens'. Received: "
            f"signatures={signatures!r}. Add it, or leave `evaluate` out."
        )
    _check_archive(directory, compress)
    return ExportArguments(
        quantize=quantize,
        signatures=signatures,
        tokenizer=tokenizer,
        task=task if evaluate is None else task.with_data(evaluate.data),
        evaluate=evaluate,
        facts=_with_labels(check_facts(facts), labels),
        tolerance=_check_tolerance(tolerance, model, quantize, format),
        latency=latency,
        target=target,
        widens=tolerance is None and target is not None,
    )


def _check_target(target, quantize, format, model):
    """Return the kind of CPU that an export in integers is for, or None for other exports."""
    integers = (format, quantize) in _INTEGERS
    if target is not None and (target not in _TARGETS or not integers):
        raise InputError(
            f"`target` is one of {_TARGETS}, the CPUs that run a SavedModel or ONNX file of "
            f"quantize='int8', or None for this machine's. Received: target={target!r} with "
            f"quantize={quantize!r} and format={format!r}."
        )
    if not integers:
        return None
    try:
        saturated = saturates()
    except InputError:
        # ONNX Runtime multiplies integers on other CPUs, too.
        if format == "saved_model":
            raise
        saturated = False
    if target in ("vnni", "amx") and saturated:
        raise InputError(
            "An export is verified on the machine that writes it. Received: "
            f"target={target!r} on a CPU without VNNI, whose products of 8 bits overflow. Export "
            "there, or use target='avx2', whose weights of 7 bits are right on both."
        )
    return target or ("avx2" if saturated or _fits_all(model) else "vnni")


def _fits_all(model):
    """Return whether no kernel of a quantized model uses 8 bits."""
    kernels = [t for t in transforms(model, FakeQuant) if t.weight.kind == KERNEL]
    return bool(kernels) and all(transform.range_bits < 8 for transform in kernels)


def _warn_of_reduction(model):
    """Warn of kernels that were trained or clipped for 8 bits and will be rounded to 7."""
    adapted = [
        t.weight.path
        for t in transforms(model, FakeQuant)
        if t.weight.kind == KERNEL
        and t.bits == 8
        and not t.reduce_range
        # Other kernels are rounded by their largest magnitude, with whatever bits.
        and (t.updater is not None or t.clip is not None)
    ]
    if adapted:
        warnings.warn(
            "target='avx2' rounds kernels to 7 bits. Received: kernels that were trained or "
            f"calibrated for 8 bits ({listed(adapted)}). The accuracy may be better with "
            "reduce_range=True in ke.quantize_aware or ke.calibrate.",
            stacklevel=4,
        )


def _with_labels(facts, labels):
    if labels is None:
        return facts
    names = [labels] if isinstance(labels, str) else list(labels)
    if isinstance(labels, str) or not all(isinstance(name, str) for name in names):
        raise InputError(
            "`labels` must be strings, one per class in the order of the logits. Received: "
            f"{labels!r:.200}. Give for example labels=['negative', 'positive']."
        )
    if facts.get("labels") not in (None, names):
        raise InputError(
            f"Labels must be given once. Received: labels={listed(names)} and facts['labels']="
            f"{listed(facts['labels'])}. Leave out one of them."
        )
    return {**facts, "labels": names}


def _check_model(model):
    try:
        flavors.of(model)
    except TypeError as error:
        raise InputError(str(error)) from error
    if not model.built:
        raise InputError(
            "A model must be built before it is exported; before that it has no weights. "
            f"Received: {type(model).__name__} {model.name!r}, not built. Train it, or call it on "
            "a batch."
        )


def _check_tolerance(tolerance, model, quantize, format):
    if tolerance is None and format != "saved_model":
        return None
    if tolerance is None:
        layers = model._flatten_layers()
        low = any(getattr(x, "compute_dtype", None) in ("bfloat16", "float16") for x in layers)
        quantized = _QUANTIZED_TOLERANCE if rounds_inputs(model) else 0.0
        return max(_TOLERANCE[low], _FORMAT_TOLERANCE.get(quantize, 0.0), quantized)
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not number or not 0 <= tolerance < math.inf:
        raise InputError(
            "`tolerance` must be a finite number, at least 0, or None for 1e-5 (2e-2 where the "
            f"model computes in bfloat16 or float16). Received: {tolerance!r}."
        )
    return float(tolerance)


def _check_quantizable(model, quantize, trained):
    weights = [weight for weight in all_weights(model) if weight.kind in (KERNEL, EMBEDDING)]
    try:
        check_weights(weights, f"quantize={quantize!r}")
    except ValueError as error:
        raise InputError(str(error)) from error
    for transform in transforms(model, FakeQuant) if trained else ():
        updater = transform.updater
        begun = None if updater is None else updater.begun()
        if updater is not None and begun is not None and not bool(begun):
            raise InputError(
                "Weights are exported as integers only once they are quantized. Received: a "
                f"model whose ke.quantize_aware begins at update {updater.begin_step}, "
                "which it has not reached. Train on, or export without `quantize`."
            )


def _check_archive(directory, compress):
    if compress and is_version(directory):
        for suffix in ARCHIVES:
            path = Path(directory).with_name(Path(directory).name + suffix)
            if path.exists():
                raise InputError(
                    f"An archive is never overwritten. Received: {directory} with {path.name} "
                    "beside it. Move that file away, or export to another version."
                )


def _check_format(format, quantize, signatures, tokenizer):
    if format not in FORMATS:
        raise InputError(f"`format` must be one of {(*FORMATS, 'auto')}. Received: {format!r}.")
    text = tokenizer is not None or signatures not in (None, "tokens", ("tokens",), ["tokens"])
    if format != "saved_model" and (quantize == "bfloat16" or text):
        received = "quantize='bfloat16'" if quantize == "bfloat16" else "a text signature"
        raise InputError(
            "A LiteRT or ONNX file has one signature, of tokens, in float32 or int8. Received: "
            f"format={format!r} with {received}. Leave that out, or export a SavedModel."
        )
    if format == "onnx":
        check_installed()


def _answering(tokenizer, task):
    """Return the signature that answers: of strings, or of ids where no graph can tokenize."""
    if not task.generates or not hasattr(tokenizer, "inputs"):
        return "text"
    try:
        text_tokenizer(tokenizer, task)
    except InputError:
        return "generate"
    return "text"


def _check_signatures(signatures, tokenizer, task):
    if signatures is None:
        signatures = ("tokens",) if tokenizer is None else ("tokens", _answering(tokenizer, task))
    signatures = (signatures,) if isinstance(signatures, str) else tuple(signatures)
    if not signatures or len(set(signatures)) < len(signatures) or set(signatures) - {*_SIGNATURES}:
        raise InputError(
            f"`signatures` must be some of {_SIGNATURES}, the first being the server's default. "
            f"Received: {signatures!r}."
        )
    if set(signatures) - {"tokens"} and not hasattr(tokenizer, "inputs"):
        raise InputError(
            "Signatures of texts need `tokenizer`, a keras_efficient.data.Tokenizer. Received: "
            f"{tokenizer!r}. ke.models.load returns one; ke.data.as_tokenizer converts others."
        )
    if "generate" in signatures and not task.generates:
        raise InputError(
            "The signature 'generate' is for tasks that generate texts. Received: "
            f"{task!r}. Name the `task` of the model, or leave the signature out."
        )
    return signatures
