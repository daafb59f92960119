"""One callback base that both `keras.Model.fit` and `tf_keras.Model.fit` accept."""


def _default(method):
    """Mark a hook as doing nothing: Keras 3 then need not call it for every batch."""
    method._is_default = True
    return method


class Callback:
    """Base of every callback in this package.

    Each `fit` refuses the other library's callbacks (an AttributeError deep in the loop), because
    each asks its callbacks for a few private attributes. This base answers both, and belongs to
    neither. Override any of Keras' hooks; `self.model` and `self.params` are set as usual.
    """

    # tf_keras: logs arrive as numbers, and every worker calls the hooks.
    _supports_tf_logs = False
    _chief_worker_only = None

    model = None
    params = None

    def set_model(self, model):
        self.model = model

    def set_params(self, params):
        self.params = params

    def _listens(self, mode):
        """Whether a subclass overrides a batch hook of `mode` (tf_keras calls no others)."""
        return any(
            not getattr(getattr(type(self), f"on_{name}"), "_is_default", False)
            for name in (f"{mode}_batch_begin", f"{mode}_batch_end")
        )

    def _implements_train_batch_hooks(self):
        return self._listens("train")

    def _implements_test_batch_hooks(self):
        return self._listens("test")

    def _implements_predict_batch_hooks(self):
        return self._listens("predict")

    @_default
    def on_epoch_begin(self, epoch, logs=None):
        pass

    @_default
    def on_epoch_end(self, epoch, logs=None):
        pass

    @_default
    def on_train_begin(self, logs=None):
        pass

    @_default
    def on_train_end(self, logs=None):
        pass

    @_default
    def on_test_begin(self, logs=None):
        pass

    @_default
    def on_test_end(self, logs=None):
        pass

    @_default
    def on_predict_begin(self, logs=None):
        pass

    @_default
    def on_predict_end(self, logs=None):
        pass

    @_default
    def on_train_batch_begin(self, batch, logs=None):
        pass

    @_default
    def on_train_batch_end(self, batch, logs=None):
        pass

    @_default
    def on_test_batch_begin(self, batch, logs=None):
        pass

    @_default
    def on_test_batch_end(self, batch, logs=None):
        pass

    @_default
    def on_predict_batch_begin(self, batch, logs=None):
        pass

    @_default
    def on_predict_batch_end(self, batch, logs=None):
        pass
