"""Requests to TensorFlow Serving, as JSON and as protocol buffers."""

import base64
import json
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.serving._requests import grpc_request, rest_request

TOKENS = {
    "token_ids": np.array([[1, 2, 3], [4, 5, 0]], "int32"),
    "padding_mask": np.array([[True, True, True], [True, True, False]]),
    "scores": np.array([0.1, -2.5e-7], "float32"),
}
TEXTS = ["a fine film", 'größer 🎬\n"quoted"', "", "zero\0"]


@pytest.fixture
def messages():
    return pytest.importorskip("tensorflow_serving.apis.predict_pb2")


def test_rest_of_arrays_round_trips():
    body = json.loads(json.dumps(rest_request(TOKENS, "tokens"), allow_nan=False))
    assert set(body) == {"signature_name", "inputs"}
    assert body["signature_name"] == "tokens"
    for name, array in TOKENS.items():
        np.testing.assert_array_equal(np.array(body["inputs"][name], array.dtype), array)
    assert body["inputs"]["padding_mask"][1] == [True, True, False]


def test_rest_of_texts_round_trips():
    body = json.loads(json.dumps(rest_request(TEXTS, "text")))
    assert body == {"signature_name": "text", "inputs": {"text": TEXTS}}
    assert rest_request({"text": np.array(TEXTS, dtype=object)}, "text") == body
    assert rest_request({"text": tf.constant(TEXTS)}, "text") == body


def test_rest_encodes_bytes_that_are_not_utf8_as_base64():
    body = rest_request({"x": [b"plain", b"\xff\x00"]}, "s")
    assert body["inputs"]["x"][0] == "plain"
    assert base64.b64decode(body["inputs"]["x"][1]["b64"]) == b"\xff\x00"


def test_rest_has_no_nan():
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match=r"JSON has no NaN.*input 'x'"):
            rest_request({"x": [1.0, value]}, "s")


def test_grpc_of_arrays_parses_back(messages):
    request = grpc_request("reviews", "tokens", TOKENS)
    request = messages.PredictRequest.FromString(request.SerializeToString())
    assert request.model_spec.name == "reviews"
    assert request.model_spec.signature_name == "tokens"
    assert request.model_spec.WhichOneof("version_choice") is None
    assert set(request.inputs) == set(TOKENS)
    for name, array in TOKENS.items():
        sent = tf.make_ndarray(request.inputs[name])
        assert sent.dtype == array.dtype
        np.testing.assert_array_equal(sent, array)


def test_grpc_of_texts_parses_back(messages):
    request = grpc_request("reviews", "text", TEXTS)
    request = messages.PredictRequest.FromString(request.SerializeToString())
    tensor = request.inputs["text"]
    assert tensor.dtype == tf.string.as_datatype_enum
    assert [value.decode() for value in tf.make_ndarray(tensor)] == TEXTS


def test_grpc_with_a_version_or_a_label(messages):
    spec = grpc_request("m", "text", TEXTS, version=3).model_spec
    assert (spec.WhichOneof("version_choice"), spec.version.value) == ("version", 3)
    spec = grpc_request("m", "text", TEXTS, version="stable").model_spec
    assert (spec.WhichOneof("version_choice"), spec.version_label) == ("version_label", "stable")


def test_grpc_with_a_bad_version(messages):
    for version in (-1, True, 1.0, ""):
        with pytest.raises(InputError, match="`version` must be a version's number"):
            grpc_request("m", "text", TEXTS, version=version)


def test_grpc_needs_a_name(messages):
    for name in ("", None):
        with pytest.raises(InputError, match="`name` must be the model's name"):
            grpc_request(name, "text", TEXTS)


def test_grpc_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(InputError, match=r"pip install keras_efficient\[serving\]"):
        grpc_request("m", "text", TEXTS)


BAD = {
    "one string": ("a fine film", "dict of arrays by name, or a list"),
    "an array": (np.ones((2, 2)), "dict of arrays by name, or a list"),
    "no texts": ([], "dict of arrays by name, or a list"),
    "numbers": ([1, 2], "dict of arrays by name, or a list"),
    "nothing": ({}, "must have an input"),
    "a scalar": ({"x": 1}, "the batch first"),
    "a string": ({"x": "a"}, "the batch first"),
    "an empty batch": ({"x": []}, "the batch first"),
    "objects": ({"x": [object()]}, "the batch first"),
    "strings and none": ({"x": ["a", None]}, "the batch first"),
    "ragged": ({"x": [[1], [2, 3]]}, "rows of several lengths"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_inputs(kind):
    inputs, message = BAD[kind]
    with pytest.raises(InputError, match=message):
        rest_request(inputs, "s")


def test_no_signature():
    for signature in (None, ""):
        with pytest.raises(InputError, match="`signature` must be a signature's name"):
            rest_request(TEXTS, signature)
