"""`check_graph`: refuse a SavedModel whose graph has side effects, before it is loaded."""

import os
import re
from pathlib import Path

from keras_efficient._errors import InputError

SAVED_MODEL = "saved_model.pb"
#: Other graph files, which TensorFlow reads where there is no saved_model.pb, or may read one day.
_OTHER_FILES = ("saved_model.pbtxt", "saved_model.cpb")
#: Ops that access files, the network, Python or a foreign library. All dataset ops are among them,
#: because a graph that answers requests has none.
_FORBIDDEN = re.compile(
    r"_?(?:"
    r"ReadFile|WriteFile|MatchingFiles|ImmutableConst|RecordInput|ImportEvent"
    r"|GenerateVocabRemapping|Skipgram|FixedUnigramCandidateSampler"
    r"|(?:WholeFile|TextLine|TFRecord|FixedLengthRecord|LMDB|Bigtable)Reader.*"
    r"|Save|SaveSlices|Restore|RestoreSlice|LoadAndRemapMatrix|DTensorRestore.*|DistributedSave"
    r"|.*Dataset.*|.*SummaryWriter|Write\w*Summary|CreateSummary\w+|SummaryWriter"
    r"|Debug\w+|DumpTensor|CalibrationStatisticsSaver|CustomAggregator|PrintV2"
    r"|\w*PyFunc\w*|NumpyFunction"
    r"|Rpc\w+|RemoteCall|.*Send(?:V2)?|.*Recv(?:V2)?|FileSystemSetConfiguration"
    r"|XlaCustomCall.*|XlaCallModule|\w*XlaHostCompute\w*|XlaSendToHost|XlaRecvFromHost"
    r")"
)
#: Ops in the functions that save and restore a SavedModel. Every SavedModel has these functions,
#: and nothing calls them here.
_CHECKPOINT = {"SaveV2", "RestoreV2", "MergeV2Checkpoints"}
_FROM_FILE = {"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"}


def check_graph(folder: str | os.PathLike) -> set[str]:
    """Refuse a SavedModel whose graph does more than compute.

    A SavedModel is a program. Its manifest shows that it arrived complete, not that its author
    means well. This function searches all functions of the graph, called or not, for ops that read
    or write files, open connections or call Python; nothing is loaded or run. A lookup table may be
    filled from one of the model's own assets. The list names the ops known to be harmful; it does
    not bound computing time or memory, and is no sandbox.

    Args:
        folder: path of the SavedModel.

    Returns:
        The names of all ops in the graph.

    Raises:
        InputError: the folder is not a SavedModel of TensorFlow 2, or its graph has such an op.

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
    reachable = _reachable(graph, library)
    for name, function in library.items():
        for node in function.node_def:
            own_asset = node.op in _FROM_FILE and _is_asset(graph, library, function, node)
            if (
                _FORBIDDEN.fullmatch(node.op)
                or (node.op in _CHECKPOINT and name in reachable)
                or (node.op in _FROM_FILE and not own_asset)
            ):
                raise _refused(folder, node.op, name)
    for node in graph.graph_def.node:
        # Nodes outside functions may be checkpoint ops: TensorFlow's Python loader runs none of
        # these nodes.
        if _FORBIDDEN.fullmatch(node.op) or node.op in _FROM_FILE:
            raise _refused(folder, node.op, node.name)
    nodes = [*graph.graph_def.node, *(n for f in library.values() for n in f.node_def)]
    return {node.op for node in nodes} - library.keys()


def _refused(folder, op, where):
    return InputError(
        "A model that is run here may only compute: no files, no network, no Python. Received: "
        f"{folder}, whose graph has the op {op} (in {where[:80]!r}). Do not load it, unless you "
        "know who made it and why."
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


def _reachable(graph, library):
    """Return the names of functions that loading the model or calling it can run."""
    # The grappler may substitute a function by any other that implements the same interface.
    pending = [name for name, f in library.items() if "api_implements" in f.attr]
    pending += [name for name in graph.object_graph_def.concrete_functions if name in library]
    found = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += _references(library[name]) & library.keys()
    return found


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
    return objects.nodes[bound[index]].WhichOneof("kind") == "asset"
