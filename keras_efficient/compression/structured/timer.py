"""Time models in this process, as TensorFlow graphs, in turns."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model


def times_in_process(models: list[Model], features: Any, runs: int = 7) -> list[float]:
    """Measure models on a batch as TensorFlow graphs, in turns.

    Args:
        models: the models.
        features: a batch as the models accept it.
        runs: how often each is run after a warm-up. Default: 7.

    Returns:
        The least milliseconds of each.
    """
    calls = [_graph(model) for model in models]
    for call in calls:
        call(features)
    best = [np.inf] * len(models)
    for _ in range(runs):
        for number, call in enumerate(calls):
            begin = time.perf_counter()
            tf.nest.map_structure(lambda t: t.numpy(), _tensors(call(features)))
            best[number] = min(best[number], (time.perf_counter() - begin) * 1e3)
    return best


def _graph(model) -> Callable:
    flavor = flavors.of(model)
    return tf.function(lambda x: flavor.call(model, x, training=False), autograph=False)


def _tensors(outputs):
    return [t for t in tf.nest.flatten(getattr(outputs, "logits", outputs)) if tf.is_tensor(t)]
