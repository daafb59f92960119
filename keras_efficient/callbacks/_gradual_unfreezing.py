"""Let a model's weights train stage by stage, from its head down."""

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.checkpoint import _variables as variables_module
from keras_efficient.flavor import Callback
from keras_efficient.optimizers._layer_depths import layer_depths
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL, OTHER, all_weights
from keras_efficient.training import _train_step_hook as train_step_hook


class GradualUnfreezing(Callback):
    """Train the head first, and let one more stage of the model train with every few epochs.

    In epoch e, counted from 0, the stages 0 to e // `epochs_per_stage` train. By default the first
    is the head, then come the blocks from the last to the first, then the embeddings. The training
    step is traced anew at each stage; the optimizer keeps what it knows. When `fit` ends, all
    weights train that trained before it. (After a `fit` that failed, those stay frozen that were;
    the next one with this callback, or `ke.peft.unfreeze(model)`, lets them train again.)

    Lower rates for lower layers, Howard & Ruder's discriminative ones, are the optimizer's:
    `ke.optimizers.AdamW(..., layerwise_decay=0.95)`. An `EMA` starts anew at each stage.

    Adds `stage` to the epoch's logs.

    Args:
        epochs_per_stage: int >= 1. Default 1.
        stages: list of which weights a stage lets train, each as `layers` of
            `parametrize.select`: ["head|pooler", "layer_1", "layer_0"]. What fits several belongs
            to the first; what fits none trains from the start, as do the variables of ke.lora and
            the like. Default: as above, for models with one stack of numbered layers.

    Attributes:
        stage: int, the last stage that trains at present.
        paths: list of the paths of each stage's weights, set when `fit` begins. Weights that were
            frozen before (by ke.lora, say) are in none.

    Raises:
        ValueError: `epochs_per_stage` or `stages` will not do; in `fit`, `stages` fit no weights,
            or the model has no stack of numbered layers and no `stages` are given.
        InputError: in `fit`, the model is not built.

    Example:
        >>> gradual = ke.callbacks.GradualUnfreezing(stages=["bias", "kernel"])
        >>> model.fit(dataset, epochs=3, callbacks=[gradual])
        >>> [len(paths) for paths in gradual.paths]
        [1, 1]

    Reference:
        Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification".
    """

    # What `Resume` needs to know is the epoch.

    def __init__(self, epochs_per_stage=1, stages=None):
        if type(epochs_per_stage) is not int or epochs_per_stage < 1:
            raise ValueError(
                f"`epochs_per_stage` must be an int >= 1. Received: {epochs_per_stage!r}."
            )
        if stages is not None and (not isinstance(stages, list | tuple) or len(stages) < 2):
            raise ValueError(
                "`stages` must be a list of two or more, the first to train first: ['classifier', "
                f"'layer_1', 'layer_0|embeddings']. Received: {stages!r}."
            )
        self.epochs_per_stage, self.stages = epochs_per_stage, stages
        self.stage, self.paths, self._weights = 0, [], []
        #: How many stages train.
        self._free = 0

    def set_model(self, model):
        if self._weights:
            self._let(len(self._weights))
        self.model, self._weights = model, []
        step = train_step_hook.attach(model)
        step.join(self, step.requesters)

    def on_train_begin(self, logs=None):
        model = self.model
        if not getattr(model, "built", False):
            raise InputError(
                "GradualUnfreezing needs a built model: before that there are no weights. "
                f"Received: {model.name!r}, not built. Call it on a batch first."
            )
        stages = _by_depth(model) if self.stages is None else _chosen(model, self.stages)
        flavor = flavors.of(model)
        trains = lambda w: any(flavor.is_trainable(layer, w.variable) for layer, _ in w.owners)  # noqa: E731
        self._weights = [[w for w in stage if trains(w)] for stage in stages]
        self.paths = [[w.path for w in stage] for stage in self._weights]
        self._free = len(stages)
        # While all train, so that the optimizer has a place for each.
        with model.distribute_strategy.scope():
            variables_module.build_optimizer(model)
        self._let(1)

    def on_epoch_begin(self, epoch, logs=None):
        self.stage = min(epoch // self.epochs_per_stage, len(self._weights) - 1)
        self._let(self.stage + 1)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["stage"] = self.stage

    def on_train_end(self, logs=None):
        self._let(len(self._weights))
        self._weights = []
        train_step_hook.attach(self.model).leave(self)
        train_step_hook.detach_if_idle(self.model)

    def _let(self, stages):
        """Let so many stages train."""
        more = stages > self._free
        low, high = sorted((stages, self._free))
        changed = [weight for stage in self._weights[low:high] for weight in stage]
        self._free = stages
        if changed:
            freeze(self.model, changed, trainable=more)
            # (`fit` calls the function that the model has at each step.)
            train_step_hook.of(self.model).retrace()


def _by_depth(model):
    weights = all_weights(model)
    try:
        depths, head = layer_depths([weight.path for weight in weights])
    except ValueError as error:
        raise ValueError(
            "The stages are the head, the numbered layers of a model and its embeddings. Received: "
            f"{model.name!r}, which has not one stack of such. For such a model, give the callback "
            "`stages`."
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
