"""Convert a TensorFlow function to ONNX with tf2onnx."""

import importlib.util
import logging
from types import SimpleNamespace
from typing import Any

from keras_efficient._errors import InputError, VerificationError, listed
from keras_efficient.exporters._model_file import MissingOperationError
from keras_efficient.exporters.onnx.rewrites import all_nodes, rewrite, write_erfc
from keras_efficient.flavor._quiet_logger import quiet_logger

#: Version of the operator set: the first one that has LayerNormalization.
OPSET = 17
_MODULES = ("tf2onnx", "onnx", "onnxruntime")


def check_installed() -> None:
    """Require the packages that write and run ONNX files.

    Raises:
        InputError: one of them is not installed.
    """
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            "An ONNX file is written by tf2onnx and verified with onnxruntime. Received: a Python "
            f"without {listed(missing, quoted=False)}. Install it: "
            "pip install 'keras_efficient[onnx]'."
        )


def convert(function: Any) -> Any:
    """Return an ONNX model that computes what a concrete function does.

    Its inputs and outputs have the names of the function's signature.

    Args:
        function: concrete function of tensors by name that returns a dict of tensors.

    Returns:
        An `onnx.ModelProto`.

    Raises:
        VerificationError: the function has operations that ONNX lacks, or the conversion fails.
    """
    import tf2onnx

    try:
        # What matters of what tf2onnx says about each node, it raises or leaves.
        with quiet_logger("tf2onnx", logging.CRITICAL):
            model, _ = tf2onnx.convert.from_function(
                SimpleNamespace(get_concrete_function=lambda *_: _WithoutCaptures(function)),
                input_signature=(),
                opset=OPSET,
                custom_op_handlers={"Erfc": (write_erfc, [])},
            )
    except Exception as error:
        tail = "\n".join(line[:300] for line in str(error).strip().splitlines()[-12:])
        raise VerificationError(
            f"tf2onnx could not write the model. It raised {type(error).__name__}: {tail}"
        ) from error
    _check_operations(model)
    rewrite(model)
    return model


class _WithoutCaptures:
    """A concrete function whose inputs are those of its signature.

    TensorFlow lists tensors of a layer, such as KerasHub's position ids in ViT, among the inputs
    although they are constants in the graph, and tf2onnx would make inputs of them.
    """

    def __init__(self, function):
        self._function = function
        captured = {id(tensor) for tensor in function.graph.internal_captures}
        self.inputs = [
            tensor
            for tensor in function.inputs
            if id(tensor) not in captured or tensor.op.type != "Const"
        ]

    def __getattr__(self, name):
        return getattr(self._function, name)


def _check_operations(model):
    """Require the operator set that was asked for, with all operations of the model."""
    import onnx

    versions = {x.domain or "ai.onnx": x.version for x in model.opset_import}
    if versions.get("ai.onnx") != OPSET:
        raise VerificationError(
            f"An ONNX file is written for opset {OPSET}. tf2onnx wrote {versions}."
        )
    lacking = sorted(
        {node.op_type for node in all_nodes(model.graph.node) if not _known(onnx, node)}
    )
    if lacking:
        raise MissingOperationError(
            f"An ONNX file may only hold operations of ONNX's opset {OPSET}. The model needs "
            f"{', '.join(lacking)} of TensorFlow. Do that step before the model or in another way, "
            "or export a SavedModel."
        )
    onnx.checker.check_model(model)


def _known(onnx, node):
    try:
        onnx.defs.get_schema(node.op_type, max_inclusive_version=OPSET, domain=node.domain)
    except onnx.defs.SchemaError:
        return False
    return True
