"""Exponential moving average of the weights, for evaluation and export."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.callbacks._validation_wrapper import ValidationWrapper
from keras_efficient.flavor import Callback
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._checks import TEMPORARY
from keras_efficient.training import _train_step_hook as train_step_hook


class EMA(Callback):
    """Keep an exponential moving average of the trainable weights, and validate with it.

        a ← d·a + (1 - d)·θ,        d = min(decay, (1 + t) / (10 + t))

    after every update t. A skipped update is not counted, nor is a microbatch. During `fit`,
    validation uses the averaged weights; the trained ones are restored also if it fails. For
    everything else there is a context:

        with ema.averaged():
            model.evaluate(data)
            ke.export(model, "saved_models/a")

    Args:
        decay: float in (0, 1), the limit of d. Default: 0.999.
        warm_up: bool, whether d starts smaller, as above; False uses `decay` from the start.
            Default: True.

    Attributes:
        averages: list of `tf.Variable`s, in the order of `model.trainable_variables`; they stay
            after `fit`, and the next `fit` with the same callback continues with them.

    Raises:
        ValueError: `decay` is out of range; or `averaged` is used before `fit` has made an
            average, or after other variables have become trainable.
        InputError: the callback is given to `evaluate` or `predict`.

    Examples:
        >>> ema = ke.callbacks.EMA(decay=0.99)
        >>> model.fit(dataset, validation_data=dataset, callbacks=[ema])
        >>> with ema.averaged():
        ...     model.evaluate(dataset)

    Reference:
        Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging". Unlike
        `keras.callbacks.SwapEMAWeights` it always swaps back, after `predict` too.
    """

    #: Attributes that `Resume` saves.
    resumes = ("averages",)

    def __init__(self, decay: float = 0.999, *, warm_up: bool = True):
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must be between 0 and 1. Received: {decay!r}.")
        self.decay, self.warm_up = decay, warm_up
        self.averages, self._values, self._training = [], [], False

    def set_model(self, model: Any):
        self.model, self._flavor = model, flavors.of(model)
        self._validation = ValidationWrapper(model, self._validate, self._is_joined)
        step = train_step_hook.attach(model)
        step.join(self, step.after_update)

    def on_train_begin(self, logs: dict | None = None):
        self._training = True
        self._validation.install()

    def on_train_end(self, logs: dict | None = None):
        self._training = False
        self._validation.remove()
        self._detach()

    def on_test_begin(self, logs: dict | None = None):
        self._check_in_fit("evaluate")

    def on_predict_begin(self, logs: dict | None = None):
        self._check_in_fit("predict")

    def _validate(self, evaluate):
        # The update of a `BatchSizeSchedule`'s incomplete window is one of the trained weights.
        window = getattr(train_step_hook.of(self.model), "window", None)
        if window is not None:
            window.flush()
        with self.averaged():
            return evaluate()

    def _is_joined(self):
        """Whether this callback takes part in the `fit` that runs."""
        hook = train_step_hook.of(self.model)
        return hook is not None and self in hook.after_update

    def _check_in_fit(self, name):
        if not self._training:
            self._detach()
            raise InputError(
                "EMA is a callback of `fit`, which cannot promise to swap back after an error in "
                f"`{name}`. Received: {name}(callbacks=[EMA]). Write `with ema.averaged(): "
                f"model.{name}(...)`."
            )

    def _detach(self):
        train_step_hook.attach(self.model).leave(self)
        train_step_hook.detach_if_idle(self.model)

    # --- in the training step ------------------------------------------------------------------

    def build(self, model: Any):
        """Create the averages, before the training step is traced."""
        values = list(map(self._flavor.value, model.trainable_variables))
        if list(map(id, values)) != list(map(id, self._values)):
            self._values = values
            self.averages = [tf.Variable(v.read_value(), trainable=False) for v in values]

    def __call__(self):
        """Move the averages, in the graph after an update."""
        decay = tf.constant(self.decay)
        if self.warm_up:
            updates = tf.cast(self._flavor.optimizer(self.model).iterations, tf.float32)
            decay = tf.minimum(decay, (1.0 + updates) / (10.0 + updates))
        for average, value in zip(self.averages, self._values, strict=True):
            rate = tf.cast(1.0 - decay, average.dtype)
            average.assign_sub(rate * (average - value))

    # --- outside of it -------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averaged weights within the context.

        Methods that change the model's weights, such as `ke.merge` and `ke.prune`, raise a
        ValueError inside of it, because the trained weights are restored at its end. For the same
        reason the end raises one if the weights were changed otherwise, as by `fit`.
        """
        values = list(map(self._flavor.value, self.model.trainable_variables))
        if not self.averages or list(map(id, values)) != list(map(id, self._values)):
            raise ValueError(
                "There must be an average of the model's trainable weights. Received: "
                f"{len(self.averages)} averages for {len(values)} weights. Give the callback to "
                "`fit`, and do not change what is trainable before it is used."
            )
        trained = [value.numpy() for value in values]
        context = "`ema.averaged()`"
        with patched(self.model, **{TEMPORARY: context}):
            try:
                for value, average in zip(values, self.averages, strict=True):
                    value.assign(average.read_value())
                yield
                changed = [
                    value.name
                    for value, average in zip(values, self.averages, strict=True)
                    if value.numpy().tobytes() != average.numpy().tobytes()
                ]
            finally:
                for value, before in zip(values, trained, strict=True):
                    value.assign(before)
        if changed:
            raise ValueError(
                f"Weights must not change inside of {context}, which has now restored the trained "
                f"ones. Received: a block that changed {changed[0]!r}. Train or load weights "
                "outside of the `with` block."
            )
