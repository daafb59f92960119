"""Requests to TensorFlow Serving, as JSON for its REST API and as messages for gRPC."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.exporters._named_arrays import named_arrays


def rest_request(inputs: Mapping[str, Any] | Sequence[str], signature: str) -> dict[str, Any]:
    """Build the body of a REST request, in TensorFlow Serving's columnar format.

    POST it as JSON (`json.dumps`) to `http://HOST:8501/v1/models/NAME:predict`. The response is
    {"outputs": ...}: the value itself if the signature has one output, otherwise values by name.
    Strings that are not UTF-8 are sent as base64.

    Args:
        inputs: dict of arrays [batch, ...] by the signature's input names; or a list of str, for a
            signature whose input is called "text".
        signature: str, the signature's name, such as "tokens" or "text".

    Returns:
        {"signature_name": str, "inputs": {name: nested lists}}, which is plain JSON.

    Raises:
        InputError: the name or the inputs are missing, an array has no batch dimension, or one
            contains NaN or infinity.

    Examples:
        >>> ke.serving.rest_request(["a fine film"], "text")
        {'signature_name': 'text', 'inputs': {'text': ['a fine film']}}

    Reference:
        TensorFlow Serving, `RESTful API <https://www.tensorflow.org/tfx/serving/api_rest>`_.
    """
    arrays = _arrays(inputs, signature)
    return {
        "signature_name": signature,
        "inputs": {name: _plain(name, array) for name, array in arrays.items()},
    }


def grpc_request(
    name: str,
    signature: str,
    inputs: Mapping[str, Any] | Sequence[str],
    version: int | str | None = None,
) -> Any:
    """Build a `tensorflow_serving.apis.predict_pb2.PredictRequest`, for gRPC on port 8500.

    Args:
        name: str, the model's name on the server.
        signature: str, the signature's name, such as "tokens" or "text".
        inputs: dict of arrays [batch, ...] by the signature's input names; or a list of str, for a
            signature whose input is called "text".
        version: int, the version's number; or str, a version label of the server. Default: None,
            the version that the server chooses, which is the newest.

    Returns:
        The message, a `PredictRequest`.

    Raises:
        InputError: tensorflow-serving-api is not installed; a name or the inputs are missing; or
            the version is neither a number nor a label.

    Examples:
        >>> request = ke.serving.grpc_request("reviews", "text", ["a fine film"], version=3)
        >>> request.model_spec.version.value
        3

    Reference:
        TensorFlow Serving, `prediction_service.proto <https://github.com/tensorflow/serving/blob/
        master/tensorflow_serving/apis/prediction_service.proto>`_.
    """
    predict_pb2 = _messages()
    import tensorflow as tf

    if not isinstance(name, str) or not name:
        raise InputError(
            f"`name` must be the model's name on the server. Received: {name!r}. Give the folder's "
            "name, or the one given to `serve` by --name."
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


def _messages() -> Any:
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
            "JSON has no NaN and no infinities. Received: some of them in input "
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
