"""What a graph would do beside computing is found before it is loaded."""

import pytest
import tensorflow as tf
import text_models
from tensorflow.core.protobuf import saved_model_pb2

from keras_efficient._errors import InputError
from keras_efficient.serving._check_graph import _FORBIDDEN, check_graph


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
    """The function in whose name `part` is."""
    functions = model.meta_graphs[0].graph_def.library.function
    return next(f for f in functions if part in f.signature.name)


def refused(version, message):
    with pytest.raises(InputError, match=message):
        check_graph(version)


def test_a_good_model_passes(version):
    ops = check_graph(version)
    # (Its table is filled from its own asset; saving and restoring reach files.)
    assert {"Softmax", "InitializeTableFromTextFileV2", "SaveV2", "RestoreV2"} <= ops
    assert not any(op.startswith("__inference") for op in ops)


REACHING_OUT = {
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


@pytest.mark.parametrize("op", REACHING_OUT)
def test_an_op_that_reaches_out(op, tmp_path):
    version = text_models.save(tmp_path / "1", REACHING_OUT[op], signatures=("text",))
    refused(version, rf"may only compute.*the op {op} ")


@pytest.mark.parametrize("op", ["WriteFile", "RestoreV2"])
def test_in_a_branch_of_a_loop(op, tmp_path):
    def deep(x):
        def body(i):
            tf.cond(i > 1, lambda: REACHING_OUT[op](x) is None or True, lambda: True)
            return i + 1

        return tf.while_loop(lambda i: i < 3, body, [0])[0]

    refused(text_models.save(tmp_path / "1", deep, ("text",)), rf"the op {op} ")


def test_a_table_from_any_file(tmp_path):
    def table(x):
        handle = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        return tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=handle, filename="/etc/passwd", key_index=-2, value_index=-1
        )

    refused(
        text_models.save(tmp_path / "1", table, ("text",)), "the op InitializeTableFromTextFileV2"
    )


def test_a_table_whose_file_is_bound_to_something_else(version):
    def edit(model):
        objects = model.meta_graphs[0].object_graph_def
        kinds = [node.WhichOneof("kind") for node in objects.nodes]
        name = next(n for n in objects.concrete_functions if "initializer" in n)
        bound = objects.concrete_functions[name].bound_inputs
        place = next(i for i, node in enumerate(bound) if kinds[node] == "asset")
        bound[place] = kinds.index("variable")

    change(version, edit)
    refused(version, "the op InitializeTableFromTextFileV2")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "", "a/./b", "a\\b"])
def test_an_asset_elsewhere(name, version):
    def edit(model):
        model.meta_graphs[0].asset_file_def[0].filename = name

    change(version, edit)
    refused(version, "assets must lie in its folder")


def test_the_function_that_saves_may_not_be_called(version):
    def edit(model):
        saving = function(model, "traced_save").signature.name
        node = function(model, "signature_wrapper").node_def.add(name="call", op="PartitionedCall")
        node.attr["f"].func.name = saving

    change(version, edit)
    refused(version, "the op (SaveV2|MergeV2Checkpoints)")


def test_nor_stand_in_for_another(version):
    def edit(model):
        function(model, "traced_restore").attr["api_implements"].s = b"softmax"

    change(version, edit)
    refused(version, "the op RestoreV2")


def test_nor_be_named_as_a_gradient(version):
    def edit(model):
        saving = function(model, "traced_save").signature.name
        node = function(model, "signature_wrapper").node_def.add(name="x", op="Identity")
        node.attr["_gradient"].s = saving.encode()

    change(version, edit)
    refused(version, "the op (SaveV2|MergeV2Checkpoints)")


def test_two_functions_of_one_name(version):
    def edit(model):
        library = model.meta_graphs[0].graph_def.library
        library.function.add().CopyFrom(library.function[0])

    change(version, edit)
    refused(version, "names of their own")


def test_an_op_in_a_function_that_nothing_calls(version):
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


@pytest.mark.parametrize("name", ["saved_model.pbtxt", "saved_model.cpb"])
def test_a_graph_elsewhere(name, version):
    (version / name).write_text("")
    refused(version, f"nowhere else.*{name}")


@pytest.mark.parametrize("data", [b"\xff" * 99, b"garbage" * 100, b"\x0a\xff\xff\xff\xff\x7f"])
def test_garbage(data, version):
    (version / "saved_model.pb").write_bytes(data)
    refused(version, "must be a SavedModel")


def test_no_graph(version):
    (version / "saved_model.pb").unlink()
    refused(version, "with no such file")


@pytest.mark.parametrize(
    "op",
    [
        *("TFRecordReaderV2", "ImmutableConst", "CacheDatasetV2", "SnapshotDataset", "SqlDataset"),
        *("DebugIdentityV3", "DumpTensor", "CreateSummaryFileWriter", "WriteScalarSummary"),
        *("PyFuncStateless", "RpcCall", "RemoteCall", "_Send", "CollectiveBcastRecvV2", "Save"),
        *("XlaCustomCallV2", "LoadAndRemapMatrix", "Skipgram", "DatasetToTFRecord", "LMDBReader"),
    ],
)
def test_other_ops_of_the_list(op):
    assert _FORBIDDEN.fullmatch(op)


@pytest.mark.parametrize(
    "op",
    [
        *("MatMul", "_QuantizedMatMul", "QuantizeV2", "ReadVariableOp", "StatefulPartitionedCall"),
        *("RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets", "TensorListReserve"),
        *("RaggedTensorToTensor", "LookupTableFindV2", "StaticRegexReplace", "While", "Assert"),
        *("_MklLayerNorm", "CaseFoldUTF8", "NormalizeUTF8", "ScalarSummary", "TensorArrayReadV3"),
    ],
)
def test_ops_of_models_are_not_on_the_list(op):
    assert not _FORBIDDEN.fullmatch(op)
