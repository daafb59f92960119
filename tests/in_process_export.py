"""Serve exports in this process instead of a separate one, which saves 4 s each."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

from keras_efficient.exporters import _export as export_module
from keras_efficient.serving._check_graph import check_graph


def serve_here(monkeypatch):
    """Make `ke.export` serve in this process; return the list of outputs of "tokens"."""
    answers = []

    def served(path, inputs, answering, batches):
        # `predict` and `bench` refuse a model with another op than those of our own exports.
        check_graph(path)
        signatures = tf.saved_model.load(str(path)).signatures
        found = {}
        if inputs is not None:
            found["tokens"] = _called(signatures["tokens"], inputs)
            answers.append(found["tokens"])
        for name, values in answering.items():
            found[name] = _called(signatures[name], values)
        found["batches"] = [_called(signatures["tokens"], batch) for batch in batches]
        return found

    def run(path, inputs, *, answering, batches=(), latency=True):
        # In a separate thread, which is outside of any strategy scope, as a process would be.
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(served, path, inputs, answering, batches).result()
        return found, {"latency_ms": None, "max_rss_bytes": 1}

    monkeypatch.setattr(export_module, "run_without_keras", run)
    return answers


def _called(function, inputs):
    outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture
def in_process(monkeypatch):
    return serve_here(monkeypatch)
