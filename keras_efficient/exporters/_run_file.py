"""Run a model's file in a separate process without Keras."""

import os

import numpy as np

from keras_efficient._errors import VerificationError
from keras_efficient.runtime._model_process import ModelProcess, ModelProcessError

_NAMES = {"litert": "A LiteRT", "onnx": "An ONNX"}


def run_file(file: str | os.PathLike, kind: str, *samples: dict, threads: int = 1) -> list[dict]:
    """Run a file on each of several samples.

    Args:
        file: path of the file.
        kind: "litert" or "onnx".
        *samples: dicts of arrays by input name; their sizes may differ.
        threads: int, number of threads. Default: 1.

    Returns:
        A dict of arrays by output name for each sample.

    Raises:
        InputError: the runtime is not installed.
        VerificationError: the file does not load, or a sample fails.
    """
    outputs = []
    try:
        with ModelProcess(file, kind, threads) as child:
            inputs, answer = child.folder / "inputs.npz", child.folder / "outputs.npz"
            for sample in samples:
                np.savez(inputs, **sample)
                child.ask(run=str(inputs), to=str(answer))
                with np.load(answer) as written:
                    outputs.append(dict(written))
    except ModelProcessError as error:
        tail = "\n".join([str(error), *error.lines])
        runtime = {"litert": "LiteRT", "onnx": "ONNX Runtime"}[kind]
        raise VerificationError(
            f"{_NAMES[kind]} file must run in a process that has {runtime} but no Keras. It did "
            f"not:\n{tail}"
        ) from error
    return outputs
