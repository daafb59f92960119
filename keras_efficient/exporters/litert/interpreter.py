"""Run a LiteRT file in a separate process without Keras."""

import os

import numpy as np

from keras_efficient._errors import VerificationError
from keras_efficient.runtime._model_process import ModelProcess, ModelProcessError


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
    outputs = []
    try:
        with ModelProcess(file, "litert", threads) as child:
            inputs, answer = child.folder / "inputs.npz", child.folder / "outputs.npz"
            for sample in samples:
                np.savez(inputs, **sample)
                child.ask(run=str(inputs), to=str(answer))
                with np.load(answer) as written:
                    outputs.append(dict(written))
    except ModelProcessError as error:
        tail = "\n".join([str(error), *error.lines])
        raise VerificationError(
            f"A LiteRT file must run in a process that has LiteRT but no Keras. It did not:\n{tail}"
        ) from error
    return outputs
