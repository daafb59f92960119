"""`check_graph` refuses all but the allowed ops before a SavedModel is loaded."""

import pytest
import tensorflow as tf
import text_models
from tensorflow.core.protobuf import saved_model_pb2

from keras_efficient._errors import InputError
from keras_efficient.serving._allowed_ops import ALLOWED_OPS
from keras_efficient.serving._check_graph import check_graph


@pytest.fixture
def version(tmp_path):
    return text_models.copy(tmp_path / "1")


def change(version, edit):
    """Edit the one graph of a SavedModel."""
    path = version / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(model)
    path.write_bytes(model.SerializeToString())


def function(model, part):
    """Return the function whose name contains `part`."""
    functions = model.meta_graphs[0].graph_def.library.function
    return next(f for f in functions if part in f.signature.name)


def refused(version, message):
    with pytest.raises(InputError, match=message):
        check_graph(version)


def test_a_good_model_passes(version):
    ops = check_graph(version)
    # Its table is filled from its own asset; only saving and restoring access other files.
    assert {"Softmax", "InitializeTableFromTextFileV2", "SaveV2", "RestoreV2"} <= ops
    assert not any(op.startswith("__inference") for op in ops)


SIDE_EFFECTS = {
    "WriteFile": lambda x: tf.io.write_file("/tmp/no", x[0]),
    "ReadFile": lambda x: tf.io.read_file("/etc/passwd"),
    "MatchingFiles": lambda x: tf.io.matching_files("/etc/*"),
    "EagerPyFunc": lambda x: tf.py_function(lambda y: y, [x], tf.string),
    "PyFunc": lambda x: tf.numpy_function(lambda y: y, [x], tf.string),
    "SaveV2": lambda x: tf.raw_ops.SaveV2(
        prefix="/tmp/no", tensor_names=["x"], shape_and_slices=[""], tensors=[x]
    ),
    "RestoreV2": lambda x: tf.raw_ops.RestoreV2(
        prefix="/tmp/no", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.string]
    )[0],
    "PrintV2": lambda x: tf.print(x, output_stream="file:///tmp/no"),
    "TextLineDataset": lambda x: tf.raw_ops.TextLineDataset(
        filenames="/etc/passwd", compression_type="", buffer_size=0
    ),
}


@pytest.mark.parametrize("op", SIDE_EFFECTS)
def test_an_op_with_a_side_effect(op, tmp_path):
    version = text_models.save(tmp_path / "1", SIDE_EFFECTS[op], signatures=("text",))
    refused(version, rf"may only compute.*the op {op} ")


@pytest.mark.parametrize("op", ["WriteFile", "RestoreV2"])
def test_an_op_in_a_branch_inside_a_loop(op, tmp_path):
    def nested(x):
        def body(i):
            tf.cond(i > 1, lambda: SIDE_EFFECTS[op](x) is None or True, lambda: True)
            return i + 1

        return tf.while_loop(lambda i: i < 3, body, [0])[0]

    refused(text_models.save(tmp_path / "1", nested, ("text",)), rf"the op {op} ")


def test_a_table_filled_from_an_arbitrary_file(tmp_path):
    def table(x):
        handle = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        return tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=handle, filename="/etc/passwd", key_index=-2, value_index=-1
        )

    refused(
        text_models.save(tmp_path / "1", table, ("text",)), "the op InitializeTableFromTextFileV2"
    )


def test_a_table_whose_file_argument_is_not_an_asset(version):
    def edit(model):
        objects = model.meta_graphs[0].object_graph_def
        kinds = [node.WhichOneof("kind") for node in objects.nodes]
        name = next(n for n in objects.concrete_functions if "initializer" in n)
        bound = objects.concrete_functions[name].bound_inputs
        index = next(i for i, node in enumerate(bound) if kinds[node] == "asset")
        bound[index] = kinds.index("variable")

    change(version, edit)
    refused(version, "the op InitializeTableFromTextFileV2")


def test_an_asset_outside_the_folder(version):
    for name in ("../../secret", "/etc/passwd", "", "a/./b", "a\\b"):

        def edit(model, name=name):
            model.meta_graphs[0].asset_file_def[0].filename = name

        change(version, edit)
        refused(version, "assets must lie in its folder")


def test_the_save_function_may_not_be_called(version):
    def edit(model):
        saving = function(model, "traced_save").signature.name
        node = function(model, "signature_wrapper").node_def.add(name="call", op="PartitionedCall")
        node.attr["f"].func.name = saving

    change(version, edit)
    refused(version, "the op ShardedFilename .*only in the functions that save and restore")


def test_the_restore_function_may_not_implement_another(version):
    def edit(model):
        function(model, "traced_restore").attr["api_implements"].s = b"softmax"

    change(version, edit)
    refused(version, "the op RestoreV2")


def test_the_save_function_may_not_be_a_gradient(version):
    def edit(model):
        saving = function(model, "traced_save").signature.name
        node = function(model, "signature_wrapper").node_def.add(name="x", op="Identity")
        node.attr["_gradient"].s = saving.encode()

    change(version, edit)
    refused(version, "the op ShardedFilename .*only in the functions that save and restore")


def test_two_functions_with_the_same_name(version):
    def edit(model):
        library = model.meta_graphs[0].graph_def.library
        library.function.add().CopyFrom(library.function[0])

    change(version, edit)
    refused(version, "must have different names")


def test_an_op_in_an_uncalled_function(version):
    def edit(model):
        library = model.meta_graphs[0].graph_def.library
        library.function.add().signature.name = "unused"
        library.function[-1].node_def.add(name="w", op="WriteFile")

    change(version, edit)
    refused(version, "the op WriteFile ")


def test_an_op_outside_of_functions(version):
    change(version, lambda m: m.meta_graphs[0].graph_def.node.add(name="w", op="ReadFile"))
    refused(version, "the op ReadFile ")


def test_a_graph_of_tensorflow_1(version):
    change(version, lambda model: model.meta_graphs[0].ClearField("object_graph_def"))
    refused(version, "one graph, written by TensorFlow 2")
    change(version, lambda model: model.meta_graphs.add())
    refused(version, "one graph, written by TensorFlow 2")


def test_a_second_graph_file(version):
    for name in ("saved_model.pbtxt", "saved_model.cpb"):
        (version / name).write_text("")
        refused(version, f"nowhere else.*{name}")
        (version / name).unlink()


def test_garbage(version):
    for data in (b"\xff" * 99, b"garbage" * 100, b"\x0a\xff\xff\xff\xff\x7f"):
        (version / "saved_model.pb").write_bytes(data)
        refused(version, "must be a SavedModel")


def test_no_graph(version):
    (version / "saved_model.pb").unlink()
    refused(version, "with no such file")


# --- checkpoints ---------------------------------------------------------------------------------


class Resource(tf.saved_model.experimental.TrackableResource):
    """A table in memory, whose initialisation, which loading a model runs, calls `does`."""

    def __init__(self, does):
        super().__init__()
        self._does = does

    def _create_resource(self):
        return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

    def _initialize(self):
        # Without a later op that is needed, TensorFlow would drop the op from the function.
        with tf.control_dependencies([self._does()]):
            tf.raw_ops.LookupTableInsertV2(
                table_handle=self.resource_handle, keys=["x"], values=tf.constant([1], tf.int64)
            )


def save_resource(folder, does):
    """Write a SavedModel which runs `does` as it is loaded."""
    module = tf.Module()
    module.resource = Resource(does)
    tf.saved_model.save(module, str(folder))
    return folder


def listed(graph, name):
    """Leave the model as TensorFlow writes it."""


def bare(graph, name):
    """Name the function in `nodes[].bare_concrete_function` instead of `nodes[].function`."""
    for node in graph.object_graph_def.nodes:
        if name in node.function.concrete_functions:
            node.bare_concrete_function.concrete_function_name = name


def unlisted(graph, name):
    """Also delete the function from the list of concrete functions."""
    bare(graph, name)
    del graph.object_graph_def.concrete_functions[name]
    for node in graph.object_graph_def.nodes:
        if node.bare_concrete_function.concrete_function_name == name:
            node.bare_concrete_function.ClearField("function_spec")
    function = next(f for f in graph.graph_def.library.function if f.signature.name == name)
    # Its result has no structure any more, so it may have none.
    function.signature.ClearField("output_arg")
    function.ClearField("ret")
    function.signature.control_output.append("saved")
    function.control_ret["saved"] = next(n.name for n in function.node_def if n.op == "SaveV2")


def named_as_a_saver(graph, name):
    """Also let `saver_def` name the function as the one that saves the variables."""
    unlisted(graph, name)
    saver = graph.saver_def.save_tensor_name.split(":")[0]
    node = next(node for node in graph.graph_def.node if node.name == saver)
    functions = graph.graph_def.library.function
    functions.remove(next(f for f in functions if f.signature.name == node.attr["f"].func.name))
    node.attr["f"].func.name = name


@pytest.mark.parametrize("hide", [listed, bare, unlisted, named_as_a_saver])
def test_loading_may_not_save_a_checkpoint(hide, tmp_path):
    def save():
        return tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "written"),
            tensor_names=["x"],
            shape_and_slices=[""],
            tensors=[tf.constant(1.0)],
        )

    def edit(model):
        names = model.meta_graphs[0].object_graph_def.concrete_functions
        hide(model.meta_graphs[0], next(name for name in names if "initializer" in name))

    version = save_resource(tmp_path / "1", save)
    change(version, edit)
    refused(version, "the op SaveV2 in the function .*only in the functions that save and restore")
    # The attack would work: TensorFlow itself writes the file as it loads the model.
    assert not list(tmp_path.glob("written*"))
    tf.saved_model.load(str(version))
    assert list(tmp_path.glob("written*"))


def test_an_initialiser_may_not_decode_by_a_descriptor_file(tmp_path):
    def decode():
        return tf.raw_ops.DecodeProtoV2(
            bytes=[b""],
            message_type="m",
            field_names=["x"],
            output_types=[tf.int32],
            descriptor_source="/etc/passwd",
        ).sizes

    refused(save_resource(tmp_path / "1", decode), "the op DecodeProtoV2 in the function")


def test_an_initialiser_may_not_make_an_iterator(tmp_path):
    def iterate():
        return tf.raw_ops.AnonymousIterator(output_types=[tf.int32], output_shapes=[()])

    refused(save_resource(tmp_path / "1", iterate), "the op AnonymousIterator in the function")


def test_the_saver_may_not_be_mentioned_anywhere_else(version):
    """By its name, by the name that TensorFlow gives it on loading, or as a server's signature."""

    def gradient(graph, name):
        graph.graph_def.library.gradient.add(function_name="f", gradient_func=name)

    def registered_gradient(graph, name):
        graph.graph_def.library.registered_gradients.add(gradient_func=name)

    def object_function(graph, name):
        graph.object_graph_def.nodes.add().function.concrete_functions.append(name)

    def bare_function(graph, name):
        node = graph.object_graph_def.nodes.add()
        node.bare_concrete_function.concrete_function_name = name

    def captured_tensor(graph, name):
        graph.object_graph_def.nodes.add().captured_tensor.concrete_function = name

    def renamed(graph, name):
        functions = graph.graph_def.library.function
        other = next(f for f in functions if "signature_wrapper" in f.signature.name)
        node = other.node_def.add(name="x", op="Identity")
        node.attr["_gradient"].s = b"__inference__traced_save_1"

    def alias(graph, name):
        graph.meta_info_def.function_aliases[name] = "f"

    def signature(graph, name):
        node = graph.saver_def.save_tensor_name
        graph.signature_def["save"].outputs["y"].name = node

    def control_input(graph, name):
        node = graph.saver_def.save_tensor_name.split(":")[0]
        graph.graph_def.node.add(name="y", op="NoOp").input.append(f"^{node}")

    def implements(graph, name):
        function = next(f for f in graph.graph_def.library.function if f.signature.name == name)
        function.attr["api_implements"].s = b"softmax"

    original = (version / "saved_model.pb").read_bytes()
    for mention in (
        *(gradient, registered_gradient, object_function, bare_function, captured_tensor),
        *(renamed, alias, signature, control_input, implements),
    ):

        def edit(model, mention=mention):
            mention(model.meta_graphs[0], function(model, "traced_save").signature.name)

        (version / "saved_model.pb").write_bytes(original)
        check_graph(version)
        change(version, edit)
        refused(version, "the op ShardedFilename .*only in the functions that save and restore")


def test_the_restore_function_may_not_save(version):
    """TensorFlow Serving runs it, to load the variables."""

    def edit(model):
        function(model, "traced_restore").node_def.add(name="s", op="SaveV2")

    change(version, edit)
    refused(version, "the op SaveV2 in the function '__inference__traced_restore")


def test_a_checkpoint_op_outside_of_functions(version):
    change(version, lambda m: m.meta_graphs[0].graph_def.node.add(name="s", op="SaveV2"))
    refused(version, "the op SaveV2 in the node 's', outside of functions")


def test_an_asset_of_a_registered_class(version):
    """A class registered in TensorFlow may recreate the node as something else than its asset."""

    def edit(model):
        nodes = model.meta_graphs[0].object_graph_def.nodes
        asset = next(n for n in nodes if n.WhichOneof("kind") == "asset")
        asset.registered_name = "tf.Other"

    change(version, edit)
    refused(version, "the op InitializeTableFromTextFileV2")


# --- the list ------------------------------------------------------------------------------------


def test_an_unknown_op_is_refused_with_its_name(version):
    def edit(model):
        function(model, "signature_wrapper").node_def.add(name="x", op="OpOfTomorrow")

    change(version, edit)
    refused(version, "the op OpOfTomorrow in the function .*not on the list.*in a sandbox")


def test_a_function_may_not_be_called_as_an_op(version):
    """Otherwise a function with the name of a harmful op would let that op pass."""

    def edit(model):
        model.meta_graphs[0].graph_def.library.function.add().signature.name = "WriteFile"
        function(model, "signature_wrapper").node_def.add(name="x", op="WriteFile")

    change(version, edit)
    refused(version, "the op WriteFile ")


def test_no_allowed_op_has_a_side_effect():
    ops = [
        *("ReadFile", "WriteFile", "MatchingFiles", "ImmutableConst", "RecordInput", "ImportEvent"),
        *("EncodeProto", "DecodeProtoV2", "DecodeCompressed", "DecodeJpeg", "ParseTensor"),
        *("SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename", "LoadAndRemapMatrix"),
        *("Save", "SaveSlices", "Restore", "RestoreSlice", "GenerateVocabRemapping", "Skipgram"),
        *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "LMDBReader"),
        *(
            "TFRecordReaderV2",
            "CacheDatasetV2",
            "SnapshotDataset",
            "SqlDataset",
            "DatasetFromGraph",
        ),
        *("AnonymousIterator", "IteratorV2", "GeneratorDataset", "DataServiceDatasetV4"),
        *("Print", "PrintV2", "DebugIdentityV3", "DumpTensor", "CreateSummaryFileWriter"),
        *("PyFunc", "PyFuncStateless", "EagerPyFunc", "RpcCall", "RemoteCall", "_Send", "_Recv"),
        *(
            "CollectiveBcastRecvV2",
            "XlaCustomCallV2",
            "XlaCallModule",
            "FileSystemSetConfiguration",
        ),
        *("BatchFunction", "Abort", "ConfigureDistributedTPU", "NcclAllReduce", "SymbolicGradient"),
    ]
    assert [op for op in ops if op in ALLOWED_OPS] == []


def test_every_allowed_op_exists():
    """Registered in TensorFlow or in TensorFlow Text, without an attribute that names a file."""
    from tensorflow.python.framework import op_def_registry

    definitions = {name: op_def_registry.get(name) for name in ALLOWED_OPS}
    unknown = {name for name, definition in definitions.items() if definition is None}
    assert {name for name in unknown if name in dir(tf.raw_ops)} == set()
    words = ("file", "path", "directory", "address", "url", "descriptor", "library")
    for name, definition in definitions.items():
        arguments = [*definition.attr, *definition.input_arg] if definition else []
        for argument in arguments:
            assert not any(word in argument.name for word in words), (name, argument.name)


def test_ops_of_models_are_allowed():
    ops = [
        *(
            "MatMul",
            "_QuantizedMatMul",
            "QuantizeV2",
            "Bitcast",
            "ReadVariableOp",
            "StatefulPartitionedCall",
        ),
        *("RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets", "TensorListReserve"),
        *("RaggedTensorToTensor", "LookupTableFindV2", "StaticRegexReplace", "While", "Assert"),
        *("_MklLayerNorm", "CaseFoldUTF8", "NormalizeUTF8", "TensorArrayReadV3", "Erf", "Erfc"),
        *("SentencepieceOp", "TFText>RoundRobinTrim", "TFText>FastSentencepieceTokenize"),
        # tf_keras adds those of GPUs to each LSTM and GRU.
        *("CudnnRNNV3", "CudnnRNNBackpropV3", "Fingerprint"),
        *("Conv2D", "FusedBatchNormV3", "FFT2D", "TensorListStack", "RaggedRange", "Einsum"),
    ]
    assert [op for op in ops if op not in ALLOWED_OPS] == []
