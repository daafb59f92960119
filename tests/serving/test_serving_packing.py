"""Rounded weights written as the integers they stand for."""

import gzip

import numpy as np
import pytest
import tensorflow as tf
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.errors import InputError
from keras_efficient.serving.packing import packed

models = pytest.mark.parametrize("specimen", ZOO, ids=str)
functional = pytest.mark.parametrize("specimen", [ZOO[0], ZOO[4]], ids=str)


def outputs(model, x):
    result = ke.flavor.of(model).call(model, x, training=False)
    return np.asarray(getattr(result, "logits", result))


@models
@pytest.mark.parametrize("bits, group", [(8, None), (4, 2)])
def test_layers_read_integers_and_compute_the_same(specimen, bits, group):
    model, x = specimen.make(), specimen.batch(4)[0]
    ke.quantize_aware(model, weight_bits=bits, group_size=group, activation_bits=None)
    seen, before = outputs(model, x), model.get_weights()
    with packed(model) as unread:
        read = tf.function(lambda: ke.flavor.of(model).call(model, x, training=False))
        graph = read.get_concrete_function().graph
        integers = [v for v in graph.variables if v.dtype == tf.int8]
        # (A pooler or the like may not be read at all.)
        assert len(unread) >= len(integers) > 0
        assert not {id(v) for v in graph.variables} & set(map(id, unread))
        assert max(np.abs(v.numpy()).max() for v in integers) == 2 ** (bits - 1) - 1
        np.testing.assert_array_equal(outputs(model, x), seen)
    np.testing.assert_array_equal(outputs(model, x), seen)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@functional
def test_an_export_of_integers(specimen, tmp_path):
    model, x = specimen.make(), specimen.batch(4)[0]
    ke.prune(model, 0.8)
    ke.quantize_aware(model, calibration=x)
    floats = ke.export(model, tmp_path / "floats", sample=x, latency=False)
    integers = ke.export(
        model, tmp_path / "integers", sample=x, quantize="int8-weights", latency=False
    )
    assert integers.max_abs_difference <= 1e-6
    # 744 numbers are 3 bytes less each, and there are 93 scales.
    assert floats.weight_bytes - integers.weight_bytes == 3 * 744 - 4 * 93
    # What is zero stays zero on the disk.
    data = "variables/variables.data-00000-of-00001"
    sizes = [
        len(gzip.compress((report.directory / data).read_bytes())) for report in (integers, floats)
    ]
    assert sizes[0] < sizes[1]


@functional
def test_what_cannot_be_written_as_integers(specimen, tmp_path):
    model, x = specimen.make(), specimen.batch(4)[0]
    with pytest.raises(InputError, match="writes the integers of weights that are rounded"):
        ke.export(model, tmp_path / "a", sample=x, quantize="int8-weights")
    with pytest.raises(InputError, match="`quantize` must be None or 'int8-weights'"):
        ke.export(model, tmp_path / "a", sample=x, quantize="int3")
    assert not (tmp_path / "a").exists()
