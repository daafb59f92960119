"""Weights of the head of masked language modelling: those of a checkpoint, or new ones."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

#: Names in Hugging Face checkpoints of kernel, bias, scale, offset and output bias, with older
#: names of the norm's weights.
_NAMES = (
    (
        ("cls.predictions.transform.dense.weight",),
        ("cls.predictions.transform.dense.bias",),
        ("cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.gamma"),
        ("cls.predictions.transform.LayerNorm.bias", "cls.predictions.transform.LayerNorm.beta"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ),
    (
        ("lm_head.dense.weight",),
        ("lm_head.dense.bias",),
        ("lm_head.layer_norm.weight",),
        ("lm_head.layer_norm.bias",),
        ("lm_head.bias", "lm_head.decoder.bias"),
    ),
    (
        ("vocab_transform.weight",),
        ("vocab_transform.bias",),
        ("vocab_layer_norm.weight",),
        ("vocab_layer_norm.bias",),
        ("vocab_projector.bias",),
    ),
)


def new_head(width: int, vocabulary: int, seed: int) -> list[np.ndarray]:
    """Return initial weights: kernel, bias, scale, offset and output bias.

    Args:
        width: Size of the table's rows.
        vocabulary: Number of tokens.
        seed: Seed of the kernel, which is normal with standard deviation 0.02.
    """
    kernel = np.random.default_rng(seed).normal(0.0, 0.02, (width, width)).astype("float32")
    zeros, ones = np.zeros(width, "float32"), np.ones(width, "float32")
    return [kernel, zeros, ones, zeros, np.zeros(vocabulary, "float32")]


def warn_new_head(source: Any) -> None:
    """Say that the head is not that of the checkpoint."""
    warnings.warn(
        "The head of masked language modelling starts from new weights, since "
        f"{'the model' if source is None else source} has none: the loss begins at that of a "
        "random guess. The encoder and the table of tokens are the pretrained ones.",
        stacklevel=2,
    )


def read_head(files: Iterable[Path]) -> list[np.ndarray] | None:
    """Return the weights of the head of PyTorch safetensors files, or None if they have none."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    wanted = {name for names in _NAMES for group in names for name in group}
    for file in files:
        # TensorFlow, unlike NumPy, reads bfloat16.
        with safe_open(file, framework="tf") as tensors:
            for name in wanted & set(tensors.keys()):
                found[name] = np.asarray(tensors.get_tensor(name)).astype("float32")
    for names in _NAMES:
        known: list[Any] = [next((found[n] for n in group if n in found), None) for group in names]
        if all(array is not None for array in known):
            kernel, *others = known
            # PyTorch's kernels are [outputs, inputs].
            return [kernel.T, *others]
    return None
