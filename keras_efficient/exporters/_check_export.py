"""Check before training everything that an export needs after it."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.exporters._arguments import FORMATS, validate_arguments
from keras_efficient.exporters._destination import is_version
from keras_efficient.exporters._evaluation import scores_in_memory
from keras_efficient.exporters._export import check_graph_export, prepare
from keras_efficient.exporters.litert.export import check_litert
from keras_efficient.exporters.onnx.export import check_onnx
from keras_efficient.flavor import Model


def check_export(
    model: Model,
    directory: str | os.PathLike,
    *,
    sample: Any,
    quantize: str | None = None,
    format: str = "saved_model",
    signatures: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    labels: Sequence[str] | None = None,
    task: Any = None,
    evaluate: Any = None,
    compress: bool = False,
    target: str | None = None,
) -> Path:
    """Check before training that `ke.export` with these arguments will be possible after it.

    The arguments, the destination, the disk space, this machine's int8 products, the tokenizer and
    the runtime of the format are checked. The model is run on the sample and traced as the graph to
    be exported. Nothing is written, and the model is not changed. What training decides is not
    checked: whether the served outputs agree with those in memory, and whether `ke.quantize_aware`
    has begun by then.

    Args:
        model: the built model.
        directory: as for `ke.export`.
        sample: as for `ke.export`: one batch of the training or validation data.
        quantize: as for `ke.export`. Default: None.
        format: as for `ke.export`; with "auto" one possible format is enough. Default:
            "saved_model".
        signatures: as for `ke.export`. Default: None.
        tokenizer: as for `ke.export`. Default: None.
        labels: as for `ke.export`. Default: None.
        task: as for `ke.export`. Default: None.
        evaluate: as for `ke.export`; the first batch is run. Default: None.
        compress: as for `ke.export`. Default: False.
        target: as for `ke.export`; warns of kernels that `ke.quantize_aware` trains in 8 bits and
            that an export for "avx2" rounds to 7. Default: None.

    Returns:
        The version directory that the export would write now.

    Raises:
        InputError: an export would refuse this, for instance `quantize="int8"` with a TensorFlow
            without products of integers, or `target="vnni"` on a CPU without VNNI.

    Examples:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.mkdtemp() + "/reviews"
        >>> ke.exporters.check_export(model, folder, sample=np.ones((1, 3))).name
        '1'

    Reference:
        `ke.export`.
    """
    if format == "auto":
        return _check_candidates(
            model,
            directory,
            sample=sample,
            quantize=quantize,
            signatures=signatures,
            tokenizer=tokenizer,
            labels=labels,
            task=task,
            evaluate=evaluate,
            compress=compress,
        )
    arguments = validate_arguments(
        model,
        directory,
        quantize=quantize,
        format=format,
        signatures=signatures,
        tokenizer=tokenizer,
        labels=labels,
        task=task,
        evaluate=evaluate,
        compress=compress,
        target=target,
        trained=False,
    )
    flavor = flavors.of(model)
    # The space that floats take, since quantization is often attached or calibrated later.
    version, features, batches, answering = prepare(
        flavor, model, directory, sample, arguments, None
    )
    scores_in_memory(flavor, model, batches[:1], arguments.task)
    if format == "saved_model":
        check_graph_export(flavor, model, features, answering, arguments)
        return version
    if format == "onnx":
        check_onnx(model, flavor, features)
        return version
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise InputError(
            "A LiteRT file is verified with ai-edge-litert. Received: a Python without it. "
            "Install it: pip install 'keras_efficient[litert]'."
        )
    check_litert(model, flavor, features)
    return version


def _check_candidates(model, directory, **options):
    """Return the version of the first format that can be exported."""
    path, errors = Path(directory).expanduser().absolute(), []
    folder, number = (path.parent, path.name) if is_version(path) else (path, "")
    for format in FORMATS:
        try:
            return check_export(model, folder / format / number, format=format, **options)
        except InputError as error:
            errors.append(error)
    raise errors[0]
