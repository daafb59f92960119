"""What an export needs is checked before the first training step."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from zoo import ZOO

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.exporters import _arguments

BOTH = [ZOO[3], ZOO[4]]


@pytest.fixture
def no_int8(monkeypatch):
    def saturates():
        raise InputError("quantize='int8' needs TensorFlow for x86.")

    monkeypatch.setattr(_arguments, "saturates", saturates)


@pytest.mark.parametrize("specimen", BOTH, ids=lambda specimen: specimen.name)
def test_int8_is_refused_before_training(specimen, no_int8, tmp_path):
    """On such machines it was refused after the training."""
    model, (x, y) = specimen.make(), specimen.batch(4)
    before = [w.copy() for w in model.get_weights()]
    check = ke.exporters.check_export
    with pytest.raises(InputError, match="needs TensorFlow for x86"):
        check(model, tmp_path / "m", sample=x, quantize="int8")
    # Before training, weights that are to be quantized later are as good as any.
    ke.quantize_aware(model, begin_step=100)
    version = check(model, tmp_path / "m", sample=(x, y), quantize="int8-weights", evaluate=(x, y))
    assert version == tmp_path / "m" / "1" and not any(tmp_path.iterdir())
    after = ke.merge(model) and model.get_weights()
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(InputError, match="never overwrites"):
        check(model, tmp_path / "m" / "1", sample=x)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_model_that_is_no_graph_is_refused_before_training(library, tmp_path):
    keras = ke.flavor.get(library).keras

    class Eager(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x) * (1.0 + float(x.numpy().sum()))

    class Table(Eager):
        def __init__(self):
            super().__init__()
            keys = tf.lookup.KeyValueTensorInitializer([1], [2])
            self.table = tf.lookup.StaticHashTable(keys, 0)

        def call(self, x):
            return self.dense(x + tf.cast(self.table.lookup(tf.cast(x, tf.int32)), tf.float32))

    x = np.ones((2, 3), "float32")
    for cls, message in ((Eager, "must run as a TensorFlow graph"), (Table, "look-up table")):
        model = cls()
        model.dense(x)
        model.built = True
        with pytest.raises(InputError, match=message):
            ke.exporters.check_export(model, tmp_path / "m", sample=x)
    assert not any(tmp_path.iterdir())


def test_labels_are_given_once_and_are_strings(tmp_path):
    """A message of `predict` recommended `labels=`, which did not exist."""
    model, (x, _) = ZOO[3].make(), ZOO[3].batch(2)
    for labels, facts, message in (
        ("positive", None, "`labels` must be strings"),
        ([1, 2], None, "`labels` must be strings"),
        (["a", "b"], {"labels": ["b", "a"]}, "must be given once"),
    ):
        with pytest.raises(InputError, match=message):
            ke.export(model, tmp_path / "m", sample=x, labels=labels, facts=facts)
    arguments = _arguments._with_labels({"labels": ["a", "b"]}, ("a", "b"))
    assert arguments == {"labels": ["a", "b"]}
    assert _arguments._with_labels({"seed": 1}, ("a", "b")) == {"seed": 1, "labels": ["a", "b"]}
