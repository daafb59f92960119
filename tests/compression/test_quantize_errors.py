"""Error messages of quantization; a refused call changes nothing."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import mirrored
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

X = np.ones((4, 6), "float32")


def model_of(library="keras", features=6):
    keras = keras_of(library)
    return keras.Sequential([keras.layers.Input((features,)), keras.layers.Dense(3)])


AWARE = [
    ({"weight_bits": 2}, ValueError, "`weight_bits` of ke.quantize_aware must be 8 or 4. Rec.* 2"),
    ({"weight_bits": True}, ValueError, "`weight_bits` of .* must be 8 or 4. Received: True"),
    ({"activation_bits": 4}, ValueError, "`activation_bits` of .* must be 8 or None. Received: 4"),
    ({"group_size": 1}, ValueError, "`group_size` must be an int of at least 2. Received: 1"),
    ({"group_size": 2, "per_channel": False}, ValueError, "Groups are parts of a channel"),
    ({"group_size": 4}, ValueError, "whole groups of 4 inputs. Received: .*kernel' with 6 inputs"),
    ({"begin_step": -1}, ValueError, "`begin_step` must be an int of at least 0.*Received: -1"),
    ({"begin_step": 1.5}, ValueError, "`begin_step` must be an int .*Received: 1.5"),
    ({"freeze_step": 0}, ValueError, "`freeze_step` must be None or an int of at least 1.*: 0"),
    (
        {"freeze_step": 3, "activation_bits": None},
        ValueError,
        "Received: `freeze_step` with activation_bits=None",
    ),
    (
        {"calibration": X, "activation_bits": None},
        ValueError,
        "Received: `calibration` with activation_bits=None",
    ),
    ({"calibration": 3}, TypeError, "needs a batch .*Received: 3. Give some examples"),
    ({"calibration": []}, ValueError, "ke.quantize_aware needs a batch.*no batch at all"),
    (
        {"calibration": tf.data.Dataset.from_tensors(X).repeat()},
        ValueError,
        "an endless dataset. Give `dataset.take",
    ),
    ({"layers": "nowhere"}, ValueError, "ke.quantize_aware needs at least one weight"),
]

CALIBRATE = [
    ({"weight_bits": 3}, ValueError, "`weight_bits` of ke.calibrate must be 8 or 4"),
    ({"percentile": 100}, ValueError, r"`percentile` must be in \(50, 100\). Received: 100"),
    ({"migration": 2}, ValueError, r"`migration` must be in \[0, 1\]. Received: 2"),
    ({"data": None}, ValueError, "measures the inputs of layers. Received: no `data`"),
    ({"data": "text"}, TypeError, "needs a batch .*Received: 'text'"),
    (
        {"method": "smoothquant", "activation_bits": None},
        ValueError,
        "method='smoothquant' is for ranges of activations",
    ),
    ({"method": "best"}, ValueError, "`method` must be one of 'minmax'.*Received: 'best'"),
    ({"method": 8}, ValueError, "`method` must be one of 'minmax'.*Received: 8"),
    ({"method": "gptq"}, ValueError, r"Pass keras.quantizers.GPTQConfig\(...\), which brings"),
    ({"method": "awq"}, ValueError, r"Pass keras.quantizers.AWQConfig\(...\), which brings"),
    (
        {"method": "int8", "weight_bits": 4},
        ValueError,
        "method='int8' is Keras' own and takes no other",
    ),
    ({"method": "int8", "layers": lambda _: True}, ValueError, "by a regular expression of their"),
    ({"method": "int8", "layers": "nowhere"}, ValueError, "found no layer that Keras can quant"),
]


@pytest.mark.parametrize(("kwargs", "kind", "message"), AWARE)
def test_quantize_aware(kwargs, kind, message):
    model = model_of()
    with pytest.raises(kind, match=message):
        ke.quantize_aware(model, **kwargs)
    assert not parametrized_layers(model)


@pytest.mark.parametrize(("kwargs", "kind", "message"), CALIBRATE)
def test_calibrate(kwargs, kind, message):
    model = model_of()
    with pytest.raises(kind, match=message):
        ke.calibrate(model, **{"data": X, **kwargs})
    assert not parametrized_layers(model)


@pytest.mark.parametrize(
    "caller", [ke.quantize_aware, lambda model, **k: ke.calibrate(model, X, **k)]
)
def test_both(caller):
    with pytest.raises(ValueError, match=r"an even number of inputs, since two make a byte.*5 inp"):
        caller(model_of(features=5), weight_bits=4)
    with pytest.raises(
        ValueError, match=r"an even number of inputs, since two make a byte.*15 inp"
    ):
        caller(model_of(features=15), weight_bits=4, group_size=3)
    model = model_of()
    caller(model)
    with pytest.raises(ValueError, match=r"one transform of each kind. Received: 'quantize'"):
        caller(model)
    keras = keras_of("keras")
    with pytest.raises(ValueError, match="needs a built model"):
        caller(keras.Sequential([keras.layers.Dense(3)]))
    outside = model_of()
    with (
        mirrored().scope(),
        pytest.raises(ValueError, match="under the strategy that the model was made under"),
    ):
        caller(outside)


def test_keras_own_methods_are_for_plain_keras_3_models():
    with pytest.raises(
        ValueError, match=r"`model.quantize` of Keras 3. Received: a tf_keras model"
    ):
        ke.calibrate(model_of("tf_keras"), method="int8")
    model = model_of()
    ke.prune(model, 0.5, layers="dense")
    with pytest.raises(ValueError, match=r"replaces the variables of layers. .*Use ke.merge first"):
        ke.calibrate(model, method="int8")
    import keras

    config = keras.quantizers.Int8QuantizationConfig(None, None)
    with pytest.raises(ValueError, match="Int8QuantizationConfig is Keras' own"):
        ke.calibrate(model_of(), X, method=config)


@sampled()
@pytest.mark.parametrize("specimen", [ZOO[0], ZOO[4]], ids=repr)
def test_data_that_does_not_fit_leaves_the_model_as_it_was(specimen):
    x, _ = specimen.batch(4)
    for caller in (
        lambda model, data: ke.quantize_aware(model, calibration=data),
        lambda model, data: ke.calibrate(model, data, method="smoothquant"),
    ):
        model = specimen.make()
        before, weights = np.asarray(model(x)), len(model.weights)
        with pytest.raises((ValueError, TypeError, tf.errors.OpError)):
            caller(model, {"nothing": np.array(["a"])})
        assert not parametrized_layers(model)
        assert len(model.weights) == weights
        np.testing.assert_array_equal(np.asarray(model(x)), before)
