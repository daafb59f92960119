"""A callback base class that the `fit` of both Keras 3 and tf_keras accepts."""

from typing import Any


def _default(method):
    """Mark a hook that does nothing, so that Keras 3 does not call it for every batch."""
    method._is_default = True
    return method


class Callback:
    """Base class of every callback in this package.

    Each library's `fit` fails with an AttributeError on the other's callbacks, because it reads
    private attributes of them. This class has those of both and belongs to neither. Override any
    of Keras' hooks, such as `on_epoch_end(epoch, logs)`.

    Attributes:
        model: The model, set by `fit`, `evaluate` and `predict`; None before.
        params: Dict with "epochs", "steps" and "verbose", set likewise; None before.

    Examples:
        >>> class PrintLoss(ke.flavor.Callback):
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         print(epoch, sorted(logs))
        >>> history = model.fit(dataset, verbose=0, callbacks=[PrintLoss()])
        0 ['loss']

    Reference:
        `keras.callbacks.Callback`.
    """

    # For tf_keras: logs arrive as numbers, and every worker calls the hooks.
    _supports_tf_logs = False
    _chief_worker_only = None

    model: Any = None
    params: Any = None

    def set_model(self, model: Any) -> None:
        """Store the model; called by Keras."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Store the parameters of `fit`; called by Keras."""
        self.params = params

    def _overrides_batch_hook(self, mode):
        """Whether a subclass overrides a batch hook of `mode`; tf_keras calls no others."""
        return any(
            not getattr(getattr(type(self), f"on_{name}"), "_is_default", False)
            for name in (f"{mode}_batch_begin", f"{mode}_batch_end")
        )

    def _implements_train_batch_hooks(self):
        return self._overrides_batch_hook("train")

    def _implements_test_batch_hooks(self):
        return self._overrides_batch_hook("test")

    def _implements_predict_batch_hooks(self):
        return self._overrides_batch_hook("predict")

    @_default
    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Run at the start of each epoch of `fit`."""

    @_default
    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Run at the end of each epoch of `fit`."""

    @_default
    def on_train_begin(self, logs: dict | None = None) -> None:
        """Run at the start of `fit`."""

    @_default
    def on_train_end(self, logs: dict | None = None) -> None:
        """Run at the end of `fit`."""

    @_default
    def on_test_begin(self, logs: dict | None = None) -> None:
        """Run at the start of `evaluate` or of validation."""

    @_default
    def on_test_end(self, logs: dict | None = None) -> None:
        """Run at the end of `evaluate` or of validation."""

    @_default
    def on_predict_begin(self, logs: dict | None = None) -> None:
        """Run at the start of `predict`."""

    @_default
    def on_predict_end(self, logs: dict | None = None) -> None:
        """Run at the end of `predict`."""

    @_default
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Run before each training batch."""

    @_default
    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Run after each training batch."""

    @_default
    def on_test_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Run before each evaluation batch."""

    @_default
    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Run after each evaluation batch."""

    @_default
    def on_predict_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Run before each prediction batch."""

    @_default
    def on_predict_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Run after each prediction batch."""
