"""Gradual unfreezing: train a model stage by stage, from its head down."""

from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.architecture._weights import EMBEDDING, KERNEL, OTHER, all_weights
from keras_efficient.checkpoint._variables import build_optimizer, hook_of
from keras_efficient.flavor import Callback
from keras_efficient.optimizers._layer_depths import layer_depths
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._select import select
from keras_efficient.training import _train_step_hook as train_step_hook


class GradualUnfreezing(Callback):
    """Train the head first, and unfreeze one more stage of the model every few epochs.

    In epoch e, counted from 0, the stages 0 to e // `epochs_per_stage` train. By default the first
    stage is the head, followed by the blocks from the last to the first, and the embeddings. The
    training step is traced again at each stage; the optimizer keeps its state. When `fit` ends,
    the weights that were trainable before it are trainable again. After a `fit` that failed, the
    next one with this callback, or `ke.peft.unfreeze(model)`, does that.

    The discriminative learning rates of Howard & Ruder are an option of the optimizers:
    `ke.optimizers.AdamW(..., layerwise_decay=0.95)`. An `EMA` starts afresh at each stage.

    Adds `stage` to the epoch's logs.

    Args:
        epochs_per_stage: int >= 1, number of epochs between stages. Default: 1.
        stages: list of the weights that each stage unfreezes, in the form of the `layers` of
            `parametrize.select`, for example ["head|pooler", "layer_1", "layer_0"]. Weights that
            match several belong to the first; weights that match none train from the start, as do
            the variables of `ke.lora` and the like. Default: None, the stages above, for models
            with a single stack of numbered layers.

    Attributes:
        stage: int, index of the last stage that trains at present.
        paths: list of the paths of each stage's weights, set when `fit` begins. Weights that were
            frozen before, for example by `ke.lora`, are in none.

    Raises:
        ValueError: `epochs_per_stage` or `stages` is not of that form; in `fit`, if `stages` match
            no weights, or the model has no single stack of numbered layers and `stages` is None.
        InputError: in `fit`, if the model is not built.

    Examples:
        >>> gradual = ke.callbacks.GradualUnfreezing(stages=["bias", "kernel"])
        >>> model.fit(dataset, epochs=3, callbacks=[gradual])
        >>> [len(paths) for paths in gradual.paths]
        [1, 1]

    Reference:
        Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification".
    """

    def __init__(self, epochs_per_stage: int = 1, stages: list[str] | None = None):
        if type(epochs_per_stage) is not int or epochs_per_stage < 1:
            raise ValueError(
                f"`epochs_per_stage` must be an int >= 1. Received: {epochs_per_stage!r}."
            )
        if stages is not None and (not isinstance(stages, list | tuple) or len(stages) < 2):
            raise ValueError(
                "`stages` must be a list of two or more, in the order in which they are unfrozen: "
                f"['classifier', 'layer_1', 'layer_0|embeddings']. Received: {stages!r}."
            )
        self.epochs_per_stage, self.stages = epochs_per_stage, stages
        self.stage, self.paths, self._weights = 0, [], []
        # Number of stages that train.
        self._unfrozen = 0

    def set_model(self, model: Any):
        if self._weights:
            self._unfreeze(len(self._weights))
        self.model, self._weights = model, []
        step = train_step_hook.attach(model)
        step.join(self, step.requesters)

    def on_train_begin(self, logs: dict | None = None):
        model = self.model
        if not getattr(model, "built", False):
            raise InputError(
                "GradualUnfreezing needs a built model, because it freezes weights. "
                f"Received: {model.name!r}, not built. Call it on a batch first."
            )
        stages = _by_depth(model) if self.stages is None else _chosen(model, self.stages)
        flavor = flavors.of(model)

        def trains(weight):
            return any(flavor.is_trainable(layer, weight.variable) for layer, _ in weight.owners)

        self._weights = [[w for w in stage if trains(w)] for stage in stages]
        self.paths = [[w.path for w in stage] for stage in self._weights]
        self._unfrozen = len(stages)
        # While all are trainable, so that the optimizer has moments for each.
        with model.distribute_strategy.scope():
            build_optimizer(model)
        self._unfreeze(1)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None):
        self.stage = min(epoch // self.epochs_per_stage, len(self._weights) - 1)
        self._unfreeze(self.stage + 1)

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        if logs is not None:
            logs["stage"] = self.stage

    def on_train_end(self, logs: dict | None = None):
        self._unfreeze(len(self._weights))
        self._weights = []
        train_step_hook.attach(self.model).leave(self)
        train_step_hook.detach_if_idle(self.model)

    def _unfreeze(self, stages):
        """Make the first `stages` stages trainable, and freeze the others."""
        more = stages > self._unfrozen
        low, high = sorted((stages, self._unfrozen))
        changed = [weight for stage in self._weights[low:high] for weight in stage]
        self._unfrozen = stages
        if changed:
            freeze(self.model, changed, trainable=more)
            # `fit` calls the model's present train function at each step.
            hook_of(self.model).retrace()


def _by_depth(model):
    weights = all_weights(model)
    try:
        depths, head = layer_depths([weight.path for weight in weights])
    except ValueError as error:
        raise ValueError(
            "The default stages need a model with a single stack of numbered layers. Received: "
            f"{model.name!r}, which has none. For such a model, give the callback `stages`."
        ) from error
    stages = [
        [w for w, depth in zip(weights, depths, strict=True) if depth == of]
        for of in range(head, -1, -1)
    ]
    return [stage for stage in stages if stage]


def _chosen(model, stages):
    found, taken = [], set()
    for layers in stages:
        weights = select(
            model, layers, (KERNEL, EMBEDDING, OTHER), caller="GradualUnfreezing's `stages`"
        )
        found.append([w for w in weights if id(w.variable) not in taken])
        taken |= {id(w.variable) for w in weights}
    return found
