"""Learning-rate range test: train with a rising rate, and find where the loss falls steepest."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.callbacks._trial_run import trial_run
from keras_efficient.checkpoint._variables import build_optimizer, optimizer_chain
from keras_efficient.flavor import Callback

#: The loss has diverged when it exceeds the best by this many times the best.
_RISE = 3.0


@dataclass(frozen=True, eq=False)
class LearningRateReport:
    """Result of `find_learning_rate`.

    Attributes:
        rates: float array `[updates]`, the learning rates tried.
        losses: float array `[updates]`, the loss of each update's batch before the update.
        smoothed: float array `[updates]`, `losses` without the noise of single batches.
        suggestion: float, the rate at which the smoothed loss falls steepest over the logarithm
            of the rate; None if it never fell.
        diverged_at: float, the rate at which the test stopped because the loss had risen to four
            times its best or was not finite (that loss is not in `losses`); None if neither.
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

    def plot(self, path: str | PathLike):
        """Draw loss over rate into a file, in the format of its suffix: .png, .svg or .pdf."""
        # Not pyplot, which keeps every figure and may need a display.
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
        # The range of the smoothed loss: single batches may lie far above.
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
    model: Any,
    data: Any,
    *,
    low: float = 1e-7,
    high: float = 1.0,
    steps: int = 100,
    smoothing: float = 0.9,
    plot: str | PathLike | None = None,
) -> LearningRateReport:
    """Train with an exponentially rising learning rate, and suggest the one of steepest descent.

        rate(i) = low · (high / low)^(i / (steps - 1))        i = 0 … steps - 1
        smoothed(i) = Σⱼ β^|i - j| loss(j) / Σⱼ β^|i - j|

    The test ends early when the smoothed loss of the updates so far is four times its best, or a
    loss is not finite. Then everything is restored, also after an error or an interrupt: the
    model's weights and seeds, the optimizer's variables, counter, rate or schedule, and the
    metrics. For that, weights and moments are copied to the host's memory. An iterator passed as
    `data`, and the order of a shuffled dataset, are not restored.

    Use the suggestion as the highest rate of a schedule. It is valid for this optimizer, this
    batch size and this state of the weights.

    Args:
        model: a compiled `keras` or `tf_keras` model; the rate of its optimizer does not matter.
        data: batches as `fit` takes them: a `tf.data.Dataset`, or a `PyDataset` or `Sequence` of
            the library. It is started again if it has fewer batches than `steps`.
        low: float > 0, the first rate. Default: 1e-7.
        high: float > `low`, the last rate. Default: 1.0.
        steps: int >= 10, maximum number of updates. Default: 100.
        smoothing: float in [0, 1), β; 0.9 averages over about ten updates in each direction,
            which suits 100 steps; use less for fewer. 0 does not smooth. Default: 0.9.
        plot: path of an image of the curve to write. Default: None.

    Returns:
        A `LearningRateReport` with the curve, the suggestion, and `plot(path)`.

    Raises:
        ValueError: a number is out of range; the model is not compiled, or not built and `data`
            is a generator; `steps_per_execution` is more than 1; there is no batch; or the loss is
            not finite before the first update.
        TypeError: `data` is a tuple or list of arrays, or the optimizer has no learning rate.

    Examples:
        >>> report = ke.find_learning_rate(model, dataset, steps=20)
        >>> print(report)
        >>> model.compile(ke.optimizers.AdamW(report.suggestion or 1e-3), loss)

    Reference:
        Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3. The
        steepest point is the suggestion of fastai's `lr_find`.
    """
    _check(model, data, low, high, steps, smoothing)
    _build(model, data)
    test = _RangeTest(np.geomspace(low, high, int(steps)), smoothing)
    with _rate_of(model) as (rate, variables), trial_run(model, variables):
        test.rate = rate
        model.fit(data, verbose=0, callbacks=[test], **_length(data, int(steps)))
    report = test.report()
    if plot is not None:
        report.plot(plot)
    return report


def smooth(losses: Any, smoothing: float) -> np.ndarray:
    """Average each loss with those before and after it, which does not shift the curve."""
    count = len(losses)
    weights = float(smoothing) ** np.abs(np.arange(1 - count, count))
    total, weight = (
        np.convolve(values, weights)[count - 1 : 2 * count - 1]
        for values in (losses, np.ones(count))
    )
    return total / weight


def steepest(rates: Any, smoothed: Any) -> float | None:
    """Return the rate of steepest descent before the lowest loss; None if there is no descent."""
    lowest = int(np.argmin(smoothed))
    if lowest == 0:
        return None
    slopes = np.gradient(smoothed, np.log(rates))[: lowest + 1]
    index = int(np.argmin(slopes))
    return float(rates[index]) if slopes[index] < 0 else None


class _RangeTest(Callback):
    """Sets the rate before each update, and records the loss after it."""

    def __init__(self, rates, smoothing):
        self.rates, self.smoothing = rates, smoothing
        self.losses, self.diverged = [], False
        self.rate: Any = None
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
        loss = float((logs or {})["loss"])
        if not self.losses and not np.isfinite(loss):
            raise ValueError(
                "The loss must be finite before the first update. Received: "
                f"loss={loss}. Look for inf or nan in the first batch and in the weights, and for "
                "overflows in float16."
            )
        # What `smooth` returns for the last loss; a non-finite loss makes it non-finite.
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

    def report(self):
        if not self.losses:
            raise ValueError(
                "`data` must have at least one batch. Received: an empty one. Check how it is "
                "filtered and batched, for example with `drop_remainder`."
            )
        count = len(self.losses)
        rates, losses = self.rates[:count], np.array(self.losses)
        smoothed = smooth(losses, self.smoothing)
        return LearningRateReport(
            rates,
            losses,
            smoothed,
            steepest(rates, smoothed),
            float(self.rates[count]) if self.diverged else None,
        )


@contextmanager
def _rate_of(model):
    """Yield the variable that is the optimizer's learning rate, and the variables to restore.

    A schedule, which cannot be assigned to, is replaced within the context.
    """
    flavor = flavors.of(model)
    *_, optimizer = optimizer_chain(model.optimizer)
    # tf_keras' legacy optimizers, such as those of Model Garden, keep it in a dict.
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
        # The traced step contains the other one.
        model.train_function = None

    with model.distribute_strategy.scope():
        variable = tf.Variable(tf.zeros([]), trainable=False)
    put(Tried())
    try:
        yield variable, []
    finally:
        put(held)


def _build(model, data):
    """Create all variables, so that they can be copied."""
    flavor = flavors.of(model)
    with model.distribute_strategy.scope():
        if not flavor.is_ready(model) and (spec := _spec(data)) is not None:
            flavor.prepare(model, spec)
        if not model.built:
            raise ValueError(
                "The model must be built before its weights can be copied. Received: "
                f"{model.name!r} without weights, and data of type {type(data).__name__}, which "
                "has no known shapes. Call the model once on a batch."
            )
        build_optimizer(model)


def _spec(data):
    """Return the shapes and dtypes of a batch with any number of examples, or None."""
    if isinstance(data, tf.data.Dataset):
        return data.element_spec
    if not hasattr(data, "__getitem__"):
        return None
    return tf.nest.map_structure(
        lambda array: tf.TensorSpec([None, *array.shape[1:]], array.dtype), tuple(data[0])
    )


def _length(data, steps):
    """Return the arguments of `fit` for `steps` updates, in several epochs if necessary."""
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
            f"smoothing={smoothing}. The defaults cover seven decades in 100 updates."
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
            "The range test needs the loss of each update. Received: a model compiled with "
            "`steps_per_execution` > 1. Compile it with 1 for the test."
        )
    if isinstance(data, tuple | list):
        raise TypeError(
            f"`data` must be batches as `fit` takes them. Received: a {type(data).__name__}. "
            "Make a dataset: `tf.data.Dataset.from_tensor_slices((x, y)).batch(32)`."
        )
