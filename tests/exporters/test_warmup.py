"""The warm-up requests, read with TensorFlow Serving's own messages."""

import numpy as np
import pytest
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.exporters._warmup import _varint, write_warmup

prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")

ARRAYS = {
    "token_ids": np.arange(12, dtype="int32").reshape(3, 4),
    "padding_mask": np.ones((3, 4), "int32"),
}


def logs(path):
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def expected(signature, arrays):
    """The same message, made with the package's own classes."""
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature
    for name, array in arrays.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return log


def first(arrays, size):
    return {name: array[:size] for name, array in arrays.items()}


def test_one_example_and_the_whole_sample(tmp_path):
    path = write_warmup(tmp_path, "tokens", ARRAYS)
    assert path == tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    assert logs(path) == [expected("tokens", first(ARRAYS, 1)), expected("tokens", ARRAYS)]


def test_a_sample_of_one_is_one_request(tmp_path):
    path = write_warmup(tmp_path, "tokens", first(ARRAYS, 1))
    assert logs(path) == [expected("tokens", first(ARRAYS, 1))]


def test_another_signature_adds_to_it(tmp_path):
    texts = np.array(["gut", "größer 🎬", "", "z" * 300], dtype=object)
    write_warmup(tmp_path, "tokens", ARRAYS)
    path = write_warmup(tmp_path, "text", {"text": list(texts)})
    assert logs(path)[2:] == [
        expected("text", {"text": texts[:1]}),
        expected("text", {"text": texts}),
    ]
    request = logs(path)[3].predict_log.request
    values = tf.make_ndarray(request.inputs["text"])
    assert [value.decode() for value in values] == list(texts)


def test_large_arrays_and_other_types(tmp_path):
    arrays = {"x": np.random.default_rng(0).normal(size=(2, 5000)).astype("float32")}
    arrays["flags"] = np.array([True, False])
    assert logs(write_warmup(tmp_path, "s", arrays))[1] == expected("s", arrays)


def test_the_same_bytes_again(tmp_path):
    reverse = dict(reversed(ARRAYS.items()))
    (tmp_path / "again").mkdir()
    one = write_warmup(tmp_path, "tokens", ARRAYS).read_bytes()
    assert write_warmup(tmp_path / "again", "tokens", reverse).read_bytes() == one


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2")]
)
def test_varint(value, encoded):
    assert _varint(value) == encoded


@pytest.mark.parametrize("name", [None, "", 3])
def test_no_signature(name, tmp_path):
    with pytest.raises(InputError, match="`signature_name` must be a signature's name"):
        write_warmup(tmp_path, name, ARRAYS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must have an input"),
        ({"a": np.ones((2, 1)), "b": np.ones((3, 1))}, "same number of examples"),
        ({"a": np.float32(1)}, "the batch first"),
        ({"a": np.ones((0, 3))}, "the batch first"),
        ({"a": [[1, 2], [3]]}, "rows of several lengths"),
    ],
)
def test_bad_arrays(arrays, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_warmup(tmp_path, "tokens", arrays)
    assert not (tmp_path / "assets.extra").exists()
