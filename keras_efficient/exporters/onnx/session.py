"""Run an ONNX file in a separate process without Keras."""

import os

from keras_efficient.exporters._run_file import run_file


def run_onnx(file: str | os.PathLike, *samples: dict, threads: int = 1) -> list[dict]:
    """Run an ONNX file with ONNX Runtime.

    Args:
        file: path of an .onnx file.
        *samples: dicts of arrays by input name; their sizes may differ.
        threads: int, number of threads. Default: 1.

    Returns:
        A dict of arrays by output name for each sample.

    Raises:
        InputError: `onnxruntime` is not installed.
        VerificationError: the file does not load, or a sample fails.

    Examples:
        >>> import numpy as np
        >>> x = np.ones((2, 3), "float32")
        >>> features = ke.exporters.Features(model, x)
        >>> made = ke.exporters.export_onnx(model, ke.flavor.of(model), features, ".")
        >>> two, one = ke.exporters.run_onnx(made.file, {"inputs": x}, {"inputs": x[:1]})
        >>> two["outputs"].shape, one["outputs"].shape
        ((2, 2), (1, 2))

    Reference:
        ONNX Runtime, "Python API": https://onnxruntime.ai/docs/api/python/api_summary.html
    """
    return run_file(file, "onnx", *samples, threads=threads)
