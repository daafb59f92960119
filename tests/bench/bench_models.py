"""Tiny exported models of the three kinds, built without Keras."""

import numpy as np
import tensorflow as tf

VOCABULARY, CLASSES = 20, 3


class Classifier(tf.Module):
    """Classifier whose logits are the masked mean of rows of a table."""

    def __init__(self, seed=0):
        super().__init__()
        table = np.random.default_rng(seed).normal(size=(VOCABULARY, CLASSES))
        self.table = tf.Variable(table.astype("float32"))

    def serve(self, ids, mask):
        # LiteRT does not support `[..., None]` with dynamic shapes.
        keep = tf.expand_dims(tf.cast(mask, tf.float32), -1)
        rows = tf.gather(self.table, ids) * keep
        return {"logits": tf.reduce_sum(rows, 1) / tf.reduce_sum(keep, 1)}

    def function(self, length=None):
        specs = [tf.TensorSpec([None, length], tf.int32, name=name) for name in ("ids", "mask")]
        return tf.function(self.serve).get_concrete_function(*specs)

    def labelled(self, n=40, length=5):
        """Return examples, of which every fourth has a wrong label."""
        rng = np.random.default_rng(1)
        ids = rng.integers(1, VOCABULARY, (n, length)).astype("int32")
        mask = np.ones_like(ids)
        labels = self.serve(ids, mask)["logits"].numpy().argmax(-1)
        labels[::4] = (labels[::4] + 1) % CLASSES
        return {"ids": ids, "mask": mask, "labels": labels}


def write_saved_model(folder, classifier=None, length=None):
    classifier = classifier or Classifier()
    function = classifier.function(length)
    tf.saved_model.save(classifier, str(folder), signatures={"serving_default": function})
    return folder


def write_tflite(file, classifier=None):
    classifier = classifier or Classifier()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([classifier.function()], classifier)
    file.write_bytes(converter.convert())
    return file


def write_onnx(file, classifier=None):
    """Write the same computation as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    classifier = classifier or Classifier()
    sizes = ["batch", "length"]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kept", "last"], ["keep"]),
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Mul", ["rows", "keep"], ["left"]),
            helper.make_node("ReduceSum", ["left", "one"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["keep", "one"], ["count"], keepdims=0),
            helper.make_node("Div", ["sum", "count"], ["logits"]),
        ],
        "classifier",
        [helper.make_tensor_value_info(n, TensorProto.INT32, sizes) for n in ("ids", "mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [
            numpy_helper.from_array(classifier.table.numpy(), "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, file)
    return file


def write_openvino(file, onnx):
    """Convert an ONNX file to OpenVINO's format."""
    import openvino

    openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
    return file
