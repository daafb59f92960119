"""An exponential moving average of the weights, for evaluation and export."""

from contextlib import contextmanager

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.flavor import Callback
from keras_efficient.training import _train_step_hook as train_step_hook


class EMA(Callback):
    """Keep a moving average of the trainable weights; validate with it.

        a ← d·a + (1 - d)·θ,        d = min(decay, (1 + t) / (10 + t))

    after every update t (a skipped one is none, and microbatches are none). During `fit`,
    validation sees the averaged weights; the trained ones are back whatever happens in it. For
    everything else there is a context:

        with ema.averaged():
            model.evaluate(data)
            ke.export(model, "saved_models/a")

    Args:
        decay: float in (0, 1), d in the long run.
        warm_up: whether the average starts faster, as above; False takes `decay` from the start.

    Attributes:
        averages: list of `tf.Variable`s, in the order of `model.trainable_variables`; they stay
            after `fit`, and the next `fit` with the same callback goes on with them.

    Raises:
        ValueError: `decay` out of range; `averaged` before `fit` has made an average, or after
            other variables have become trainable.
        InputError: given to `evaluate` or `predict`.

    Example:
        >>> ema = ke.callbacks.EMA(decay=0.99)
        >>> model.fit(dataset, validation_data=dataset, callbacks=[ema])
        >>> with ema.averaged():
        ...     model.evaluate(dataset)

    Reference:
        Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging". Unlike
        `keras.callbacks.SwapEMAWeights` it always swaps back, after `predict` too (trap 19).
    """

    #: What `Resume` saves.
    resumes = ("averages",)

    def __init__(self, decay=0.999, *, warm_up=True):
        if not 0 < decay < 1:
            raise ValueError(f"`decay` must be between 0 and 1. Received: {decay!r}.")
        self.decay, self.warm_up = decay, warm_up
        self.averages, self._values, self._training = [], [], False

    def set_model(self, model):
        self.model, self._flavor = model, flavors.of(model)
        step = train_step_hook.attach(model)
        step.join(self, step.after_update)

    def on_train_begin(self, logs=None):
        self._training = True
        plain = type(self.model).evaluate.__get__(self.model)

        # A callback is not told when validation fails: swap around the whole of it. Nor is it told
        # when `fit` fails: what is not asked for by `fit` is left alone.
        def evaluate(*args, **kwargs):
            if not kwargs.get("_use_cached_eval_dataset"):
                return plain(*args, **kwargs)
            # An update that a `BatchSizeSchedule` has left to make is one of the trained weights.
            open_window = getattr(train_step_hook.of(self.model), "window", None)
            if open_window is not None:
                open_window.flush()
            with self.averaged():
                return plain(*args, **kwargs)

        vars(self.model)["evaluate"] = evaluate

    def on_train_end(self, logs=None):
        self._training = False
        vars(self.model).pop("evaluate", None)
        self._detach()

    def on_test_begin(self, logs=None):
        self._only_in_fit("evaluate")

    def on_predict_begin(self, logs=None):
        self._only_in_fit("predict")

    def _only_in_fit(self, name):
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

    def build(self, model):
        """Called by the training step before it is traced."""
        values = list(map(self._flavor.value, model.trainable_variables))
        if list(map(id, values)) != list(map(id, self._values)):
            self._values = values
            self.averages = [tf.Variable(v.read_value(), trainable=False) for v in values]

    def __call__(self):
        decay = tf.constant(self.decay)
        if self.warm_up:
            updates = tf.cast(self._flavor.optimizer(self.model).iterations, tf.float32)
            decay = tf.minimum(decay, (1.0 + updates) / (10.0 + updates))
        for average, value in zip(self.averages, self._values, strict=True):
            rate = tf.cast(1.0 - decay, average.dtype)
            average.assign_sub(rate * (average - value))

    # --- outside of it -------------------------------------------------------------------------

    @contextmanager
    def averaged(self):
        """A context in which the model has the averaged weights."""
        values = list(map(self._flavor.value, self.model.trainable_variables))
        if not self.averages or list(map(id, values)) != list(map(id, self._values)):
            raise ValueError(
                "There must be an average of the model's trainable weights. Received: "
                f"{len(self.averages)} averages for {len(values)} weights. Give the callback to "
                "`fit`, and do not change what is trainable before it is used."
            )
        trained = [value.numpy() for value in values]
        try:
            for value, average in zip(values, self.averages, strict=True):
                value.assign(average.read_value())
            yield
        finally:
            for value, before in zip(values, trained, strict=True):
                value.assign(before)
