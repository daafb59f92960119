"""Puts `tests/` on the path, for `zoo`, `training` and `bert_folder`."""

import gc
import os
import random
import signal
import sys

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from covering import sample
from tensorflow.python.eager import context
from tensorflow.python.framework import ops

# A shell lets what it starts in the background ignore these, and children inherit that.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# Two devices for tests with replicas; it has to be said before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    sample(items)


def pytest_collection_finish():
    """Spare the garbage collector the libraries: it would go through them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _the_same_draws_for_each_file():
    _seed()


@pytest.fixture(autouse=True)
def _the_same_draws_for_each_test():
    _seed()


def _seed():
    """What a test initialises and shuffles must not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    tf.random.set_seed(0)
    for library in {"keras", "tf_keras"} & set(sys.modules):
        sys.modules[library].utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _leave_the_choice_of_keras_alone():
    """TF-MOT, which Model Garden imports, sets this for the process and for its children."""
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    yield
    if before is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = before


@pytest.fixture(autouse=True)
def _leave_the_precision_alone():
    """What the command line sets for its process would change what every later test computes in."""
    yield
    for library in {"keras", "tf_keras"} & set(sys.modules):
        sys.modules[library].mixed_precision.set_global_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _give_memory_back():
    """TensorFlow registers every traced custom gradient for good, and with it the whole graph."""
    yield
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]
    context.context().clear_kernel_cache()
    # (Models are cycles of objects, of which Python counts few.)
    gc.collect()
