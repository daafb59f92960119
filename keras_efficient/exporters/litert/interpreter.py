"""Run a LiteRT file in a separate process without Keras."""

import os

from keras_efficient.exporters._run_file import run_file


def run_litert(file: str | os.PathLike, *samples: dict, threads: int = 1) -> list[dict]:
    """Run a LiteRT file with `ai-edge-litert`, resizing its inputs to each sample.

    Args:
        file: path of a .tflite file with a signature.
        *samples: dicts of arrays by input name; their sizes may differ.
        threads: int, number of threads. Default: 1.

    Returns:
        A dict of arrays by output name for each sample.

    Raises:
        InputError: `ai-edge-litert` is not installed.
        VerificationError: the file does not load, or a sample fails.

    Examples:
        >>> import numpy as np
        >>> x = np.ones((2, 3), "float32")
        >>> signature = ke.exporters.write_litert(
        ...     model, "model.tflite", ke.exporters.Features(model, x)
        ... )
        >>> two, one = ke.exporters.run_litert(
        ...     "model.tflite", {"inputs": x}, {"inputs": x[:1]}
        ... )
        >>> two["outputs"].shape, one["outputs"].shape
        ((2, 2), (1, 2))

    Reference:
        LiteRT, "Get started with LiteRT", section Signatures:
        https://ai.google.dev/edge/litert/models/signatures
    """
    return run_file(file, "litert", *samples, threads=threads)
