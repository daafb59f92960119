"""The projection of hidden states to another width, which trains in the student's own step."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from distillation.test_blocks import BERTS, CHANGES, of_depth, ragged
from fit_helpers import assert_same, batches, compiled, mirrored, moved
from zoo import CLASSES, VOCABULARY, fixed, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.distillation import HiddenStates, hidden_state_distance
from keras_efficient.distillation._block_recorder import BlockRecorder
from keras_efficient.distillation._projection import Projection
from keras_efficient.training import _train_step_hook as train_step_hook

BOTH = [BERTS[0], BERTS[1]]


def wide_teacher():
    """A BERT of KerasHub, twice as wide as the students."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(VOCABULARY, 2, 4, 16, 32, max_sequence_length=16)
    model = fixed(keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES))
    model.set_weights([1.5 * w for w in model.get_weights()])
    return model


def projection_of(model):
    return train_step_hook.of(model).loss_terms["distillation"].projection


def values_of(model):
    parts = mirrored_parts(model)
    for name, values in parts.items():
        for value in values[1:]:
            np.testing.assert_array_equal(value, values[0], err_msg=name)
    return {name: values[0] for name, values in parts.items()}


def mirrored_parts(model):
    strategy = model.distribute_strategy
    return {
        name: [part.numpy() for part in strategy.experimental_local_results(variable)]
        for name, variable in projection_of(model).state.items()
    }


def student(specimen, optimizer=None, replicas=1, change=None, **kwargs):
    with mirrored(replicas).scope():
        model = of_depth(specimen, 1)
        optimizer = optimizer or keras_of(specimen.library).optimizers.SGD(0.1)
        compiled(specimen.library, model, optimizer, **{"jit_compile": False, **kwargs})
    if change is not None:
        change(model)
    return model


def trained(specimen, x, y, *, k=1, epochs=2, hidden=None, **kwargs):
    model = student(specimen, **kwargs)
    ke.distill(model, wide_teacher(), alpha=0.7, hidden=hidden or HiddenStates(2.0))
    ke.accumulate(model, k)
    model.fit(batches(x, y, batch_size=6), verbose=0, shuffle=False, epochs=epochs)
    return model


def test_an_update_is_adams():
    rng = np.random.default_rng(0)
    projection = Projection(student(BERTS[0]), 3, 5, 0.01)
    w, m, v = projection.matrix.numpy().astype("float64"), 0.0, 0.0
    assert abs(np.linalg.norm(w) - np.sqrt(5)) < 0.7
    for t in range(1, 5):
        gradient = rng.normal(size=(3, 5))
        projection.update(tf.constant(gradient, tf.float32))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        np.testing.assert_allclose(projection.matrix, w, atol=1e-6)


@pytest.mark.parametrize("metric", ["mse", "cosine"])
def test_its_gradient_is_that_of_the_loss(metric):
    specimen, teacher = BERTS[0], wide_teacher()
    x, y, _ = ragged(specimen)
    model = student(specimen)
    ke.distill(
        model, teacher, alpha=0.0, divergence=None, hidden=HiddenStates(3.0, metric), layers="last"
    )
    projection, records = projection_of(model), []
    for each in (model, teacher):
        recorder = BlockRecorder(each, "student")
        with recorder.recording() as found:
            flavors.of(each).call(each, x, training=False)
        records.append(found[-1])
    with tf.GradientTape() as tape:
        loss = 3.0 * hidden_state_distance(
            *(record.hidden for record in records),
            records[0].mask,
            metric=metric,
            projection=projection.matrix,
        )
        loss = tf.reduce_mean(loss)
    expected = tape.gradient(loss, projection.matrix)
    history = model.fit(batches(x, y, batch_size=6), verbose=0, shuffle=False).history
    np.testing.assert_allclose(history["loss"], [float(loss)], rtol=1e-5)
    np.testing.assert_allclose(10 * projection.state["projection_m"], expected, atol=1e-6)
    assert projection.state["projection_updates"].numpy() == 1


@sampled()
@pytest.mark.parametrize("specimen, replicas", covering(BERTS, (2, 1), strength=1))
def test_microbatches_are_one_batch_and_padding_has_no_effect(specimen, replicas):
    x, y, _ = ragged(specimen)
    noisy, _, _ = ragged(specimen, noise=9)
    one, split = trained(specimen, x, y), trained(specimen, x, y, replicas=replicas, k=3)
    padded = trained(specimen, noisy, y)
    values = values_of(one)
    for other in (split, padded):
        assert_same(one, other, 5e-6)
        for name, value in values_of(other).items():
            tolerance = 1e-4 if name == "projection" else 2e-6
            np.testing.assert_allclose(value, values[name], atol=tolerance, err_msg=name)
    assert np.abs(values["projection_m"]).max() > 1e-3
    assert values["projection_updates"] == 2


@sampled()
@pytest.mark.parametrize("specimen, change", covering(BERTS, CHANGES, strength=1))
def test_it_is_the_same_with_other_parts_of_the_step(specimen, change):
    x, y, _ = ragged(specimen)
    function, kwargs, tolerance = CHANGES[change]
    plain = trained(specimen, x, y)
    changed = trained(specimen, x, y, change=function, **kwargs)
    assert_same(plain, changed, tolerance)
    m = [values_of(model)["projection_m"] for model in (plain, changed)]
    np.testing.assert_allclose(*m, atol=tolerance)


@sampled()
@pytest.mark.parametrize("specimen", BOTH)
def test_a_skipped_update_is_none(specimen):
    """A gradient that overflows under the loss scale changes neither matrix nor counter."""
    keras = keras_of(specimen.library)
    module = keras.optimizers if specimen.library == "keras" else keras.mixed_precision
    optimizer = module.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**126)
    x, y, _ = ragged(specimen)
    model = student(specimen, optimizer)
    before = model.get_weights()
    ke.distill(model, wide_teacher(), alpha=0.0, divergence=None, hidden=HiddenStates(1e9))
    first = values_of(model)
    model.fit(batches(x, y, batch_size=6), verbose=0, shuffle=False)
    assert moved(before, model) == 0
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)


@sampled()
@pytest.mark.parametrize("specimen", BOTH)
def test_a_student_and_its_optimizer_are_as_without_it(specimen, tmp_path):
    """After a `fit` without a teacher, too: its optimizer keeps what it has."""
    x, y, _ = ragged(specimen)
    data = batches(x, y, batch_size=6)
    model = student(specimen, keras_of(specimen.library).optimizers.Adam(0.01))
    model.fit(data, verbose=0)
    model.save_weights(tmp_path / "before.weights.h5")
    optimizer = flavors.of(model).optimizer(model)
    owned = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    owned, weights = list(map(id, owned)), list(map(id, model.weights))
    ke.distill(model, wide_teacher(), hidden=1.0)
    model.fit(data, verbose=0)
    again = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    assert list(map(id, again)) == owned and list(map(id, model.weights)) == weights
    assert int(optimizer.iterations.numpy()) == 2
    model.save_weights(tmp_path / "after.weights.h5")
    sizes = [(tmp_path / f"{name}.weights.h5").stat().st_size for name in ("before", "after")]
    assert sizes[0] == sizes[1]
    ke.distill(model, None)
    assert "train_step" not in vars(model)
    model.fit(data, verbose=0)
    assert int(optimizer.iterations.numpy()) == 3


def test_hidden_states_come_nearer():
    specimen = BERTS[0]
    x, y, _ = ragged(specimen)
    model = student(specimen, keras_of("keras").optimizers.Adam(0.01))
    hidden = HiddenStates(learning_rate=0.01)
    ke.distill(model, wide_teacher(), alpha=0.0, divergence=None, hidden=hidden)
    losses = model.fit(batches(x, y, batch_size=6), epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]


def test_equal_widths_need_none():
    specimen = BERTS[0]
    for projection, made in ((None, False), (True, True), (False, False)):
        model = student(specimen)
        ke.distill(model, of_depth(specimen, 1, 1.5), hidden=HiddenStates(projection=projection))
        assert (projection_of(model) is not None) == made


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"projection": "yes"}, "`projection` must be True, False or None"),
        ({"learning_rate": 0}, "`learning_rate` must be a number > 0"),
    ],
)
def test_arguments_that_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HiddenStates(**kwargs)
