"""Signatures of samples, and names of outputs."""

from collections import OrderedDict

import numpy as np
import pytest
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.exporters._signature import Features, flat_outputs, trace

IDS = np.ones((4, 6), "int64")


class Plain:
    """A model that declares no inputs."""


def shapes(features):
    return {
        name: (spec.dtype.name, spec.shape.as_list()) for name, spec in features.specs().items()
    }


def test_names_and_dynamic_dimensions():
    floats, wide = np.ones((4, 3), "float64"), np.ones((4, 6, 2), "int32")
    assert shapes(Features(Plain(), IDS)) == {"inputs": ("int64", [None, None])}
    assert shapes(Features(Plain(), [IDS, floats])) == {
        "input_0": ("int64", [None, None]),
        "input_1": ("float32", [None, 3]),
    }
    assert shapes(Features(Plain(), {"a": wide, "b": np.ones(4, "bool")})) == {
        "a": ("int32", [None, None, 2]),
        "b": ("bool", [None]),
    }
    half = tf.ones((4, 2), tf.bfloat16)
    assert shapes(Features(Plain(), half)) == {"inputs": ("float32", [None, 2])}


def test_labels_and_weights_are_left_out():
    for sample in (IDS, (IDS,), (IDS, np.ones(4)), (IDS, np.ones(4), np.ones(4))):
        assert list(Features(Plain(), sample).arrays) == ["inputs"]
    pair = Features(Plain(), ((IDS, IDS), np.ones(4)))
    assert list(pair.arrays) == ["input_0", "input_1"]
    assert pair.restore({"input_1": 1, "input_0": 0}) == (0, 1)


def test_structure_is_restored():
    assert Features(Plain(), IDS).restore({"inputs": 1}) == 1
    assert Features(Plain(), [IDS, IDS]).restore({"input_1": 1, "input_0": 0}) == [0, 1]
    assert Features(Plain(), {"a": IDS}).restore({"a": 1}) == {"a": 1}


def test_labels_inside_a_hugging_face_sample():
    hugging = type("Model", (), {"__module__": "transformers.models.bert"})
    sample = {"input_ids": IDS, "labels": np.ones(4)}
    assert list(Features(hugging(), sample).arrays) == ["input_ids"]
    assert list(Features(Plain(), sample).arrays) == ["input_ids", "labels"]


def test_large_samples_are_cut():
    assert len(Features(Plain(), np.ones((100, 2))).arrays["inputs"]) == 32


def test_declared_length_is_kept():
    import keras

    a, b = keras.Input((6,), dtype="int32", name="a"), keras.Input((None,), name="b")
    model = keras.Model([a, b], keras.layers.Lambda(lambda x: x[0])([a, b]))
    by_position = Features(model, [IDS, IDS])
    assert shapes(by_position)["input_0"][1] == [None, 6]
    assert shapes(by_position)["input_1"][1] == [None, None]
    by_name = Features(model, {"b": IDS, "a": IDS})
    assert shapes(by_name)["a"][1] == [None, 6]
    assert shapes(by_name)["b"][1] == [None, None]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({}, "at least one feature"),
        ([], "at least one feature"),
        ({"a": IDS, "b": IDS[:2]}, r"same number of examples.*\{'a': 4, 'b': 2\}"),
        (IDS[:0], r"same number of examples, at least 1.*\{'inputs': 0\}"),
        ({"a b": IDS}, "name must be a letter.*'a b'"),
        ({1: IDS}, "name must be a letter.*1"),
        ({"a": {"b": IDS}}, "must be one dense array.*'a' of type dict"),
        (tf.ragged.constant([[1], [1, 2]]), "must be one dense array.*RaggedTensor"),
        (np.array(["a", "b"]), "must be numbers.*Tokenise text"),
        (np.float32(3), r"must be numbers.*shape \(\)"),
    ],
)
def test_bad_samples(sample, message):
    with pytest.raises(InputError, match=message):
        Features(Plain(), sample)


def test_output_names():
    one = tf.ones((2, 3), tf.float16)
    assert {k: v.dtype for k, v in flat_outputs(Plain(), one).items()} == {"outputs": tf.float32}
    classifier = Plain()
    classifier.num_classes = 3
    assert list(flat_outputs(classifier, one)) == ["logits"]
    assert list(flat_outputs(Plain(), [one, one])) == ["output_0", "output_1"]
    nested = {"pooled": one, "layers": [one, one], "none": None, "label": tf.ones(2, tf.int32)}
    flat = flat_outputs(classifier, nested)
    assert list(flat) == ["pooled", "layers_0", "layers_1", "label"]
    assert flat["label"].dtype == tf.int32


def test_loss_of_a_hugging_face_output_is_dropped():
    class ModelOutput(OrderedDict):
        pass

    one = tf.ones(2)
    assert list(flat_outputs(Plain(), ModelOutput(loss=one, logits=one))) == ["logits"]
    assert list(flat_outputs(Plain(), {"loss": one, "logits": one})) == ["loss", "logits"]


def test_output_names_must_differ():
    one = tf.ones(2)
    with pytest.raises(InputError, match="two called 'a_0'"):
        flat_outputs(Plain(), {"a": [one], "a_0": one})


def test_one_length_only_warns_and_keeps_it():
    weight = tf.ones((6, 2))

    def flattening(*, inputs):
        assert inputs.shape[1] is not None
        return {"outputs": tf.cast(inputs, tf.float32) @ weight}

    with pytest.warns(UserWarning, match=r"only runs at one length.*\{'inputs': 6\}"):
        function = trace(flattening, Features(Plain(), IDS), autograph=False)
    assert function.structured_input_signature[1]["inputs"].shape.as_list() == [None, 6]


def test_an_untraceable_function_is_refused_with_its_error():
    def broken(*, inputs):
        raise ZeroDivisionError("mine")

    for sample in (IDS, np.ones((2, 3))):
        with pytest.raises(InputError, match=r"as a TensorFlow graph.*ZeroDivisionError: mine"):
            trace(broken, Features(Plain(), sample), autograph=False)
