"""Requests to TensorFlow Serving, as JSON for its REST interface and as messages for gRPC."""

import base64

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.exporters._named_arrays import named_arrays


def rest_request(inputs, signature) -> dict:
    """The body of a request to `http://HOST:8501/v1/models/NAME:predict`, columns by input.

    `json.dumps` makes it the text to POST. The answer is {"outputs": ...}: the value itself where
    the signature has one output, else values by name. Of what is not UTF-8 the base64 is sent.

    Args:
        inputs: dict of arrays by the signature's input names, the batch first; or a list of
            strings, for a signature whose input is called "text".
        signature: str, the signature's name, such as "tokens" or "text".

    Returns:
        {"signature_name": str, "inputs": {name: nested lists}}, all of it plain JSON.

    Raises:
        InputError: no name, no inputs, an array without a batch, or NaN and infinities in one.

    Example:
        >>> from keras_efficient.serving._requests import rest_request
        >>> rest_request(["a fine film"], "text")
        {'signature_name': 'text', 'inputs': {'text': ['a fine film']}}

    Reference:
        TensorFlow Serving, "RESTful API": https://www.tensorflow.org/tfx/serving/api_rest
    """
    arrays = _arrays(inputs, signature)
    return {
        "signature_name": signature,
        "inputs": {name: _plain(name, array) for name, array in arrays.items()},
    }


def grpc_request(name, signature, inputs, version=None):
    """A `tensorflow_serving.apis.predict_pb2.PredictRequest`, for gRPC at port 8500.

    Args:
        name: str, the model's name on the server.
        signature: str, the signature's name, such as "tokens" or "text".
        inputs: dict of arrays by the signature's input names, the batch first; or a list of
            strings, for a signature whose input is called "text".
        version: int, the version; str, a label that the server gives one; or None (default), the
            server's choice, which is the newest.

    Returns:
        The message.

    Raises:
        InputError: tensorflow-serving-api is not installed, or the inputs will not do.

    Example:
        >>> from keras_efficient.serving._requests import grpc_request
        >>> request = grpc_request("reviews", "text", ["a fine film"], version=3)
        >>> request.model_spec.version.value
        3

    Reference:
        TensorFlow Serving, prediction_service.proto.
    """
    predict_pb2 = _messages()
    import tensorflow as tf

    if not isinstance(name, str) or not name:
        raise InputError(
            f"`name` must be the model's name on the server. Received: {name!r}. Give the folder's "
            "name, or what `serve` was told by --name."
        )
    arrays = _arrays(inputs, signature)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if isinstance(version, str) and version:
        request.model_spec.version_label = version
    elif isinstance(version, int) and not isinstance(version, bool) and version >= 0:
        request.model_spec.version.value = version
    elif version is not None:
        raise InputError(
            "`version` must be a version's number, its label, or None for the newest. Received: "
            f"{version!r}. Give for example 3 or 'stable'."
        )
    for input_name, array in arrays.items():
        request.inputs[input_name].CopyFrom(tf.make_tensor_proto(array))
    return request


def _messages():
    try:
        from tensorflow_serving.apis import predict_pb2
    except ImportError as error:
        raise InputError(
            "Requests by gRPC need tensorflow-serving-api. Received: an environment without it "
            f"({error}). Run `pip install keras_efficient[serving]`, or use `rest_request`."
        ) from error
    return predict_pb2


def _arrays(inputs, signature):
    if not isinstance(signature, str) or not signature:
        raise InputError(
            f"`signature` must be a signature's name. Received: {signature!r}. Give for example "
            "'serving_default' or 'text'."
        )
    return named_arrays(inputs)


def _plain(name, array):
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            "JSON has no NaN and no infinities. Received: some in input "
            f"{name!r}. Replace them, or use `grpc_request`."
        )
    return _strings(array.tolist()) if array.dtype.kind == "O" else array.tolist()


def _strings(value):
    if isinstance(value, list):
        return [_strings(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode("ascii")}
    return value
