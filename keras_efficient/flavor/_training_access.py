"""Run the parts of a compiled model's training step: forward pass, metrics, optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from keras_efficient.flavor._flat_logs import flat_logs
from keras_efficient.flavor._forward import EXAMPLES, Forward, common_weight
from keras_efficient.flavor._gradient_recorder import GradientRecorder
from keras_efficient.flavor._loss_scale import LossScale
from keras_efficient.flavor._patched import patched
from keras_efficient.flavor._typing import Model, Optimizer, Tensor, Variable

#: Attributes of a model that hold its traced functions.
_FUNCTIONS = ("train_function", "test_function", "predict_function")
#: Functions and short names of losses of numbers.
_REGRESSION_LOSSES = {
    *("mean_squared_error", "mse", "mean_absolute_error", "mae", "huber", "log_cosh"),
    *("mean_absolute_percentage_error", "mape", "mean_squared_logarithmic_error", "msle"),
}


class TrainingAccess(ABC):
    """The part of a flavor that runs and traces compiled models."""

    #: The library.
    keras: Any
    #: Whether the library converts the Python code of steps and layers with AutoGraph.
    uses_autograph: bool
    #: Whether `optimizer.apply_gradients` expects gradients of the scaled loss.
    applies_scaled_gradients: bool
    #: Whether `fit` shows the sum of the replicas' logs; otherwise it shows their mean.
    sums_logs: bool
    #: Attribute of a model: whether its `call` takes `training`.
    _training_flag: str

    # --- traced functions --------------------------------------------------------------------

    @contextmanager
    def untraced(self, model: Model) -> Iterator[None]:
        """Set the model's traced functions aside for the duration of the block."""
        traced = {name: getattr(model, name, None) for name in _FUNCTIONS}
        try:
            for name in traced:
                object.__setattr__(model, name, None)
            yield
        finally:
            for name, function in traced.items():
                object.__setattr__(model, name, function)

    def retrace(self, model: Model) -> None:
        """Discard the traced functions of a model whose variables have changed.

        If the optimizer was built for other variables than those that train now, its state is
        discarded too, but not its count of updates. If variables have only been frozen, the
        optimizer keeps its state.
        """
        for name in _FUNCTIONS:
            if getattr(model, name, None) is not None:
                object.__setattr__(model, name, None)
        optimizer = getattr(model, "optimizer", None)
        while optimizer is not None:
            self._reset_optimizer(optimizer, model)
            optimizer = getattr(optimizer, "inner_optimizer", None)

    @abstractmethod
    def _reset_optimizer(self, optimizer: Optimizer, model: Model) -> None:
        """Unbuild an optimizer that was built for other variables than the model trains now."""

    # --- forward pass ------------------------------------------------------------------------

    def call(self, model: Model, inputs: Any, training: bool) -> Any:
        """Call a model, with `training` if it takes that argument.

        Args:
            model: A built model.
            inputs: Nest of tensors or arrays.
            training: Whether to run in training mode.

        Returns:
            The model's outputs.
        """
        if getattr(model, self._training_flag):
            return model(inputs, training=training)
        return model(inputs)

    def run(self, model: Model, batches: Iterable) -> int:
        """Call a model in inference mode on batches of features.

        Functions run eagerly: a model that compiles its own call would otherwise not run the
        Python code of its layers, or keep it.

        Args:
            model: A built model.
            batches: Iterable of nests of tensors or arrays.

        Returns:
            The number of batches.
        """
        import tensorflow as tf

        before, count = tf.config.functions_run_eagerly(), 0
        tf.config.run_functions_eagerly(True)
        try:
            for batch in batches:
                self.call(model, tf.nest.map_structure(tf.convert_to_tensor, batch), training=False)
                count += 1
        finally:
            tf.config.run_functions_eagerly(before)
        return count

    def forward(self, model: Model, data: Any, labelled: bool = True) -> Forward:
        """Run a compiled model on a batch in training mode; reduce its loss, update its metrics.

        The loss is that of this batch alone, not divided by the number of replicas. The metric
        called "loss" is not updated: `track_loss` does that, once per optimizer update. Of data
        that is not `labelled` there is neither a compiled loss nor a metric.
        """
        x, y, sample_weight = self.keras.utils.unpack_x_y_sample_weight(data)
        with self.without_replica_scaling():
            y_pred = self.call(model, x, training=True)
            if not labelled:
                extra, added = self._regularization(model), self._added_losses(model)
                return Forward(None, extra, EXAMPLES, y_pred, added)
            if self.has_custom_compute_loss(model):
                loss = self._custom_loss(model, x, y, y_pred, sample_weight)
                extra, added, weight, recorded = None, None, EXAMPLES, []
            else:
                extra, added = self._regularization(model), self._added_losses(model)
                loss, recorded = self._compiled_loss(model, x, y, y_pred, sample_weight)
                if loss is None and added is None:
                    loss, extra = extra, None
                weight = common_weight([each.divisor for each in recorded] or [EXAMPLES])
        self._update_metrics(model, x, y, y_pred, sample_weight, added if loss is None else loss)
        return Forward(loss, extra, weight, y_pred, added, recorded)

    def has_custom_compute_loss(self, model: Model) -> bool:
        """Whether the model's class overrides `compute_loss`."""
        return type(model).compute_loss is not self.keras.Model.compute_loss

    @abstractmethod
    def _custom_loss(self, model: Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Tensor:
        """Call the model's own `compute_loss`."""

    @abstractmethod
    def _added_losses(self, model: Model) -> Tensor | None:
        """Return the sum of `add_loss` terms and activity regularizers, or None."""

    @abstractmethod
    def _regularization(self, model: Model) -> Tensor | None:
        """Return the sum of the regularizers of weights, or None."""

    @abstractmethod
    def _compiled_loss(
        self, model: Model, x: Any, y: Any, y_pred: Any, sample_weight: Any
    ) -> tuple[Any, list]:
        """Return the compiled loss, or None, and the `LossWeights` of its parts."""

    @abstractmethod
    def _update_metrics(
        self, model: Model, x: Any, y: Any, y_pred: Any, sample_weight: Any, loss: Any
    ) -> None:
        """Update the compiled metrics."""

    @abstractmethod
    def _losses(self, model: Model) -> list:
        """Return the loss objects of a compiled model; None for outputs without loss."""

    @abstractmethod
    def _compiled_parts(self, model: Model) -> list:
        """Return the containers of compiled losses and metrics; None for those that are missing."""

    @abstractmethod
    def recorded_losses(self) -> AbstractContextManager[list]:
        """Return a context with a list that receives the `LossWeights` of each loss inside."""

    def from_logits(self, model: Model) -> bool:
        """Whether a compiled loss takes the model's outputs as logits."""
        losses = [loss for loss in self._losses(model) if hasattr(loss, "get_config")]
        return any(loss.get_config().get("from_logits") for loss in losses)

    def has_loss(self, model: Model) -> bool:
        """Whether a compiled model has a loss."""
        return any(loss is not None for loss in self._losses(model))

    def has_independent_labels(self, model: Model) -> bool:
        """Whether a compiled loss takes each output as the probability of a label of its own."""
        return any(name.startswith("binary_") for name in self._loss_names(model))

    def predicts_numbers(self, model: Model) -> bool:
        """Whether a compiled loss is one of regression, whose outputs are no probabilities."""
        return any(name in _REGRESSION_LOSSES for name in self._loss_names(model))

    def ignores_labels(self, model: Model) -> bool:
        """Whether a compiled loss has a label that it ignores, and averages over the others."""
        losses = [loss for loss in self._losses(model) if hasattr(loss, "get_config")]
        return any(loss.get_config().get("ignore_class") is not None for loss in losses)

    def _loss_names(self, model: Model) -> list[str]:
        """Return the names of the functions of the compiled losses."""
        return [
            str(getattr(getattr(loss, "fn", None), "__name__", loss))
            for loss in self._losses(model)
        ]

    def is_ready(self, model: Model) -> bool:
        """Whether the model, its compiled loss and its metrics have all their variables."""
        parts = [*model._flatten_layers(), *self._compiled_parts(model)]
        return all(part is None or part.built for part in parts)

    def prepare(self, model: Model, data_spec: Any) -> None:
        """Create the missing variables of `is_ready` by tracing one evaluation step.

        Nothing is executed.

        Args:
            model: A compiled model.
            data_spec: Nest of specs of a batch; per-replica specs with several replicas.
        """
        import tensorflow as tf
        from tensorflow.python.framework import func_graph

        strategy = model.distribute_strategy

        @tf.autograph.experimental.do_not_convert
        def step(data):
            with self.library_context():
                return model.test_step(data)

        @tf.autograph.experimental.do_not_convert
        def run(data):
            # The step of the default strategy is in its replica already.
            inside = not tf.distribute.in_cross_replica_context()
            return step(data) if inside else strategy.run(step, (data,))

        # A tf.function would trace twice, because the first trace creates variables.
        with tf.init_scope():
            func_graph.func_graph_from_py_func("prepare", run, (data_spec,), {})

    @abstractmethod
    def without_replica_scaling(self) -> AbstractContextManager[Any]:
        """Keep the library from dividing losses by the number of replicas inside the block."""

    # --- metrics -----------------------------------------------------------------------------

    @abstractmethod
    def loss_tracker(self, model: Model) -> Any:
        """Return the metric called "loss"."""

    @contextmanager
    def frozen_loss_tracker(self, model: Model) -> Iterator[list]:
        """Keep the metric called "loss" from changing; yields a list of the values it received."""
        received = []
        update = {"update_state": lambda value, sample_weight=None: received.append(value)}
        with patched(self.loss_tracker(model), **update):
            yield received

    @contextmanager
    def frozen_metrics(self, model: Model) -> Iterator[None]:
        """Keep all metrics of the model from changing."""
        with ExitStack() as stack:
            for metric in self.all_metrics(model):
                stack.enter_context(patched(metric, update_state=lambda *args, **kwargs: None))
            yield

    def all_metrics(self, model: Model) -> list:
        """Return every metric of the model, including "loss" and those inside others."""
        return list(model.metrics)

    def build_loss_tracker(self, model: Model) -> None:
        """Make the metric called "loss" one of the model's, if it is compiled without a loss."""
        return

    @abstractmethod
    def track_loss(self, model: Model, loss: Tensor, examples: Any) -> None:
        """Record `loss`, the mean over `examples` examples, in the metric called "loss"."""

    def metrics_result(self, model: Model) -> dict:
        """Return `{name: value}` of the model's metrics: the logs of a step."""
        return dict(model.get_metrics_result())

    # --- optimizer ---------------------------------------------------------------------------

    def build_optimizer(self, model: Model) -> None:
        """Create the optimizer's variables outside of any graph.

        Both libraries create them while tracing the first update, and the graph then keeps a
        constant of zeros for each of them.
        """
        import tensorflow as tf

        optimizer = model.optimizer
        if not getattr(optimizer, "built", False) and hasattr(optimizer, "build"):
            with tf.init_scope():
                optimizer.build(model.trainable_variables)

    @abstractmethod
    def loss_scale(self, model: Model) -> LossScale | None:
        """Return the loss scaling of the compiled and built optimizer, or None."""

    def optimizer(self, model: Model) -> Optimizer:
        """Return the optimizer that makes the updates, without its loss-scaling wrapper."""
        return getattr(model.optimizer, "inner_optimizer", model.optimizer)

    def scale_loss(self, model: Model, loss: Tensor) -> Tensor:
        """Multiply `loss` by the optimizer's loss scale, dynamic or fixed."""
        import tensorflow as tf

        scaling = self.loss_scale(model)
        return loss if scaling is None else loss * tf.cast(scaling.scale, loss.dtype)

    def overwrites(self, variable: Variable) -> bool:
        """Whether a variable is set to its gradient, as scales of float8 are in Keras 3."""
        return getattr(variable, "overwrite_with_gradient", False)

    @abstractmethod
    def apply(
        self, model: Model, gradients: list, variables: list[Variable], replacements: list
    ) -> None:
        """Make one update with gradients already summed over replicas, divided and unscaled.

        Args:
            model: The model.
            gradients: One gradient per variable.
            variables: The variables.
            replacements: Pairs of a variable and its new value; see `overwrites`.
        """

    # --- `fit` -------------------------------------------------------------------------------

    def fit_overrides(self, model: Model) -> dict[str, Any]:
        """Return attributes of the model that correct what `fit` does before the first step."""
        return {}

    @abstractmethod
    def steps_per_execution(self, model: Model) -> int:
        """Return the number of steps that `fit` expects of one call of the train function."""

    def count_step(self, model: Model) -> None:
        """Do what the library's train function does after every step."""
        return

    @contextmanager
    def jit(self, model: Model, compiled: bool) -> Iterator[None]:
        """Set whether XLA compiles what is traced inside the block: the model's `jit_compile`."""
        with patched(model, _jit_compile=compiled):
            yield

    # --- a custom `train_step` ---------------------------------------------------------------

    def has_custom_train_step(self, model: Model) -> bool:
        """Whether the model's class overrides `train_step`, as Hugging Face's do."""
        return type(model).train_step is not self.keras.Model.train_step

    def own_loss(self, model: Model) -> Any:
        """Return the `HuggingFaceLoss` of a model that computes its loss itself, else None."""
        return None

    def library_context(self) -> AbstractContextManager[Any]:
        """Run layers as the library does: in tf_keras with `if` on tensors converted."""
        from tensorflow.python.autograph.core import ag_ctx

        status = ag_ctx.Status.ENABLED if self.uses_autograph else ag_ctx.Status.DISABLED
        return ag_ctx.ControlStatusCtx(status)

    def custom_step_logs(self, model: Model, train_step: Any, data: Any) -> list[str]:
        """Return the names in the logs of a custom `train_step`."""
        import tensorflow as tf

        if type(model).train_step.__module__.startswith("transformers."):
            return list(self.metrics_result(model))
        with tf.init_scope(), self.record_gradients(model, 1.0):
            spec = tf.nest.map_structure(tf.type_spec_from_value, data)

            @tf.autograph.experimental.do_not_convert
            def step(data):
                with self.library_context():
                    return train_step(data)

            logs = tf.function(step).get_concrete_function(spec).structured_outputs
        return list(flat_logs(logs))

    @contextmanager
    def record_gradients(
        self, model: Model, weight: Any, terms: Any = None, others: Sequence = ()
    ) -> Iterator[GradientRecorder]:
        """Record the gradients of a custom `train_step` instead of updating anything.

        Yields a `GradientRecorder`, whose gradients are multiplied by the scalar `weight` and by
        the loss scale. `weight` may be a function, called once the step has computed its loss.
        Gradients of the variables `others` are recorded too.
        This is safe under MirroredStrategy, which runs its replicas' threads one at a time between
        merge calls: a recorded step makes no merge call.
        """
        optimizer = model.optimizer
        recorder = GradientRecorder(self, model, weight, terms, others)
        names = [n for n in ("minimize", "apply", "apply_gradients") if hasattr(optimizer, n)]
        methods = {name: getattr(recorder, name) for name in names}
        with patched(optimizer, **methods), self.without_replica_scaling():
            yield recorder
