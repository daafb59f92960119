"""The projection of hidden states to another width, which trains in the student's own step."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from distillation import test_blocks
from distillation.test_blocks import BERTS, CHANGES
from fit_helpers import assert_same, batches, compiled, mirrored, moved
from plain_block_models import LENGTH, one_block
from zoo import CLASSES, VOCABULARY, Specimen, fixed, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.distillation import HiddenStates, hidden_state_distance
from keras_efficient.distillation._block_recorder import BlockRecorder
from keras_efficient.distillation._hidden_states import METRICS
from keras_efficient.distillation._projection import Projection
from keras_efficient.distillation._teacher import features_for
from keras_efficient.training import _train_step_hook as train_step_hook

PLAIN = [
    Specimen(f"{library}-plain", library, lambda library=library: one_block(library), None)
    for library in ("keras", "tf_keras")
]
#: A model of each library, and under `make test-all` the BERTs of three.
MODELS = [*PLAIN, *(pytest.param(bert, marks=pytest.mark.full) for bert in BERTS)]


def ragged(specimen, n=6, noise=0):
    """Features whose texts end in padding, of other ids for other `noise`, and labels."""
    if specimen not in PLAIN:
        return test_blocks.ragged(specimen, n, noise)[:2]
    rng = np.random.default_rng(3)
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (n, 1))
    ids, y = rng.integers(1, VOCABULARY, mask.shape), rng.integers(0, CLASSES, n)
    other = np.random.default_rng(noise).integers(1, VOCABULARY, mask.shape)
    x = {"token_ids": np.where(mask, ids, other), "padding_mask": mask}
    return {name: value.astype("int32") for name, value in x.items()}, y.astype("int32")


def teacher_of(specimen):
    """A model that is wider than the student."""
    if specimen in PLAIN:
        model = one_block(specimen.library, 12)
    else:
        import keras_hub

        sizes = (VOCABULARY, 2, 4, 16, 32)
        backbone = keras_hub.models.BertBackbone(*sizes, max_sequence_length=16)
        model = fixed(keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES))
    model.set_weights([1.5 * w for w in model.get_weights()])
    return model


def student_of(specimen):
    return specimen.make() if specimen in PLAIN else test_blocks.of_depth(specimen, 1)


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
        model = student_of(specimen)
        optimizer = optimizer or keras_of(specimen.library).optimizers.SGD(0.1)
        compiled(specimen.library, model, optimizer, **{"jit_compile": False, **kwargs})
    if change is not None:
        change(model)
    return model


def trained(specimen, x, y, *, k=1, epochs=2, hidden=None, **kwargs):
    model = student(specimen, **kwargs)
    ke.distill(model, teacher_of(specimen), alpha=0.7, hidden=hidden or HiddenStates(2.0))
    ke.accumulate(model, k)
    model.fit(batches(x, y, batch_size=6), verbose=0, shuffle=False, epochs=epochs)
    return model


def test_an_update_is_adams():
    rng = np.random.default_rng(0)
    projection = Projection(student(PLAIN[0]), 3, 5, 0.01)
    w, m, v = projection.matrix.numpy().astype("float64"), 0.0, 0.0
    assert abs(np.linalg.norm(w) - np.sqrt(5)) < 0.7
    for t in range(1, 5):
        gradient = rng.normal(size=(3, 5))
        projection.update(tf.constant(gradient, tf.float32))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        np.testing.assert_allclose(projection.matrix, w, atol=1e-6)


@pytest.mark.parametrize(
    "specimen, metric",
    [
        (BERTS[1], "mse"),
        *(pytest.param(*case, marks=pytest.mark.full) for case in zip(PLAIN, METRICS, strict=True)),
    ],
)
def test_its_gradient_is_that_of_the_loss(specimen, metric):
    teacher = teacher_of(specimen)
    x, y = ragged(specimen)
    model = student(specimen)
    ke.distill(
        model, teacher, alpha=0.0, divergence=None, hidden=HiddenStates(3.0, metric), layers="last"
    )
    projection, records = projection_of(model), []
    for each in (model, teacher):
        recorder = BlockRecorder(each, "student")
        with recorder.recording() as found:
            flavors.of(each).call(each, features_for(each, x), training=False)
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
    if specimen in PLAIN:  # Hugging Face's logs its own loss alone.
        np.testing.assert_allclose(history["loss"], [float(loss)], rtol=1e-5)
    np.testing.assert_allclose(10 * projection.state["projection_m"], expected, atol=1e-6)
    assert projection.state["projection_updates"].numpy() == 1


@pytest.mark.parametrize("specimen", [pytest.param(PLAIN[0], marks=pytest.mark.full), *MODELS[1:]])
def test_microbatches_on_replicas_are_one_batch_and_padding_has_no_effect(specimen):
    x, y = ragged(specimen)
    noisy, _ = ragged(specimen, noise=9)
    one, split = trained(specimen, x, y), trained(specimen, noisy, y, replicas=2, k=3)
    values = values_of(one)
    assert_same(one, split, 5e-6)
    for name, value in values_of(split).items():
        tolerance = 1e-4 if name == "projection" else 2e-6
        np.testing.assert_allclose(value, values[name], atol=tolerance, err_msg=name)
    assert np.abs(values["projection_m"]).max() > 1e-3
    assert values["projection_updates"] == 2


@pytest.mark.full
@pytest.mark.parametrize("specimen, change", covering(BERTS, CHANGES))
def test_it_is_the_same_with_other_parts_of_the_step(specimen, change):
    x, y = ragged(specimen)
    function, kwargs, tolerance = CHANGES[change]
    plain = trained(specimen, x, y)
    changed = trained(specimen, x, y, change=function, **kwargs)
    assert_same(plain, changed, tolerance)
    m = [values_of(model)["projection_m"] for model in (plain, changed)]
    np.testing.assert_allclose(*m, atol=tolerance)


@sampled()
@pytest.mark.parametrize("specimen", MODELS)
def test_a_skipped_update_is_none(specimen):
    """A gradient that overflows under the loss scale changes neither matrix nor counter."""
    keras = keras_of(specimen.library)
    module = keras.optimizers if specimen.library == "keras" else keras.mixed_precision
    optimizer = module.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**126)
    x, y = ragged(specimen)
    model = student(specimen, optimizer)
    before = model.get_weights()
    ke.distill(model, teacher_of(specimen), alpha=0.0, divergence=None, hidden=HiddenStates(1e9))
    first = values_of(model)
    model.fit(batches(x, y, batch_size=6), verbose=0, shuffle=False)
    assert moved(before, model) == 0
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)


@sampled()
@pytest.mark.parametrize("specimen", MODELS)
def test_a_student_and_its_optimizer_are_as_without_it(specimen, tmp_path):
    """After a `fit` without a teacher, too: its optimizer keeps what it has."""
    x, y = ragged(specimen)
    data = batches(x, y, batch_size=6)
    model = student(specimen, keras_of(specimen.library).optimizers.Adam(0.01))
    model.fit(data, verbose=0)
    model.save_weights(tmp_path / "before.weights.h5")
    optimizer = flavors.of(model).optimizer(model)
    owned = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    owned, weights = list(map(id, owned)), list(map(id, model.weights))
    ke.distill(model, teacher_of(specimen), hidden=1.0)
    model.fit(data, verbose=0)
    again = optimizer.variables() if callable(optimizer.variables) else optimizer.variables
    assert list(map(id, again)) == owned and list(map(id, model.weights)) == weights
    assert int(optimizer.iterations.numpy()) == 2
    model.save_weights(tmp_path / "after.weights.h5")
    sizes = [(tmp_path / f"{name}.weights.h5").stat().st_size for name in ("before", "after")]
    assert sizes[0] == sizes[1]
    ke.distill(model, None)
    assert "train_step" not in vars(model)


@pytest.mark.full
def test_hidden_states_come_nearer():
    specimen = PLAIN[0]
    x, y = ragged(specimen)
    model = student(specimen, keras_of("keras").optimizers.Adam(0.01))
    hidden = HiddenStates(learning_rate=0.01)
    ke.distill(model, teacher_of(specimen), alpha=0.0, divergence=None, hidden=hidden)
    losses = model.fit(batches(x, y, batch_size=6), epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]


def test_equal_widths_need_none():
    specimen = PLAIN[0]
    for projection, made in ((None, False), (True, True), (False, False)):
        model = student(specimen)
        ke.distill(model, student_of(specimen), hidden=HiddenStates(projection=projection))
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
