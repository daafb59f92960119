"""Movement pruning: how scores move, how masks follow, and when weights become zero."""

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import BOTH, FUNCTIONAL, libraries, mostly, ready
from covering import contract, covering, sampled
from fit_helpers import assert_same, fit, mirrored
from test_prune import assert_exact
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.compression import Movement
from keras_efficient.compression._masks import Mask
from keras_efficient.parametrize._parametrized_layer import transforms

FORMS = {"top-v": (0.5, "movement"), "soft": (None, Movement(soft=True, scale=5.0, penalty=3.0))}
every_form = pytest.mark.parametrize("library, form", covering(BOTH, FORMS))


def one_layer(library, criterion, sparsity=0.5, end_step=9, rate=0.1):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    rng = np.random.default_rng(0)
    model.layers[-1].kernel.assign(rng.normal(size=(4, 3)).astype("float32"))
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=False)
    ke.prune(model, sparsity, criterion=criterion, end_step=end_step, frequency=1, layers="kernel")
    return model, transforms(model, Mask)[0]


def batch():
    rng = np.random.default_rng(1)
    return rng.normal(size=(6, 4)).astype("float32"), rng.normal(size=(6, 3)).astype("float32")


def gradient(value, x, y):
    """Of the mean squared error, by the kernel."""
    return 2 * x.T @ (x @ value - y) / y.size


@sampled()
@every_form
def test_scores_get_the_gradient_times_the_weight(library, form):
    sparsity, criterion = FORMS[form]
    model, mask = one_layer(library, criterion, sparsity)
    x, y = batch()
    weight, scores, kept = (v.numpy() for v in (mask.weight.value, mask.scores, mask.mask))
    for _ in range(3):
        model.fit(x, y, batch_size=6, verbose=0)
        upstream = gradient(weight * kept, x, y)
        of_scores = upstream * weight
        if form == "soft":
            share = 1 / (1 + np.exp(-criterion.scale * scores))
            # By the score, which is `scale` times its variable.
            of_scores = of_scores + criterion.penalty * share * (1 - share) / scores.size
        # A pruned weight has no gradient, but its score has one.
        weight, scores = weight - 0.1 * upstream * kept, scores - 0.1 * of_scores
        np.testing.assert_allclose(mask.weight.value.numpy(), weight, atol=1e-6)
        np.testing.assert_allclose(mask.scores.numpy(), scores, atol=1e-6)
        kept = mask.mask.numpy()
        if form == "soft":
            wanted = 1 / (1 + np.exp(-criterion.scale * scores)) > criterion.threshold
        else:
            wanted = scores >= np.sort(scores, axis=None)[scores.size - kept.sum()]
        np.testing.assert_array_equal(kept > 0, wanted)
    assert form == "soft" or 0 < kept.sum() < kept.size


@mostly("tf_keras")
def test_weights_become_zero_only_at_the_end_step_and_then_exactly(library):
    model, mask = one_layer(library, "movement", 0.5, end_step=4, rate=0.5)
    x, y = batch()
    masks = []
    for update in range(1, 7):
        model.fit(x, y, batch_size=6, verbose=0)
        zeros = np.count_nonzero(mask.weight.value.numpy() == 0)
        assert zeros == (6 if update >= 4 else 0)
        masks.append(mask.mask.numpy())
    assert_exact(model)
    assert masks[0].sum() > masks[3].sum()
    np.testing.assert_array_equal(masks[3], masks[5])


@mostly("keras")
def test_a_soft_mask_gets_sparser_by_its_penalty_alone_and_comes_back(library):
    criterion = Movement(soft=True, penalty=1000.0, scale=10.0)
    model, mask = one_layer(library, criterion, None, end_step=50)
    x, y = batch()
    model.fit(x, y, batch_size=6, epochs=3, verbose=0)
    assert not mask.mask.numpy().any()
    assert np.count_nonzero(mask.weight.value.numpy()) == 12
    mask.scores.assign(tf.ones_like(mask.scores))
    model.optimizer.learning_rate = 0.0
    model.fit(x, y, batch_size=6, verbose=0)
    assert mask.mask.numpy().all()


@sampled()
@libraries
def test_with_adamw_a_soft_score_moves_by_its_scale(library):
    """About rate times scale per update, whatever the gradient."""
    criterion = Movement(soft=True, penalty=50.0)
    model, mask = one_layer(library, criterion, None, end_step=200)
    optimizer = ke.optimizers.AdamW(5e-5, library=library)
    model.compile(optimizer, "mse", jit_compile=False)
    x, y = batch()
    model.fit(x, y, batch_size=6, epochs=10, verbose=0)
    score = criterion.scale * mask.scores.numpy()
    np.testing.assert_allclose(np.abs(score), 10 * 500 * 5e-5, rtol=0.3)


@contract("microbatches", "replicas")
@sampled()
@pytest.mark.parametrize(
    "library, form, parts", covering(BOTH, FORMS, [(2, 1), (1, 2)], strength=1)
)
def test_k_microbatches_or_two_replicas_are_one_batch(library, form, parts):
    sparsity, criterion = FORMS[form]
    specimen = BOTH[library]
    features, labels = specimen.batch(12)
    models = []
    for microbatches, replicas in ((1, 1), parts):
        with mirrored(replicas).scope():
            model = ready(specimen)
        ke.prune(model, sparsity, criterion=criterion, end_step=3, frequency=1)
        ke.accumulate(model, microbatches=microbatches)
        fit(model, features, labels, batch_size=4)
        models.append(model)
    assert_same(*models)


@sampled()
@libraries
def test_scores_of_several_weights_are_compared_as_they_are(library):
    model = ready(next(s for s in FUNCTIONAL if s.library == library))
    ke.prune(model, 0.5, criterion="movement", end_step=9, scope="global", layers="query|key")
    masks = transforms(model, Mask)
    low, high = masks
    low.scores.assign(tf.reshape(tf.range(64.0), low.scores.shape))
    high.scores.assign(tf.reshape(tf.range(64.0), high.scores.shape) + 100)
    high.updater.update(tf.constant(9, tf.int64))
    assert not low.mask.numpy().any() and high.mask.numpy().all()


@pytest.mark.parametrize(
    "kwargs, rule",
    [
        ({"threshold": 0.5}, r"`threshold` must be in \(0, 0.5\). Received: 0.5"),
        ({"penalty": 0}, "`penalty` must be above 0. Received: 0"),
        ({"scale": -1.0}, "`scale` must be above 0. Received: -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(kwargs, rule):
    with pytest.raises(ValueError, match=rule):
        Movement(**kwargs)
