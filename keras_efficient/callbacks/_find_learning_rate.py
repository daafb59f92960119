"""Find a learning rate by trying all of them: the range test."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.callbacks._trial_run import restored
from keras_efficient.checkpoint._variables import build_optimizer, chain
from keras_efficient.flavor import Callback

#: The loss has diverged when it is this many times the best: 4, with the usual positive losses.
_RISE = 3.0


@dataclass(frozen=True, eq=False)
class LearningRates:
    """What `find_learning_rate` found.

    Attributes:
        rates: float array of the rates tried, one per update.
        losses: float array, the loss of each update's batch, just before the update.
        smoothed: float array, `losses` without the noise of single batches.
        suggestion: float, the rate at which the smoothed loss falls steepest, per factor in the
            rate; None if it never fell.
        diverged_at: float, the rate at which the test stopped because the loss had risen to four
            times its best, or was no number (that loss is not in `losses`); None if it had not.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None
    diverged_at: float | None

    def __str__(self):
        found = (
            "no suggestion, the loss never fell"
            if self.suggestion is None
            else f"suggestion {self.suggestion:.1e}, where the loss falls steepest"
        )
        end = (
            "no divergence" if self.diverged_at is None else f"divergence at {self.diverged_at:.1e}"
        )
        tried = f"{len(self.rates)} updates from {self.rates[0]:.1e} to {self.rates[-1]:.1e}"
        low, high = self.smoothed.min(), self.smoothed[0]
        return f"Learning rates: {found}; {end} ({tried}, loss {high:.4g}, at best {low:.4g})"

    def plot(self, path):
        """Draw loss over rate into a file; its suffix (.png, .svg, .pdf) is the format."""
        # Not pyplot: it keeps every figure, and may want a display.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="0.75", linewidth=1, label="loss of a batch")
        axes.plot(self.rates, self.smoothed, color="tab:blue", linewidth=2, label="smoothed")
        if self.suggestion is not None:
            label = f"suggestion {self.suggestion:.1e}"
            axes.axvline(self.suggestion, color="tab:green", linestyle="--", label=label)
        if self.diverged_at is not None:
            label = f"diverged at {self.diverged_at:.1e}"
            axes.axvline(self.diverged_at, color="tab:red", linestyle=":", label=label)
        # Single batches may shoot far above; that would flatten the rest.
        low, high = self.losses.min(), self.smoothed.max()
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 0.1
        axes.set(
            xscale="log",
            ylim=(low - margin, high + margin),
            xlabel="learning rate",
            ylabel="loss",
            title="Learning-rate range test",
        )
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=150)


def find_learning_rate(
    model, data, *, low=1e-7, high=1.0, steps=100, smoothing=0.9, plot=None
) -> LearningRates:
    """Train for a try with an exponentially rising rate, and see where the loss falls steepest.

        rate(i) = low · (high / low)^(i / (steps - 1))        i = 0 … steps - 1
        smoothed(i) = Σⱼ β^|i - j| loss(j) / Σⱼ β^|i - j|

    The test ends early when the smoothed loss of the updates so far is four times its best, or a
    loss is no finite number. Then everything is put back, also after an error or an interrupt: the
    model's weights and seeds, the optimizer's variables, counter, rate or schedule, and the
    metrics. (Weights and slots are copied to the host's memory for that. An iterator of yours, and
    the order of a shuffled dataset, move on.)

    Take the suggestion for the highest rate of a schedule. It belongs to this optimizer, this
    batch size and this state of the weights.

    Args:
        model: a compiled `keras` or `tf_keras` model; its optimizer's own rate does not matter.
        data: batches as `fit` takes them: a `tf.data.Dataset`, or a `PyDataset` or `Sequence` of
            the library. Begun anew if it is shorter than `steps`.
        low, high: float > 0, the first and the last rate.
        steps: int >= 10, the most updates to make.
        smoothing: float in [0, 1), β; 0.9 looks about ten updates far each way, which suits 100
            steps: fewer want less. 0 does not smooth.
        plot: path of a picture to draw, or None (default).

    Returns:
        `LearningRates`: the curve, the suggestion, and `plot(path)`.

    Raises:
        ValueError: a number out of its range; the model is not compiled, or not built and `data`
            is a generator; `steps_per_execution` is more than 1; there is no batch; or the loss is
            not finite before the first update.
        TypeError: `data` is a tuple or list of arrays, or the optimizer has no learning rate.

    Example:
        >>> found = ke.find_learning_rate(model, dataset, steps=20)
        >>> print(found)
        >>> model.compile(ke.optimizers.AdamW(found.suggestion or 1e-3), loss)

    Reference:
        Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. The
        steepest point is fastai's choice.
    """
    _check(model, data, low, high, steps, smoothing)
    _build(model, data)
    test = _RangeTest(np.geomspace(low, high, int(steps)), smoothing)
    with _rate_of(model) as (rate, variables), restored(model, variables):
        test.rate = rate
        model.fit(data, verbose=0, callbacks=[test], **_length(data, int(steps)))
    found = test.found()
    if plot is not None:
        found.plot(plot)
    return found


def smooth(losses, smoothing):
    """Each loss averaged with those before and after it, which does not shift the curve."""
    count = len(losses)
    weights = float(smoothing) ** np.abs(np.arange(1 - count, count))
    total, weight = (
        np.convolve(values, weights)[count - 1 : 2 * count - 1]
        for values in (losses, np.ones(count))
    )
    return total / weight


def steepest(rates, smoothed):
    """The rate before the lowest loss at which the loss falls most per factor, or None."""
    lowest = int(np.argmin(smoothed))
    if lowest == 0:
        return None
    slopes = np.gradient(smoothed, np.log(rates))[: lowest + 1]
    index = int(np.argmin(slopes))
    return float(rates[index]) if slopes[index] < 0 else None


class _RangeTest(Callback):
    """Sets the rate before each update, and looks at the loss after it."""

    def __init__(self, rates, smoothing):
        self.rates, self.smoothing = rates, smoothing
        self.losses, self.diverged = [], False
        self.total = self.weight = 0.0
        self.best = np.inf

    def on_train_batch_begin(self, batch, logs=None):
        # The loss in the logs is a mean since the last reset.
        self.model.reset_metrics()
        self.rate.assign(self.rates[len(self.losses)])

    def on_train_batch_end(self, batch, logs=None):
        if "loss" not in (logs or {}):
            raise ValueError(
                'The logs of a training step must have a "loss". Received the logs '
                f"{sorted(logs or {})}. Let the model's own `train_step` return it."
            )
        loss = float(logs["loss"])
        if not self.losses and not np.isfinite(loss):
            raise ValueError(
                "The loss must be finite before the first update. Received: "
                f"loss={loss}. Look for bad numbers in the first batch and in the weights; in "
                "float16, for overflows."
            )
        # What `smooth` gives for the last of the losses so far; no number from a loss that is none.
        self.total = self.smoothing * self.total + loss
        self.weight = self.smoothing * self.weight + 1.0
        smoothed = self.total / self.weight
        self.best = min(self.best, smoothed)
        if not smoothed <= self.best + _RISE * abs(self.best):
            self.diverged = True
        else:
            self.losses.append(loss)
        if self.diverged or len(self.losses) == len(self.rates):
            self.model.stop_training = True

    def found(self):
        if not self.losses:
            raise ValueError(
                "`data` must have at least one batch. Received: an empty one. Look at how it is "
                "batched (`drop_remainder`?) and filtered."
            )
        count = len(self.losses)
        rates, losses = self.rates[:count], np.array(self.losses)
        smoothed = smooth(losses, self.smoothing)
        return LearningRates(
            rates,
            losses,
            smoothed,
            steepest(rates, smoothed),
            float(self.rates[count]) if self.diverged else None,
        )


@contextmanager
def _rate_of(model):
    """The variable that is the optimizer's learning rate, and what of it there is to restore.

    A schedule, which cannot be assigned to, is taken out for the time.
    """
    flavor = flavors.of(model)
    *_, optimizer = chain(model.optimizer)
    # tf_keras' legacy optimizers, such as Model Garden's, have a dict.
    place = getattr(optimizer, "_hyper", None)
    name = "_learning_rate" if place is None else "learning_rate"
    held = getattr(optimizer, name, None) if place is None else place.get(name)
    if held is None:
        raise TypeError(
            "The optimizer must have a learning rate. Received: "
            f"{optimizer!r}. Compile with one of the library's or of `ke.optimizers`."
        )
    if not callable(held):
        variable = flavor.value(held)
        yield variable, [variable]
        return

    class Tried(flavor.keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step=None):
            return tf.convert_to_tensor(variable)

    def put(value):
        if place is None:
            # Past Keras' own __setattr__, which would track the attribute.
            object.__setattr__(optimizer, name, value)
        else:
            place[name] = value
        # The traced step has the other one in it.
        model.train_function = None

    with model.distribute_strategy.scope():
        variable = tf.Variable(0.0, trainable=False, dtype=tf.float32)
    put(Tried())
    try:
        yield variable, []
    finally:
        put(held)


def _build(model, data):
    """Create all variables, which there could else be no copy of."""
    flavor = flavors.of(model)
    with model.distribute_strategy.scope():
        if not flavor.is_ready(model) and (spec := _spec(data)) is not None:
            flavor.prepare(model, spec)
        if not model.built:
            raise ValueError(
                "The model must be built before its weights can be kept. Received: "
                f"{model.name!r} without weights, and data of type {type(data).__name__}, which "
                "does not tell its shapes. Call the model once on a batch."
            )
        build_optimizer(model)


def _spec(data):
    """The shapes and dtypes of a batch, with any number of examples, or None."""
    if isinstance(data, tf.data.Dataset):
        return data.element_spec
    if not hasattr(data, "__getitem__"):
        return None
    return tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, *array.shape[1:]], array.dtype), tuple(data[0])
    )


def _length(data, steps):
    """`fit`'s arguments for `steps` updates, if need be by several passes."""
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        return {"epochs": 1, "steps_per_epoch": steps}
    return {"epochs": 1 if inspect.isgenerator(data) else steps}


def _check(model, data, low, high, steps, smoothing):
    rules = {
        "`low` must be > 0": low > 0,
        "`high` must be greater than `low`": high > low,
        "`steps` must be a whole number >= 10": steps >= 10 and steps == int(steps),
        "`smoothing` must be >= 0 and < 1": 0 <= smoothing < 1,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(
            f"{'; '.join(broken)}. Received: low={low}, high={high}, steps={steps}, "
            f"smoothing={smoothing}. The defaults try seven decades in 100 updates."
        )
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The model must be compiled. Received: "
            f"{model.name!r} without an optimizer. Call `model.compile(optimizer, loss)` first, "
            "with any learning rate."
        )
    per_call = getattr(model, "_steps_per_execution", None)
    per_call = getattr(model, "steps_per_execution", 1) if per_call is None else per_call.numpy()
    if per_call > 1:
        raise ValueError(
            "The loss of each update must be seen. Received a model compiled with "
            "`steps_per_execution` > 1. Compile it with 1 for the test."
        )
    if isinstance(data, tuple | list):
        raise TypeError(
            f"`data` must be batches as `fit` takes them. Received: a {type(data).__name__}. "
            "Make a dataset: `tf.data.Dataset.from_tensor_slices((x, y)).batch(32)`."
        )
