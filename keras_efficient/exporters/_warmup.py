"""Write the warm-up requests that TensorFlow Serving runs when it loads a version."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.exporters._named_arrays import named_arrays

#: Path below the version where TensorFlow Serving looks for the file.
_PATH = "assets.extra/tf_serving_warmup_requests"


def write_warmup(folder: str | os.PathLike, signature_name: str, arrays: Mapping[str, Any]) -> Path:
    """Write warm-up requests into a version, which TensorFlow Serving runs after loading it.

    Thus the first client does not wait for the initialisation that TensorFlow does in the first
    call. There is one request of batch size 1 and, if the sample is larger, one of the entire
    sample. The file is a TFRecord of `tensorflow.serving.PredictionLog`; a call for another
    signature appends to it.

    Args:
        folder: path of the version.
        signature_name: str, the signature that the requests are for, such as "tokens".
        arrays: dict of arrays by the signature's input names, at least one example each, the
            batch first; lists of strings for text.

    Returns:
        The path of the file.

    Raises:
        InputError: there is no name, there are no arrays, or their numbers of examples differ.

    Examples:
        >>> import tempfile
        >>> path = ke.exporters.write_warmup(tempfile.mkdtemp(), "text", {"text": ["good", "bad"]})
        >>> path.name
        'tf_serving_warmup_requests'

    Reference:
        TensorFlow Serving, "SavedModel Warmup":
        https://www.tensorflow.org/tfx/serving/saved_model_warmup
    """
    if not isinstance(signature_name, str) or not signature_name:
        raise InputError(
            f"`signature_name` must be a signature's name. Received: {signature_name!r}. Give for "
            "example 'serving_default'."
        )
    arrays = named_arrays(arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    sizes = {shape[0] for shape in shapes.values()}
    if len(sizes) != 1:
        raise InputError(
            "The arrays of a warm-up request must hold the same number of examples. Received "
            f"(shape by input): {shapes}. Give the sample's features by name."
        )
    path = Path(folder) / _PATH
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as aside:
        records = Path(aside) / "records"
        with tf.io.TFRecordWriter(str(records)) as writer:
            for size in sorted({1, *sizes}):
                batch = {name: array[:size] for name, array in arrays.items()}
                writer.write(_prediction_log(signature_name, batch))
        # A TFRecord file is a plain sequence of records, so more can be appended.
        with open(path, "ab") as file:
            file.write(records.read_bytes())
    return path


def _prediction_log(signature_name, arrays):
    """Serialize a PredictionLog{predict_log{request}}.

    Writing the four fields by hand avoids a dependency on tensorflow-serving-api. A test reads them
    with that package.
    """
    model_spec = _field(3, signature_name.encode())
    request = _field(1, model_spec)
    for name, array in sorted(arrays.items()):
        tensor = tf.make_tensor_proto(array).SerializeToString(deterministic=True)
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number, data):
    """Serialize a length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
