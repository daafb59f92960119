"""Sensitivities, the targets they give, and validation that stops the growth of sparsity."""

import sys
from pathlib import Path

import numpy as np
import pytest
from compression_helpers import BOTH, libraries, mostly, ready
from covering import contract, covering, sampled
from fit_helpers import fit
from test_prune import step_of
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.compression._masks import Mask
from keras_efficient.compression._sensitivity import _allocated, sensitivity
from keras_efficient.parametrize._attach import updaters
from keras_efficient.parametrize._parametrized_layer import transforms

sys.path.append(str(Path(__file__).parents[1] / "callbacks"))


def spread(increases, sizes, final, levels=(0.5, 0.9), minimum=0.0, maximum=0.9):
    targets, predicted = _allocated(increases, sizes, levels, final, minimum, maximum)
    total = sum(targets[path] * sizes[path] for path in sizes)
    assert total == pytest.approx(final * sum(sizes.values()))
    assert all(minimum <= target <= maximum for target in targets.values())
    return targets, predicted


def test_the_cheapest_zeros_come_first():
    sizes = {"a": 100, "b": 100}
    # Per number: a costs 0.02 up to 50% and 0.05 beyond, b 0.1 and 0.2.
    increases = {"a": (1.0, 3.0), "b": (5.0, 13.0)}
    assert spread(increases, sizes, 0.25)[0] == {"a": 0.5, "b": 0.0}
    assert spread(increases, sizes, 0.45)[0] == {"a": 0.9, "b": 0.0}
    targets, predicted = spread(increases, sizes, 0.6)
    assert targets == {"a": 0.9, "b": pytest.approx(0.3)} and predicted == pytest.approx(6.0)
    # A larger weight with the same increase is cheaper by number.
    assert spread({"a": (1.0, 2.0), "b": (1.0, 2.0)}, {"a": 10, "b": 90}, 0.3)[0]["a"] == 0.0
    assert spread(increases, sizes, 0.5, minimum=0.4, maximum=0.7)[0] == {
        "a": pytest.approx(0.6),
        "b": 0.4,
    }


def test_no_other_targets_on_a_grid_are_predicted_cheaper():
    rng = np.random.default_rng(0)
    levels, sizes = (0.3, 0.6, 0.9), {"a": 3, "b": 5, "c": 7}
    grid = np.linspace(0, 0.9, 19).tolist()
    for _ in range(20):
        steps = np.sort(rng.uniform(0, 1, (3, 3)), axis=1)
        increases = {path: tuple(np.cumsum(row)) for path, row in zip(sizes, steps, strict=True)}
        _, best = spread(increases, sizes, 0.6, levels)
        curve = {
            p: dict(zip(grid, np.interp(grid, (0, *levels), (0, *found)), strict=True))
            for p, found in increases.items()
        }
        for a in grid:
            for b in grid:
                c = (0.6 * 15 - 3 * a - 5 * b) / 7
                if 0 <= c <= 0.9:
                    of_c = np.interp(c, (0, *levels), (0, *increases["c"]))
                    assert best <= curve["a"][a] + curve["b"][b] + of_c + 1e-9


def test_a_loss_that_noise_lowers_counts_as_no_increase():
    _, predicted = spread({"a": (-1.0, -2.0), "b": (0.5, 9.0)}, {"a": 10, "b": 10}, 0.45)
    assert predicted == 0


def lopsided(library):
    """A model in which one kernel matters and another one does not."""
    keras = keras_of(library)
    x = keras.Input((8,))
    used, unused = (keras.layers.Dense(8, use_bias=False, name=n) for n in ("used", "unused"))
    muted = keras.layers.Rescaling(1e-3)(unused(x))
    out = keras.layers.Dense(8, use_bias=False, name="head")(keras.layers.Add()([used(x), muted]))
    model = keras.Model(x, out)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    x = rng.normal(size=(16, 8)).astype("float32")
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    return model, (x, np.asarray(model(x)))


@sampled()
@libraries
def test_the_weight_that_matters_stays_denser_and_the_model_as_it_is(library):
    model, batch = lopsided(library)
    before = model.get_weights()
    found = sensitivity(model, batch, 0.5, levels=(0.25, 0.5, 0.75))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    used, unused = ("used/kernel", "unused/kernel")
    assert found.targets[unused] == 0.75 and found.targets[used] == pytest.approx(0.25)
    assert found.loss == pytest.approx(0, abs=1e-9)
    # The increase is that of the loss with the smallest numbers of this one weight set to zero.
    kernel, index = before[0], 0
    pruned = np.where(np.abs(kernel) >= np.sort(np.abs(kernel), axis=None)[32], kernel, 0)
    model.set_weights([pruned if i == index else w for i, w in enumerate(before)])
    loss = model.evaluate(*batch, batch_size=16, verbose=0)
    path = [w.path for w in ke.parametrize.select(model, caller="")][index]
    assert found.increases[path][1] == pytest.approx(loss, rel=1e-4)
    model.set_weights(before)
    assert "unused/kernel" in str(found) and "targets for 50.0% of all" in str(found)
    # `prune` accepts the result, or measures by itself.
    report = ke.prune(model, found)
    assert report.targets == found.targets
    assert {t.weight.path: int(np.sum(t.mask.numpy() == 0)) for t in transforms(model, Mask)} == {
        used: 16,
        unused: 48,
    }
    ke.merge(model)
    model.set_weights(before)
    report = ke.prune(model, 0.5, adaptive=batch)
    assert report.sensitivity.targets == report.targets
    assert report.targets[unused] > report.targets[used]


@sampled()
@libraries
def test_low_rank_deltas_are_included_in_the_measurement(library):
    model, batch = lopsided(library)
    ke.lora(model, rank=2)
    before = model.get_weights()
    found = sensitivity(model, batch, 0.5, levels=(0.5, 0.75))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert found.targets["unused/kernel"] > found.targets["used/kernel"]


@sampled()
@libraries
def test_bad_arguments_of_sensitivity_are_refused(library):
    model, batch = lopsided(library)
    cases = [
        ({"levels": ()}, r"`levels` must be increasing.*Received: \(\)"),
        ({"levels": (0.5, 0.3)}, "`levels` must be increasing"),
        ({"levels": (0.5, 1.0)}, "`levels` must be increasing"),
        ({"levels": (0.0, 0.5)}, "`levels` must be increasing"),
        ({"final_sparsity": 1.5}, r"above 0 and below 1.*Received: 1.5"),
        ({"final_sparsity": 0.95}, r"the last of `levels`. Received: .*final_sparsity=0.95"),
        ({"minimum": 0.7}, "the last of `levels`. Received: minimum=0.7"),
        ({"maximum": 0.95}, "the last of `levels`. Received"),
        ({"data": batch[0]}, "`data` must be a batch"),
        ({"layers": "nowhere"}, "at least one weight"),
    ]
    for kwargs, rule in cases:
        with pytest.raises(ValueError, match=rule):
            sensitivity(model, **{"data": batch, "final_sparsity": 0.5, **kwargs})
    with pytest.raises(ValueError, match=r"must be finite.*Received: nan"):
        sensitivity(model, (batch[0], np.full_like(batch[1], np.nan)), 0.5)
    plain = BOTH[library].make()
    with pytest.raises(ValueError, match=r"of the compiled loss. Received: .*, not compiled"):
        sensitivity(plain, BOTH[library].batch(2), 0.5)


class Falling(ke.flavor.Callback):
    """Set the validation accuracy of every epoch."""

    def __init__(self, values):
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["val_accuracy"] = self.values[epoch]


def run(library, values, **kwargs):
    model = ready(BOTH[library])
    ke.prune(model, 0.8, end_step=12, frequency=1)
    stop = ke.callbacks.AdaptiveSparsity(**kwargs)
    seen = []

    class Seen(ke.flavor.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([w.copy() for w in self.model.get_weights()])

    features, labels = BOTH[library].batch(12)
    history = fit(
        model,
        features,
        labels,
        batch_size=4,
        epochs=len(values),
        callbacks=[Falling(values), stop, Seen()],
    )
    return model, stop, history, seen


@sampled()
@libraries
def test_where_validation_falls_the_last_good_weights_come_back_and_sparsity_stays(library):
    model, stop, history, seen = run(library, [0.8, 0.82, 0.5, 0.9, 0.9], max_drop=0.05)
    assert stop.stopped_epoch == 2 and stop.best == 0.9
    sparsity = history["sparsity"]
    assert 0 < sparsity[0] < sparsity[1] == sparsity[2] == sparsity[3] == sparsity[4] < 0.75
    # After the third epoch the weights and masks are those of the second, the counter is not.
    different = [i for i, (a, b) in enumerate(zip(seen[1], seen[2], strict=True)) if (a != b).any()]
    assert len(different) == 2 and all(seen[2][i].shape == () for i in different)
    assert step_of(model) == 15
    for t in transforms(model, Mask):
        np.testing.assert_array_equal(t.mask.numpy() > 0, t.weight.value.numpy() != 0)
    assert all(updater.held.numpy() == 1 for updater in updaters(model))


@mostly("keras")
def test_within_the_drop_it_grows_to_its_end(library):
    model, stop, history, _ = run(library, [0.8, 0.79, 0.78, 0.77, 0.9], max_drop=0.05)
    assert stop.stopped_epoch is None
    assert history["sparsity"][-1] == pytest.approx(0.8, abs=0.01)
    del model


def test_a_baseline_makes_the_first_weights_good_and_a_loss_may_not_rise():
    model, stop, history, seen = run("keras", [0.8, 0.9], max_drop=0.05, baseline=0.9)
    assert stop.stopped_epoch == 0 and history["sparsity"] == [0.0, 0.0]
    plain = BOTH["keras"].make()
    plain_weights = [w for w in plain.get_weights() if w.ndim > 1]
    first = [w for w in seen[0] if w.ndim > 1 and w.dtype != np.uint8]
    for a, b in zip(plain_weights, first, strict=True):
        np.testing.assert_array_equal(a, b)
    values = [0.8, 0.9, 0.9]
    _, stop, _, _ = run("keras", values, monitor="val_accuracy", mode="min", max_drop=0.05)
    assert stop.stopped_epoch == 1 and stop.best == 0.8
    del model


@contract("resume")
@sampled()
@pytest.mark.parametrize("library, at", covering(BOTH, [(2, 1), (3, 3)], strength=1))
def test_a_resumed_run_stops_and_holds_as_the_uninterrupted_one(library, at, tmp_path):
    """The run is stopped at this epoch and batch, before or after validation falls."""
    from resumed_runs import Case, assert_equal

    def deep(library):
        keras = keras_of(library)
        layers = keras.layers
        return keras.Sequential(
            [
                layers.Input((LENGTH,), dtype="int32"),
                layers.Embedding(VOCABULARY, 8),
                layers.GlobalAveragePooling1D(),
                layers.Dense(8, activation="relu"),
                layers.Dense(CLASSES, dtype="float32"),
            ]
        )

    case = Case(
        library,
        model=deep,
        caller=lambda model: ke.prune(model, 0.8, end_step=20, frequency=1) and None,
        callbacks=lambda: [Falling([0.8, 0.8, 0.2, 0.9]), ke.callbacks.AdaptiveSparsity()],
        epochs=4,
    )
    whole = case.start(tmp_path / "whole")
    assert whole.others[1].stopped_epoch == 2
    case.start(tmp_path / "stopped", at)
    again = case.start(tmp_path / "stopped")
    assert_equal(again, whole)
    assert again.others[1].stopped_epoch == 2


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    "library, criterion", covering(BOTH, ["magnitude", "movement"], strength=1)
)
def test_a_resumed_run_prunes_as_the_uninterrupted_one(library, criterion, tmp_path):
    from resumed_runs import Case, assert_goes_on, model_of

    def caller(model):
        ke.prune(model, 0.5, end_step=8, frequency=1, criterion=criterion, layers="kernel")

    case = Case(library, caller=caller, model=model_of)
    whole = case.start(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "again", (1, 1), whole)


@sampled()
@libraries
def test_a_stop_without_masks_or_values_is_refused(library):
    model = ready(BOTH[library])
    features, labels = BOTH[library].batch(4)
    with pytest.raises(InputError, match=r"needs a pruned model\. Received"):
        fit(model, features, labels, callbacks=[ke.callbacks.AdaptiveSparsity()])
    ke.prune(model, 0.5)
    with pytest.raises(InputError, match=r"must be in the epoch's logs. Received: 'val_accuracy'"):
        fit(model, features, labels, callbacks=[ke.callbacks.AdaptiveSparsity()])
    with pytest.raises(ValueError, match=r"`max_drop` must be at least 0.*Received: -1"):
        ke.callbacks.AdaptiveSparsity(max_drop=-1)
    with pytest.raises(ValueError, match=r"`mode` must be 'auto', 'min' or 'max'. Received: 'up'"):
        ke.callbacks.AdaptiveSparsity(mode="up")
