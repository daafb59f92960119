"""AdaLoRA: the paper's equations, the budget, and what a training step does for it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from covering import contract, sampled
from fit_helpers import assert_same, compiled, fit, mirrored
from zoo import FEW, ZOO, full_except, keras_of

import keras_efficient as ke
from keras_efficient.architecture._heads import head_weights
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._parametrized_layer import transforms
from keras_efficient.peft._adalora import AdaLoRADelta, RankAllocator
from keras_efficient.training._training_step import Gradients

sys.path.append(str(Path(__file__).parents[1] / "callbacks"))

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def specimen_of(library):
    return next(s for s in ZOO if s.name == f"{library}-functional")


def outputs(model, x):
    found = model(x)
    return np.asarray(getattr(found, "logits", found))


def ranks(model):
    return [int(np.count_nonzero(t.lambda_.numpy())) for t in transforms(model, AdaLoRADelta)]


@contract("files")
@sampled()
@pytest.mark.parametrize(
    "specimen", full_except("keras-functional", "tf_keras-subclassed", among=FEW)
)
def test_trains_and_ends_within_its_budget(specimen):
    model, (x, y) = specimen.make(), specimen.batch(12)
    first = outputs(model, x)
    report = ke.adalora(model, 2, begin_step=1, end_step=4)
    np.testing.assert_array_equal(outputs(model, x), first)
    head = {w.path for w in head_weights(model)}
    weights = all_weights(model)
    before = {weight.path: weight.value.numpy() for weight in weights}
    compiled(specimen.library, model)
    ke.accumulate(model, microbatches=2)
    fit(model, x, y, batch_size=4, epochs=2)
    # Two updates after the last allocation: λ that were set to zero stay zero.
    assert int(report.allocator.updates.numpy()) == 6
    assert sum(ranks(model)) == 2 * len(report.weights) == sum(report.ranks.values())
    assert list(report.ranks.values()) == ranks(model)
    for weight in all_weights(model):
        if weight.path not in head:
            np.testing.assert_array_equal(weight.value.numpy(), before[weight.path])
    changed = outputs(model, x)
    assert np.abs(changed - first).max() > 0
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, x), changed, rtol=0, atol=1e-6)


def by_hand(triplets, gradients, averages):
    """The paper's equations 8 to 11, in NumPy: the importance of each triplet."""
    scores = []
    for name, value, gradient in zip("pmq", triplets, gradients, strict=True):
        mean, spread = averages.get(name, (0.0, 0.0))
        now = np.abs(value * gradient)
        mean = 0.85 * mean + 0.15 * now
        spread = 0.85 * spread + 0.15 * np.abs(now - mean)
        averages[name] = mean, spread
        scores.append(mean * spread)
    p, middle, q = scores
    return middle + p.mean(0) + q.mean(1)


@sampled()
@libraries
def test_importance_is_the_papers(library):
    model = specimen_of(library).make()
    report = ke.adalora(model, 2, end_step=50)
    flavor, rng, averages = ke.flavor.of(model), np.random.default_rng(0), {}
    deltas = transforms(model, AdaLoRADelta)
    for _ in range(3):
        found, variables = {}, model.trainable_variables
        for variable in variables:
            value = flavor.value(variable)
            value.assign(rng.normal(size=value.shape).astype("float32"))
            found[id(value)] = rng.normal(size=value.shape).astype("float32")
        values = [tf.constant(found[id(flavor.value(v))]) for v in variables]
        report.allocator.watch(Gradients(values, variables, {}))
        for delta in deltas:
            factors = delta.p, delta.lambda_, delta.q
            wanted = by_hand(
                [f.numpy() for f in factors],
                [found[id(f)] for f in factors],
                averages.setdefault(delta.weight.path, {}),
            )
            np.testing.assert_allclose(delta.importance().numpy(), wanted, rtol=1e-5)


def test_the_most_important_of_all_weights_stay():
    model = specimen_of("keras").make()
    report = ke.adalora(model, 2, begin_step=0, end_step=1)
    deltas, rng = transforms(model, AdaLoRADelta), np.random.default_rng(0)
    for delta in deltas:
        delta.lambda_.assign(np.ones(3, "float32"))
        for track in delta.trackers:
            for average in (track.mean, track.uncertainty):
                average.assign(rng.uniform(size=average.shape).astype("float32"))
    scores = np.concatenate([delta.importance().numpy() for delta in deltas])
    report.allocator.after_update()
    kept = np.concatenate([delta.lambda_.numpy() for delta in deltas]) > 0
    assert kept.sum() == 2 * len(deltas)
    assert scores[kept].min() > scores[~kept].max()


def test_where_all_are_as_important_weights_give_way_in_turn():
    model = specimen_of("keras").make()
    report = ke.adalora(model, 2, begin_step=0, end_step=1)
    report.allocator.after_update()
    assert set(report.ranks.values()) == {2}


def test_an_update_that_overflowed_is_not_counted_in():
    model = specimen_of("keras").make()
    report = ke.adalora(model, 2, end_step=50)
    variables = model.trainable_variables
    values = [tf.fill(v.shape, np.float32("nan")) for v in variables]
    report.allocator.watch(Gradients(values, variables, {}))
    for delta in transforms(model, AdaLoRADelta):
        assert delta.importance().numpy().tolist() == [0, 0, 0]


def test_the_budget_falls_with_the_cube_of_the_time_left():
    allocator = RankAllocator(2, 6, 10, 50)
    allocator.deltas = [None] * 5
    found = [int(allocator.budget(step)) for step in (0, 10, 20, 30, 40, 50, 99)]
    wanted = [round(10 + 20 * max(0, min(1, (50 - s) / 40)) ** 3) for s in (0, 10, 20, 30, 40, 50)]
    assert found == [*wanted, 10]


@sampled()
@libraries
def test_the_penalty_joins_the_loss_and_is_zero_at_first(library):
    specimen = specimen_of(library)
    x, y = specimen.batch(8)
    losses = []
    for orthogonality in (0.0, 0.5):
        model = specimen.make()
        ke.adalora(model, 2, end_step=50, orthogonality=orthogonality)
        compiled(library, model)
        found = [model.evaluate(x, y, verbose=0)[0]]
        total = 0.0
        for delta in transforms(model, AdaLoRADelta):
            p, q = 1.5 * delta.p.numpy(), 0.5 * delta.q.numpy()
            delta.p.assign(p)
            delta.q.assign(q)
            total += np.sum((p.T @ p - np.eye(3)) ** 2) + np.sum((q @ q.T - np.eye(3)) ** 2)
        losses.append([*found, model.evaluate(x, y, verbose=0)[0], total])
    (a, b, _), (c, d, total) = losses
    # λ is zero, so the rest of the loss does not change.
    np.testing.assert_allclose([a, a, b, d], [c, b, a, a + 0.5 * total], rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("library", ["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def test_the_penalty_keeps_factors_orthonormal(library):
    specimen = specimen_of(library)
    x, y = specimen.batch(12)
    off = []
    for orthogonality in (0.0, 0.5):
        model = specimen.make()
        ke.adalora(model, 2, end_step=50, orthogonality=orthogonality)
        optimizer = keras_of(library).optimizers.SGD(0.1)
        compiled(library, model, optimizer)
        rng = np.random.default_rng(0)
        for delta in transforms(model, AdaLoRADelta):
            p = delta.p.numpy()
            delta.p.assign(p + rng.normal(0, 0.1, p.shape).astype("float32"))
        fit(model, x, y, batch_size=4, epochs=4)
        grams = [d.p.numpy().T @ d.p.numpy() for d in transforms(model, AdaLoRADelta)]
        off.append(max(np.abs(gram - np.eye(3)).max() for gram in grams))
    assert off[1] < 0.3 * off[0]


@contract("microbatches", "replicas")
@sampled()
@pytest.mark.parametrize("replicas, microbatches", [(1, 3), (2, 1)])
@libraries
def test_microbatches_and_replicas_are_one_batch(library, replicas, microbatches):
    specimen = specimen_of(library)
    x, y = specimen.batch(12)
    models = []
    for count, parts in ((1, 1), (replicas, microbatches)):
        with mirrored(count).scope():
            model = specimen.make()
            ke.adalora(model, 2, begin_step=1, end_step=4)
            compiled(library, model)
            ke.accumulate(model, microbatches=parts)
        fit(model, x, y, batch_size=4, epochs=2)
        models.append(model)
    assert_same(*models)
    assert ranks(models[0]) == ranks(models[1])


EITHER = pytest.mark.parametrize(
    "library", [pytest.param("keras", marks=pytest.mark.full), "tf_keras"]
)


def trained(library, specimen, jit, begin_with=None):
    x, y = specimen.batch(12)
    model = specimen.make()
    ke.adalora(model, 2, begin_step=1, end_step=4)
    rng = np.random.default_rng(0)
    for delta in transforms(model, AdaLoRADelta) if begin_with else ():
        delta.lambda_.assign(begin_with * rng.uniform(0.5, 1.5, delta.lambda_.shape))
    compiled(library, model, jit_compile=jit)
    fit(model, x, y, batch_size=4, epochs=2)
    return model


@pytest.mark.full
@EITHER
def test_xla_computes_the_same(library):
    """Not from λ = 0: there, rounding alone decides which of the first triplets are kept.

    After an update or two the importances of the weights of queries and keys are so small that a
    change of 1e-7 of the initial values reorders them, without XLA too. How a CPU rounds then
    shows in the masks and, by 7e-5, in λ.
    """
    specimen = specimen_of(library)
    assert_same(*(trained(library, specimen, jit, begin_with=0.3) for jit in (False, True)))


@contract("mixed_precision")
@pytest.mark.full
@EITHER
def test_bfloat16(library):
    specimen = specimen_of(library)
    x, y = specimen.batch(12)
    plain = specimen.make()
    found = [trained(library, specimen, jit=False)]
    ke.mixed_precision("mixed_bfloat16", library=library)
    try:
        model = specimen.make()
    finally:
        ke.mixed_precision("float32", library=library)
    ke.adalora(model, 2, begin_step=1, end_step=4)
    compiled(library, model)
    fit(model, x, y, batch_size=4, epochs=2)
    assert sum(ranks(model)) == sum(ranks(found[0]))
    assert {delta.p.dtype for delta in transforms(model, AdaLoRADelta)} == {tf.float32}
    wanted, changed = (np.float32(outputs(m, x)) for m in (found[0], model))
    np.testing.assert_allclose(changed, wanted, rtol=0, atol=0.05)
    assert np.abs(outputs(plain, x) - wanted).max() > 0


@contract("resume")
@pytest.mark.parametrize("library", [pytest.param("keras", marks=pytest.mark.full), "tf_keras"])
def test_resumes_to_the_last_bit(library, tmp_path):
    from resumed_runs import Case, assert_goes_on

    def caller(model):
        ke.adalora(model, 2, begin_step=1, end_step=8, layers="dense")
        ke.accumulate(model, microbatches=2)

    def model_of(library):
        layers = keras_of(library).layers
        parts = [
            layers.Input((6,), dtype="int32"),
            layers.Embedding(50, 8),
            layers.Dropout(0.3),
            layers.Dense(8, activation="relu", name="dense_a"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(5, name="dense_b"),
            layers.Dense(3, name="head"),
        ]
        return keras_of(library).Sequential(parts)

    case = Case(library, caller=caller, model=model_of)
    whole = case.start(tmp_path / "whole")
    steps = sorted(whole.watch.losses)
    again = assert_goes_on(case, tmp_path / "a", steps[-4], whole)
    assert sum(ranks(again.model)) == 4


def test_the_summary_says_the_rank_now():
    model = specimen_of("keras").make()
    report = ke.adalora(model, 2, begin_step=0, end_step=1)
    assert "adalora r=3 of 3" in str(ke.summary(model))
    report.allocator.after_update()
    assert "adalora r=2 of 3" in str(ke.summary(model))
    assert "rank 3 each to 2 on average, from update 0 to 1" in str(report)


# --- what is refused -------------------------------------------------------------------------


def test_bad_arguments():
    model = specimen_of("keras").make()
    before = len(model.trainable_variables)
    for arguments, message in [
        ({"rank": 0}, "`rank` must be an int from 1"),
        ({"initial_rank": 9}, "`initial_rank` must be an int from 1"),
        ({"initial_rank": 1}, "`initial_rank` must be at least `rank`"),
        ({"end_step": 0}, "0 <= begin_step < end_step"),
        ({"end_step": 2.5}, "must be ints"),
        ({"begin_step": 9}, "0 <= begin_step < end_step"),
        ({"orthogonality": -1}, "`orthogonality` must be at least 0"),
        ({"alpha": 0}, "`alpha` must be a number above 0"),
        ({"layers": "nothing"}, "ke.adalora needs at least one weight"),
    ]:
        with pytest.raises(ValueError, match=message):
            ke.adalora(model, **{"rank": 2, "end_step": 9, **arguments})
        assert len(model.trainable_variables) == before


@pytest.mark.full
def test_twice():
    model = specimen_of("keras").make()
    ke.adalora(model, 2, end_step=9)
    with pytest.raises(ValueError, match="one transform of each kind"):
        ke.adalora(model, 2, end_step=9)
