"""`reduce_range`: kernels of 8 bits that use 7, which products on any x86 CPU add exactly."""

import numpy as np
import pytest
from compression_helpers import libraries, outputs, quick
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers
from keras_efficient.parametrize._parametrized_layer import transforms

SPECIMENS = {"keras": ZOO[0], "tf_keras": ZOO[4]}


def largest_integers(model):
    """Return the largest integer of each weight, of kernels and of embeddings."""
    found = {"kernel": set(), "embedding": set()}
    for transform in transforms(model, FakeQuant):
        found[transform.weight.kind].add(int(np.abs(transform.integers()[0]).max()))
    return found


@libraries
def test_training_rounds_kernels_to_7_bits(library):
    specimen = SPECIMENS[library]
    model, (x, y) = specimen.make(), specimen.batch(16)
    quick(library, model)
    report = ke.quantize_aware(model, calibration=x, reduce_range=True)
    assert report.reduce_range and "8 bits, kernels in 7, inputs" in str(report)
    before = outputs(model, x)
    model.fit(x, y, batch_size=8, verbose=0)
    assert np.abs(outputs(model, x) - before).max() > 0
    assert largest_integers(model) == {"kernel": {63}, "embedding": {127}}
    for transform in transforms(model, FakeQuant):
        matrix = transform.weight.matrix(transform(transform.weight.value)).numpy()
        np.testing.assert_array_equal(matrix, from_integers(*transform.integers()[:2]))
    # The numbers are stored in 8 bits, as others are.
    kernels = [w for w in ke.summary(model).weights if "int8 of 7 bits" in w.transforms]
    assert kernels and {w.bits for w in kernels} == {8}


@pytest.mark.parametrize("method", ["minmax", "mse", "reconstruction", "smoothquant"])
def test_calibration_chooses_for_7_bits(method):
    errors = {}
    for reduce_range in (False, True):
        model, x = ZOO[0].make(), ZOO[0].batch(16)[0]
        exact = outputs(model, x)
        report = ke.calibrate(model, x, method=method, reduce_range=reduce_range)
        assert ("kernels in 7" in str(report)) == report.reduce_range == reduce_range
        assert max(largest_integers(model)["kernel"]) == (63 if reduce_range else 127)
        errors[reduce_range] = np.abs(outputs(model, x) - exact).max()
    assert 0 < errors[True] < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce_range": None}, "`reduce_range` of ke.* must be True or False. Received: None"),
        ({"reduce_range": True, "weight_bits": 4}, "reduce_range=True with weight_bits=4"),
    ],
)
def test_bad_arguments(options, message):
    model, x = ZOO[0].make(), ZOO[0].batch(4)[0]
    with pytest.raises(ValueError, match=message):
        ke.quantize_aware(model, **options)
    with pytest.raises(ValueError, match=message):
        ke.calibrate(model, x, **options)
    with pytest.raises(ValueError, match="Keras' own and takes no other settings"):
        ke.calibrate(model, method="int8", reduce_range=True)
    assert not transforms(model, FakeQuant)
