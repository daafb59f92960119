"""The requests that TensorFlow Serving runs through a model before it takes any."""

import tempfile
from pathlib import Path

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.exporters._named_arrays import named_arrays

#: Where TensorFlow Serving looks for it, below the version.
_PATH = "assets.extra/tf_serving_warmup_requests"


def write_warmup(folder, signature_name, arrays) -> Path:
    """Write requests into a version that TensorFlow Serving runs when it has loaded it.

    So the first client does not wait for what TensorFlow only does at the first call. There is one
    request of batch size 1 and, if the sample is larger, one of the whole sample. The file is a
    TFRecord of `tensorflow.serving.PredictionLog`; a call for another signature adds to it.

    Args:
        folder: path of the version.
        signature_name: str, the signature they are for, such as "tokens".
        arrays: dict of arrays by the signature's input names, at least one example each, the
            batch first; lists of strings for text.

    Returns:
        The path of the file.

    Raises:
        InputError: no name, no arrays, or unequal numbers of examples.

    Example:
        >>> import tempfile
        >>> from keras_efficient.exporters._warmup import write_warmup
        >>> path = write_warmup(tempfile.mkdtemp(), "text", {"text": ["good", "bad"]})
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
        # A TFRecord file is its records one after the other, so more can follow.
        with open(path, "ab") as file:
            file.write(records.read_bytes())
    return path


def _prediction_log(signature_name, arrays):
    """The bytes of a PredictionLog{predict_log{request}}.

    The messages are those of tensorflow-serving-api, which an export shall not need: four fields
    are quicker written by hand. A test reads them with that package.
    """
    model_spec = _field(3, signature_name.encode())
    request = _field(1, model_spec)
    for name, array in sorted(arrays.items()):
        tensor = tf.make_tensor_proto(array).SerializeToString(deterministic=True)
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))


def _field(number, data):
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
