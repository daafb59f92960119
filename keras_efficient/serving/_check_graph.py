"""`check_graph`: refuse a SavedModel that does more than compute, before it is loaded."""

import os
import re
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.serving._allowed_ops import ALLOWED_OPS

SAVED_MODEL = "saved_model.pb"
#: Other graph files, which TensorFlow reads where there is no saved_model.pb, or may read one day.
_OTHER_FILES = ("saved_model.pbtxt", "saved_model.cpb")
#: Ops that may stand only in the function that saves the variables.
_SAVE_OPS = frozenset({"SaveV2", "MergeV2Checkpoints", "ShardedFilename"})
#: Ops that may stand only in the function that restores the variables.
_RESTORE_OPS = frozenset({"RestoreV2"})
#: Fills a lookup table from a file, which must be an asset of the model.
_FROM_FILE = "InitializeTableFromTextFileV2"


def check_graph(folder: str | os.PathLike) -> set[str]:
    """Refuse a SavedModel whose graph does more than compute.

    A SavedModel is a program. Its manifest shows that it arrived complete, not that its author
    means well. This function compares every op of the file with a list of allowed ones, in all
    functions and outside of them, whether anything calls them or not; nothing is loaded or run. A
    checkpoint may be written or read only by the functions that `saver_def` names for it, which
    nothing else in the file may mention, so that loading the model or calling a signature cannot
    run them. A lookup table may be filled from one of the model's own assets. The check does not
    bound computing time or memory, and is no sandbox.

    Args:
        folder: path of the SavedModel.

    Returns:
        The names of all ops in the graph.

    Raises:
        InputError: the folder is not a SavedModel of TensorFlow 2, or its graph has an op that is
            not allowed where it stands.

    Examples:
        >>> "MatMul" in ke.serving.check_graph("saved_models/reviews/1")  # doctest: +SKIP
        True

    Reference:
        TensorFlow, `Using TensorFlow Securely
        <https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md>`_: models are programs.
    """
    folder = Path(folder)
    graph = _read(folder)
    for asset in graph.asset_file_def:
        _check_asset(folder, asset.filename)
    functions = graph.graph_def.library.function
    library = {function.signature.name: function for function in functions}
    if len(library) < len(functions):
        raise InputError(
            "The functions of a graph must have different names. Received: "
            f"{folder}, with two of one name. Do not load it."
        )
    checkpoint_ops = _checkpoint_ops(graph)
    for name, function in library.items():
        allowed = ALLOWED_OPS | checkpoint_ops.get(name, frozenset())
        for node in function.node_def:
            own_asset = node.op == _FROM_FILE and _is_asset(graph, library, function, node)
            if node.op not in allowed and not own_asset:
                raise _refused(folder, node.op, f"the function {name[:80]!r}")
    for node in graph.graph_def.node:
        if node.op not in ALLOWED_OPS:
            raise _refused(folder, node.op, f"the node {node.name[:80]!r}, outside of functions")
    nodes = [*graph.graph_def.node, *(n for f in library.values() for n in f.node_def)]
    return {node.op for node in nodes}


def _refused(folder, op, where):
    checkpoint = op in _SAVE_OPS | _RESTORE_OPS
    rule = (
        "may stand only in the functions that save and restore the variables"
        if checkpoint
        else "is not on the list of allowed ones"
    )
    return InputError(
        "A model that is run here may only compute: no files, no network, no Python. Received: "
        f"{folder}, whose graph has the op {op[:80]} in {where}, which {rule}. Do not load it, "
        "unless you know who made it and why; then run it in a sandbox, with `tf.saved_model.load` "
        "or TensorFlow Serving."
    )


def _read(folder):
    """Return the only graph of a SavedModel, a MetaGraphDef."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    others = [name for name in _OTHER_FILES if os.path.lexists(folder / name)]
    if others or not (folder / SAVED_MODEL).is_file():
        raise InputError(
            f"A SavedModel must have its graph in {SAVED_MODEL}, and nowhere else. Received: "
            f"{folder}, with {others[0] if others else 'no such file'}. Export the model again, as "
            "a SavedModel."
        )
    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString((folder / SAVED_MODEL).read_bytes())
    except DecodeError as error:
        raise InputError(
            f"{SAVED_MODEL} must be a SavedModel. Received: that of {folder}, which is damaged or "
            "something else. Copy the version again from where it was exported."
        ) from error
    graphs = model.meta_graphs
    # TensorFlow would load anything else as a graph of TensorFlow 1, and run all of it.
    if len(graphs) != 1 or not graphs[0].HasField("object_graph_def"):
        raise InputError(
            f"{SAVED_MODEL} must hold one graph, written by TensorFlow 2. Received: that of "
            f"{folder}, with {len(graphs)} graphs or without objects. Export the model again."
        )
    return graphs[0]


def _check_asset(folder, name):
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in name or "\x00" in name:
        raise InputError(
            "A SavedModel's assets must lie in its folder. Received: "
            f"{name[:200]!r} in {folder}. Do not load it."
        )


def _checkpoint_ops(graph):
    """Return {name of a function: the checkpoint ops it may have}, for the saver's functions.

    Whatever else mentions such a function could run it. So nothing may: no node, attribute, object,
    gradient or signature. TensorFlow renames functions as it loads them, to a new name with the
    same stem, so no other part of the file may contain the stem.
    """
    saver = graph.saver_def
    allowed_in = {
        saver.save_tensor_name.split(":")[0]: _SAVE_OPS,
        saver.restore_op_name: _RESTORE_OPS,
    }
    calls = {
        node.name: node.attr["f"].func.name
        for node in graph.graph_def.node
        if node.name in allowed_in and node.op in ("PartitionedCall", "StatefulPartitionedCall")
    }
    # TensorFlow may substitute a function by any other that implements the same interface.
    functions = graph.graph_def.library.function
    implementations = {f.signature.name for f in functions if "api_implements" in f.attr}
    rest = type(graph)()
    rest.CopyFrom(graph)
    rest.ClearField("saver_def")
    _remove(rest.graph_def.node, lambda node: node.name in calls)
    _remove(rest.graph_def.library.function, lambda f: f.signature.name in calls.values())
    mentioned, text = _mentioned_nodes(rest), rest.SerializeToString()
    return {
        name: allowed_in[node]
        for node, name in calls.items()
        if node not in mentioned
        and _stem(name).encode() not in text
        and name not in implementations
    }


def _remove(messages, condition):
    for index in reversed(range(len(messages))):
        if condition(messages[index]):
            del messages[index]


def _mentioned_nodes(graph):
    """Return the names of all nodes outside functions that something else in the graph uses."""
    names = {name for node in graph.graph_def.node for name in node.input}
    names |= {name for c in graph.collection_def.values() for name in c.node_list.value}
    for signature in graph.signature_def.values():
        names |= set(re.findall(r'"([^"]*)"', str(signature)))
    return {name.lstrip("^").split(":")[0] for name in names}


def _stem(name):
    return re.sub(r"^__inference_|_\d+$", "", name)


def _references(function):
    """Return every name in a function that may refer to another function."""
    names = {node.op for node in function.node_def}
    for attributes in (function.attr, *(node.attr for node in function.node_def)):
        for value in attributes.values():
            names |= _names(value)
    return names


def _names(value):
    functions = [value.func, *value.list.func]
    names = {function.name for function in functions}
    for function in functions:
        for inner in function.attr.values():
            names |= _names(inner)
    # Strings count, because gradient functions are referred to by strings.
    return names | {string.decode("utf-8", "replace") for string in (value.s, *value.list.s)}


def _is_asset(graph, library, function, node):
    """Return whether the file that fills a lookup table is an asset, bound by the loader."""
    objects = graph.object_graph_def
    name = function.signature.name
    concrete = objects.concrete_functions.get(name)
    called = any(name in _references(other) for other in library.values())
    arguments = [argument.name for argument in function.signature.input_arg]
    if concrete is None or called or len(node.input) < 2 or node.input[1] not in arguments:
        return False
    bound = list(concrete.bound_inputs)
    # Bound inputs are the last arguments of a function.
    index = arguments.index(node.input[1]) - (len(arguments) - len(bound))
    if not 0 <= index < len(bound) or not 0 <= bound[index] < len(objects.nodes):
        return False
    source = objects.nodes[bound[index]]
    return source.WhichOneof("kind") == "asset" and not source.registered_name
