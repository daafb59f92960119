"""Quantize an ONNX model with ONNX Runtime's tools."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_efficient.exporters.onnx.rewrites import Nodes, remove_unread
from keras_efficient.flavor._quiet_logger import quiet_logger

_PRODUCTS = ("MatMul", "Gemm")
#: Operations that are quantized where they read a constant. All others stay in float32.
_OPERATIONS = [*_PRODUCTS, "Gather"]


def quantize_dynamically(model: Any, file: Path, reduce_range: bool) -> None:
    """Write a model with weights of 8 bits, whose products quantize their inputs in each call.

    Args:
        model: an `onnx.ModelProto` in float32.
        file: path of the file to write.
        reduce_range: whether weights have 7 bits instead.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The advice to prepare a model, which is done here, is left out.
    with quiet_logger(None), tempfile.TemporaryDirectory() as folder:
        prepared, nodes = _prepared(model, folder)
        quantize_dynamic(
            prepared,
            Path(file),
            op_types_to_quantize=_OPERATIONS,
            # A Gemm becomes a MatMul of this name and an Add.
            nodes_to_quantize=[*nodes, *(f"{name}_MatMul" for name in nodes)],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )


def quantize_statically(model: Any, file: Path, batches: list[dict], reduce_range: bool) -> None:
    """Write a model with weights of 8 bits and fixed ranges of the inputs of its products.

    The file has pairs of QuantizeLinear and DequantizeLinear ("QDQ") around the products. A range
    is that in which the model clips an input, or else that which it has on `batches`.

    Args:
        model: an `onnx.ModelProto` in float32.
        file: path of the file to write.
        batches: list of dicts of arrays by input name.
        reduce_range: whether weights have 7 bits instead.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Batches(CalibrationDataReader):
        rest = iter(batches)

        def get_next(self):
            return next(self.rest, None)

    # The advice to prepare a model, which is done here, is left out.
    with quiet_logger(None), tempfile.TemporaryDirectory() as folder:
        prepared, nodes = _prepared(model, folder)
        separated = onnx.load(prepared)
        ranges = _separate_inputs(separated.graph, set(nodes))
        onnx.save(separated, prepared)
        quantize_static(
            prepared,
            Path(file),
            Batches(),
            op_types_to_quantize=_OPERATIONS,
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": _OPERATIONS,
                "TensorQuantOverrides": ranges,
            },
        )


def _prepared(model, folder):
    """Return the path of the model with biases inside of its products, and the nodes to quantize.

    Those are the products of weights and the look-ups of their rows.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = Path(folder) / "prepared.onnx"
    # Given a model in place of a file, it fails to read what it has written.
    onnx.save(model, path.with_suffix(".source"))
    quant_pre_process(path.with_suffix(".source"), path, skip_symbolic_shape=True)
    prepared = onnx.load(path)
    weights = {
        constant.name
        for constant in prepared.graph.initializer
        if constant.data_type == onnx.TensorProto.FLOAT and len(constant.dims) == 2
    }
    chosen = []
    for node in prepared.graph.node:
        table = node.op_type == "Gather" and node.input[0] in weights
        product = node.op_type in _PRODUCTS and node.input[1] in weights
        if (product and node.input[0] not in weights) or table:
            chosen.append(node.name)
        if node.op_type == "Gemm" and len(node.input) == 2:
            # The factor of a bias that there is none of: ONNX Runtime quantizes only with 1.
            for attribute in node.attribute:
                if attribute.name == "beta":
                    attribute.f = 1.0
    onnx.save(prepared, path)
    return path, chosen


def _separate_inputs(graph, names):
    """Give the quantized products tensors of their own, since others read the same in float32.

    Returns:
        `{tensor: [{"rmin", "rmax"}]}` of the inputs that are clipped. What clips them is left out,
        because rounding does that, too.
    """
    from onnx import helper

    nodes = Nodes(graph)
    products = [n for n in graph.node if n.name in names and n.op_type in _PRODUCTS]
    ranges = {}
    for name in dict.fromkeys(node.input[0] for node in products):
        if name not in nodes.makers:
            # An input of the graph or a constant.
            continue
        maker, readers = nodes.makers[name], nodes.readers[name]
        own = [node for node in products if node.input[0] == name]
        with suppress(LookupError):
            x, low, high = _clipped(nodes, maker)
            if len(own) == len(readers) and name not in nodes.outputs:
                ranges[name] = [{"rmin": low, "rmax": high}]
                maker.CopyFrom(helper.make_node("Identity", [x], [name], name=maker.name))
                continue
        if len(own) < len(readers) or name in nodes.outputs:
            copy = helper.make_node("Identity", [name], [f"{name}/quantized"], f"{name}/quantized")
            graph.node.insert(list(graph.node).index(maker) + 1, copy)
            for node in own:
                node.input[0] = f"{name}/quantized"
    remove_unread(graph)
    return ranges


def _clipped(nodes, maker):
    """Return `(x, low, high)` of max(min(x, high), low); LookupError for other nodes."""
    if maker.op_type != "Max" or len(maker.input) != 2:
        raise LookupError(maker.name)
    low, inner = nodes.split(maker)
    high, x = nodes.split(nodes.maker(inner, "Min"))
    low, high = nodes.value(low), nodes.value(high)
    if low.ndim or high.ndim:
        raise LookupError(maker.name)
    return x, low, high
