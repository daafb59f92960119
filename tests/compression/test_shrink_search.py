"""The targets for which `ke.shrink` searches sizes: parameters, bytes, speed-up and latency."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from test_shrink import MODELS
from test_shrink_importance import FEW, batch, compiled

import keras_efficient as ke
from keras_efficient.compression.structured.costs import Latency, Parameters, _fitted, bytes_of
from keras_efficient.compression.structured.cuts import widths
from keras_efficient.compression.structured.losses import Losses, Part, _convex
from keras_efficient.compression.structured.search import best_sizes, knapsack
from keras_efficient.compression.structured.shrinking import Shrinking
from keras_efficient.compression.structured.space import SearchSpace, search_space


def latency(model):
    """Milliseconds that are an exact function of the sizes."""
    sizes = [widths(block) for block in ke.architecture.describe(model).blocks]
    return 1 + sum(
        0.5 + 0.1 * s["feed_forward"] * s["hidden"] / 8 + 0.4 * s["heads"] for s in sizes
    )


def space_of(model, **fixed):
    architecture = ke.architecture.describe(model)
    return architecture, search_space(model, architecture, **fixed)


# --- what may be searched ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, per_layer, parts, hidden",
    [
        ("kerashub-bert", False, ("feed_forward",), (4, 8)),
        pytest.param("kerashub-gpt2", False, ("feed_forward",), (4, 8), marks=pytest.mark.full),
        pytest.param(
            "hf-bert-classifier", False, ("feed_forward",), (4, 8), marks=pytest.mark.full
        ),
        pytest.param(
            "garden-v2-functional", False, ("feed_forward",), (4, 8), marks=pytest.mark.full
        ),
        ("tf_keras-functional", True, ("feed_forward", "heads"), (8,)),
    ],
)
def test_what_a_class_can_express_is_searched(name, per_layer, parts, hidden):
    model = MODELS[name]()
    _, space = space_of(model)
    assert (space.per_layer, space.parts, space.hidden) == (per_layer, parts, hidden)
    assert space.layers
    assert space_of(model, hidden=8)[1].hidden == (8,)


def test_the_numbers_that_may_be_kept():
    _, space = space_of(MODELS["keras-functional"]())
    assert space.sizes("feed_forward", 0) == list(range(1, 17))
    assert space.sizes("heads", 1) == [1, 2]
    wide = SearchSpace(
        (160,), (4,), layers=False, parts=("feed_forward",), per_layer=False,
        hidden=tuple(range(8, 33, 8)),
    )  # fmt: skip
    assert wide.sizes("feed_forward", 0) == [32, 64, 96, 128, 160]
    assert wide.sizes("heads", 0) == [4]
    assert wide.spread((0.25, 0.5, 1.0)) == [8, 16, 32]


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_costs_are_those_of_the_models_that_are_made(name):
    """Parameters and bytes exactly, milliseconds since these are linear in the sizes."""
    model = MODELS[name]()
    architecture, space = space_of(model)

    def compare(model, others):
        return latency(model), [latency(other) for other in others]

    costs = {
        "parameters": Parameters(model, architecture, space),
        "bytes": Parameters(model, architecture, space, bytes_of),
        "latency": Latency(model, architecture, space, compare),
    }
    kept = list(range(1, space.blocks))
    neurons = [5] * len(kept) if not space.per_layer else [5, 11, 3][: len(kept)]
    for hidden in space.hidden:
        sizes = {"layers": kept, "feed_forward": neurons}
        if len(space.hidden) > 1:
            sizes["hidden"] = hidden
        if "heads" in space.parts:
            sizes["heads"] = [1] * len(kept)
        small, report = ke.shrink(model, **sizes)
        found = {
            name: cost.prices(hidden).of(kept, neurons, [1] * len(kept))
            for name, cost in costs.items()
        }
        assert found["parameters"] == report.parameters
        assert found["bytes"] == report.bytes
        np.testing.assert_allclose(found["latency"], latency(small), rtol=1e-6)


def test_hidden_widths_between_those_that_are_counted():
    import keras_hub

    model = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=2, num_heads=6, hidden_dim=24, intermediate_dim=16
    )
    architecture, space = space_of(model)
    assert space.hidden == (8, 12, 16, 20, 24)
    cost = Parameters(model, architecture, space)
    for hidden in (12, 20):
        report = ke.shrink(model, hidden=hidden, layers=1, feed_forward=3).report
        assert cost.prices(hidden).of([0], [3], [1]) == report.parameters


def test_noise_does_not_make_less_cost_more():
    model = MODELS["kerashub-bert"]()
    architecture, space = space_of(model)
    noisy = itertools.cycle([3.0, 3.5, 4.0])
    cost = Latency(
        model, architecture, space, lambda m, others: (3.0, [next(noisy) for _ in others])
    )
    prices = cost.prices(8)
    assert (prices.feed_forward >= 0).all() and (prices.blocks >= 0).all() and prices.rest >= 0


def test_a_last_block_that_costs_less():
    """Exports of a classifier compute one token in the last block: here a quarter of the time."""
    space = SearchSpace(
        (160,) * 3, (4,) * 3, layers=True, parts=("feed_forward",), per_layer=False, hidden=(8,),
    )  # fmt: skip

    def time(blocks, neurons):
        return (blocks - 1 + 0.25) * (2 + 0.05 * neurons)

    times = {"whole": time(3, 160), "feed_forward": time(3, 20), "one": time(1, 160)}
    prices = _fitted(times, space)
    for blocks, neurons in ((3, 160), (2, 64), (1, 32)):
        found = prices.of(range(blocks), [neurons] * blocks, [4] * blocks)
        np.testing.assert_allclose(found, time(blocks, neurons))


# --- the search ----------------------------------------------------------------------------------


def test_the_knapsack_is_the_best_of_all_choices():
    rng = np.random.default_rng(0)
    groups = [(rng.uniform(1, 9, n), rng.uniform(0, 1, n)) for n in (3, 4, 2)]
    for most in (10.0, 12.0, 20.0):
        choices = itertools.product(*(range(len(costs)) for costs, _ in groups))

        def total(choice, part):
            return sum(group[part][n] for group, n in zip(groups, choice, strict=True))

        fitting = [choice for choice in choices if total(choice, 0) <= most]
        assert tuple(knapsack(groups, most)) == min(fitting, key=lambda c: total(c, 1))
    assert knapsack(groups, 1.0) is None
    assert knapsack([], 0.0) == []
    # Of choices with the same loss one that costs the most.
    same = (np.array([1.0, 2.0, 3.0]), np.zeros(3))
    assert knapsack([same], 2.5) == [1]
    assert sum(knapsack([same, same], 5.5)) == 3


@pytest.mark.parametrize(
    "name, target",
    [
        ("keras-functional", "bytes"),
        pytest.param("kerashub-bert", "parameters", marks=pytest.mark.full),
        pytest.param("hf-bert-classifier", "bytes", marks=pytest.mark.full),
    ],
)
def test_a_size_is_reached(name, target):
    model = compiled(name)
    most = 0.8 * {"parameters": 1, "bytes": 4}[target] * model.count_params()
    _, report = ke.shrink(model, data=batch(name), **{target: most})
    assert most * 0.5 < getattr(report, target) <= most


def test_parts_that_do_nothing_are_removed_first():
    """Neurons of zeros in one layer and a head in the other: these go, and the loss stays."""
    model = compiled("tf_keras-functional")
    first, second = ke.architecture.describe(model).blocks
    for kernel, rows in (
        (first.feed_forward.output.kernel, 12),
        (second.attention.output.kernel, 1),
    ):
        value = np.array(kernel)
        value[:rows] = 0
        kernel.assign(value)
    neuron, head = 2 * 8 + 1, 3 * (8 * 4 + 4) + 4 * 8
    target = model.count_params() - 12 * neuron - head
    # Labels that the model predicts with certainty, so that every change is a loss.
    model.layers[-1].kernel.assign(np.array(model.layers[-1].kernel) * 20)
    x, _ = batch("tf_keras-functional")
    data = x, np.argmax(model(x), -1)
    _, report = ke.shrink(model, parameters=target, data=data)
    assert report.parameters == target
    assert report.sizes["layers"] == (2, 2)
    assert report.sizes["feed_forward"] == (16, (4, 16))
    assert report.sizes["heads"] == (2, (2, 1))


class _Losses:
    """Increases of the loss as given."""

    def __init__(self, removed=(0.0, 0.0, 0.0), hidden=(0.0, 0.0), neurons=0.0):
        self.removed, self.hidden = removed, dict(zip((4, 8), hidden, strict=True))
        sizes = list(range(1, 17))
        increases = neurons * (1 - np.array(sizes) / 16)
        self.parts = [Part("feed_forward", (0, 1, 2), sizes, increases)]

    def kept(self, layers, blocks):
        return list(range(layers))


@pytest.fixture(scope="module")
def costs():
    model = MODELS["kerashub-bert"]()
    architecture, space = space_of(model)

    def compare(model, others):
        return latency(model), [*map(latency, others)]

    return Latency(model, architecture, space, compare), space


@pytest.mark.parametrize(
    "losses, sizes",
    [
        # What costs least in loss goes: blocks, the hidden width, or neurons.
        (_Losses((0, 0.1, 0.2), (5, 0), 5), (1, 16, 8)),
        (_Losses((0, 1, 2), (0.1, 0), 5), (2, 16, 4)),
        (_Losses((0, 1, 2), (5, 0), 0.1), (3, 1, 8)),
        # Nothing does: the largest model is chosen that fits.
        (_Losses(), (2, 9, 8)),
    ],
)
def test_the_sizes_with_the_least_loss_are_chosen(losses, sizes, costs):
    cost, space = costs
    found = best_sizes(cost, losses, space, 5.5)
    assert (len(found.layers), found.feed_forward[0], found.hidden) == sizes
    assert found.cost <= 5.5
    assert best_sizes(cost, losses, space, 1.0) is None


def test_what_is_removed_last_costs_at_least_as_much_as_what_is_removed_first():
    """Without training, the loss stops rising where a model has become useless."""
    saturated = [0.0, 0.1, 0.4, 0.5, 0.5]
    np.testing.assert_allclose(_convex(range(5), saturated), [0, 0.1, 0.4, 0.7, 1.0])
    # By size, in any order; what seems to help by noise is free.
    sizes, increases = [2, 4, 8, 16], [0.5, 0.4, -0.1, 0.0]
    np.testing.assert_allclose(_convex(np.negative(sizes), increases), [0.75, 0.5, 0, 0])


@pytest.mark.full
def test_the_loss_of_each_hidden_width_is_measured():
    model, (x, y) = compiled("kerashub-bert"), batch("kerashub-bert")
    shrinking = Shrinking(model, tf.data.Dataset.from_tensors((x, y)), "magnitude")
    losses = Losses(shrinking, space_of(model)[1])
    narrow = ke.shrink(model, hidden=4, data=(x, y)).model
    found = []
    for each in (model, narrow):
        each.compile("sgd", model.loss)
        found.append(each.evaluate(x, y, verbose=0, return_dict=True)["loss"])
    increase = max(found[1] - found[0], 0.0)
    np.testing.assert_allclose([losses.hidden[4], losses.hidden[8]], [increase, 0], atol=1e-6)


@pytest.mark.full
def test_a_speedup_is_reached():
    """By a function of a model that returns milliseconds."""
    model, data = compiled("tf_keras-functional"), batch("tf_keras-functional")
    small, report = ke.shrink(model, speedup=1.8, measure=latency, data=data)
    assert report.latency_ms == latency(small)
    assert report.latency_ms_before == latency(model)
    assert report.latency_ms_before / report.latency_ms >= 1.8
    assert "times faster" in str(report)


class Compares:
    """A measure of several models in turns, as `ke.bench.ExportLatency`."""

    def __init__(self, factor=1.0):
        self.calls, self.factor = [], factor

    def __str__(self):
        return "int8, 8 x 64"

    def compare(self, model, others, sample):
        ((x,),) = (sample,)
        self.ids = x["token_ids"].numpy().max()
        self.calls.append(len(others))
        # The results take longer than their prediction.
        factor = 1.0 if len(others) > 1 else self.factor
        return 2 * latency(model), [factor * latency(other) for other in others]


def test_a_speedup_is_relative_to_the_baseline_and_corrected():
    model, data = compiled("kerashub-bert"), batch("kerashub-bert")
    measure = Compares(1.3)
    arguments = {"data": data, "measure": measure, "vocabulary": np.arange(20)}
    small, report = ke.shrink(model, speedup=4, **arguments)
    assert measure.ids < 20
    assert report.latency_ms_before == 2 * latency(model)
    assert report.latency_ms == 1.3 * latency(small)
    assert report.latency_ms_before / report.latency_ms >= 4
    # Whole, narrower and one block for each of two hidden widths; then the results one by one.
    assert measure.calls[0] == 6 and measure.calls[1:] == [1] * (len(measure.calls) - 1)
    assert 2 < len(measure.calls) <= 4
    assert "times faster), int8, 8 x 64" in str(report)


@pytest.mark.full
def test_a_target_that_is_missed_is_said():
    model, data = compiled("kerashub-bert"), batch("kerashub-bert")
    with pytest.warns(UserWarning, match=r"`speedup`=2. Received: a model that needs .* as long"):
        ke.shrink(model, speedup=2, measure=Compares(8.0), data=data)


@pytest.mark.full
def test_a_latency_in_this_process():
    model, data = compiled("hf-bert-classifier"), batch("hf-bert-classifier")
    _, report = ke.shrink(model, latency_ms=1e5, data=data)
    assert 0 < report.latency_ms < 1e5


def test_what_cannot_be_reached_is_said():
    model = compiled("kerashub-bert")
    for name, arguments, message in (
        (
            "kerashub-bert",
            {"parameters": 100},
            r"`parameters`=100. The least is [\d,]+ parameters, with 1 of 3 layers, 1 neurons each "
            "and a hidden width of 4. Set a less ambitious target, or a smaller `vocabulary`",
        ),
        ("kerashub-bert", {"bytes": 100, "hidden": 8}, "a hidden width of 8.* smaller `hidden`"),
        (
            "kerashub-bert",
            {"speedup": 100, "measure": latency},
            r"The least is [\d.]+ times faster",
        ),
        (
            "tf_keras-functional",
            {"latency_ms": 0.5, "measure": latency},
            r"The least is 2 ms, with 1 of 2 layers, 1 neurons each, 1 heads each and a hidden "
            "width of 8",
        ),
    ):
        asked = model if name == "kerashub-bert" else compiled(name)
        with pytest.raises(ValueError, match=message):
            ke.shrink(asked, data=batch(name), **arguments)


def test_blocks_of_different_widths_are_searched_again():
    model, data = compiled("tf_keras-functional"), batch("tf_keras-functional")
    small = ke.shrink(model, feed_forward=[5, 9], heads=[1, 2]).model
    architecture, space = space_of(small)
    assert space.feed_forward == (5, 9) and space.heads == (1, 2)
    cost = Parameters(small, architecture, space).prices(8)
    assert cost.of([0, 1], [5, 9], [1, 2]) == small.count_params()
    small.compile("sgd", model.loss)
    target = small.count_params() - 20
    _, report = ke.shrink(small, parameters=target, data=data)
    assert report.parameters <= target


@pytest.mark.full
@pytest.mark.parametrize("name", ["tf_keras-functional", "kerashub-bert"])
def test_gradual_steps_with_distillation_in_between(name):
    model, (x, y) = compiled(name), batch(name)
    keras, small, times = ke.flavor.of(model).keras, model, [latency(model)]
    for part in (0.8, 0.6):
        small, report = ke.shrink(small, latency_ms=part * times[0], measure=latency, data=(x, y))
        small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        ke.distill(small, model)
        small.fit(x, y, verbose=0)
        times.append(report.latency_ms)
        assert latency(small) == report.latency_ms <= part * times[0]
    # The first step may reach the second target.
    assert times[2] <= times[1] < times[0]
