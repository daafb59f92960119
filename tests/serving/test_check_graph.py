"""`check_graph` finds ops with side effects before a SavedModel is loaded."""

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
    refused(version, "the op (SaveV2|MergeV2Checkpoints)")


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
    refused(version, "the op (SaveV2|MergeV2Checkpoints)")


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


def test_other_forbidden_ops():
    ops = [
        *("TFRecordReaderV2", "ImmutableConst", "CacheDatasetV2", "SnapshotDataset", "SqlDataset"),
        *("DebugIdentityV3", "DumpTensor", "CreateSummaryFileWriter", "WriteScalarSummary"),
        *("PyFuncStateless", "RpcCall", "RemoteCall", "_Send", "CollectiveBcastRecvV2", "Save"),
        *("XlaCustomCallV2", "LoadAndRemapMatrix", "Skipgram", "DatasetToTFRecord", "LMDBReader"),
    ]
    assert [op for op in ops if not _FORBIDDEN.fullmatch(op)] == []


def test_ops_of_models_are_allowed():
    ops = [
        *("MatMul", "_QuantizedMatMul", "QuantizeV2", "ReadVariableOp", "StatefulPartitionedCall"),
        *("RegexSplitWithOffsets", "FastWordpieceTokenizeWithOffsets", "TensorListReserve"),
        *("RaggedTensorToTensor", "LookupTableFindV2", "StaticRegexReplace", "While", "Assert"),
        *("_MklLayerNorm", "CaseFoldUTF8", "NormalizeUTF8", "ScalarSummary", "TensorArrayReadV3"),
    ]
    assert [op for op in ops if _FORBIDDEN.fullmatch(op)] == []
