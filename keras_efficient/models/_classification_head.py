"""Initial weights of a classification head, and those of a trained head of spans."""

from pathlib import Path

import numpy as np

from keras_efficient.models._check_weights import safetensors_files


def head_weights(width: int, num_labels: int, seed: int) -> list[np.ndarray]:
    """Return the initial kernel `[width, num_labels]` and bias `[num_labels]` of a head.

    Args:
        width: Size of the head's input.
        num_labels: Number of classes.
        seed: Seed of the kernel, which is normal with standard deviation 0.02.
    """
    kernel = np.random.default_rng(seed).normal(0.0, 0.02, (width, num_labels))
    return [kernel.astype("float32"), np.zeros(num_labels, "float32")]


def span_head(source: Path | str | None) -> list[np.ndarray] | None:
    """Return the kernel `[width, 2]` and bias `[2]` of a Hugging Face head of spans, or None.

    Args:
        source: folder of a checkpoint; other sources and formats than safetensors give None.
    """
    from safetensors import safe_open

    found = {}
    for file in safetensors_files(source) if isinstance(source, Path) else ():
        # TensorFlow, unlike NumPy, reads bfloat16.
        with safe_open(file, framework="tf") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name in ("qa_outputs.weight", "qa_outputs.bias"):
                    found[name.rpartition(".")[2]] = opened.get_tensor(name).numpy()
    if len(found) < 2 or found["bias"].shape != (2,):
        return None
    return [found["weight"].T.astype("float32"), found["bias"].astype("float32")]
