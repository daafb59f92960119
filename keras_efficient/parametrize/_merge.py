"""Fold the chains of a model into plain weights, for good."""

from dataclasses import dataclass

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._layer_paths import layer_paths
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains
from keras_efficient.parametrize._plain_model import save_as_before
from keras_efficient.parametrize._weights import check_built

#: A layer's attribute with what stands in for its own variables (`ke.share_weights`).
TIES = "_keras_efficient_ties"


@dataclass(frozen=True)
class MergeReport:
    """What `merge` did.

    Attributes:
        folded: dict of a weight's path to what was folded into it.
        dropped: tuple of what has no plain form and computes no longer, by layer.
    """

    folded: dict
    dropped: tuple = ()

    def __str__(self):
        lines = [f"merged: {len(self.folded)} weights are plain again"]
        lines += [f"  {path}: {', '.join(names)}" for path, names in self.folded.items()]
        lines += [f"  no plain form, taken off: {what}" for what in self.dropped]
        return "\n".join(lines)


def merge(model) -> MergeReport:
    """Fold every transform into plain weights: the model is again what it was before, outside.

    Each weight gets the value it was seen with (masked, clustered, rounded, with its low-rank
    delta); layers have their original classes back, frozen weights train again, and the transforms'
    variables are gone. What `ke.share_weights` made one weight is each layer's own again. Outputs stay the
    same, to float rounding. The rounding of activations
    (`ke.quantize_aware(activation_bits=8)`) has no plain form: it is taken off, and the report
    says so; export before merging to keep its ranges.

    Args:
        model: a model with transforms.

    Returns:
        A `Merged`, to print.

    Raises:
        ValueError: the model has no transforms; it has adapters or prefixes, which are no function
            of a weight; or another strategy's scope is entered than the model was made under.

    Example:
        >>> report = ke.lora(model, rank=2)
        >>> print(ke.merge(model))  # doctest: +ELLIPSIS
        merged: ...
    """
    check_built(model, "ke.merge")
    ties = _ties(model)
    if not parametrized_layers(model) and not ties:
        raise ValueError(
            f"ke.merge folds transforms into weights. Received: {model.name!r}, which has none. "
            "Apply ke.prune, ke.lora or the like first, or leave ke.merge out."
        )
    check_strategy(model, "ke.merge")
    stuck = [
        f"{part.name} of {view.layer.name!r}"
        for view in parametrized_layers(model)
        for part in view.calls
        if not part.droppable
    ]
    if stuck:
        raise ValueError(
            "ke.merge folds functions of a weight. Received: a model with "
            f"{', '.join(stuck[:3])}{', ...' if len(stuck) > 3 else ''}, which are none. ke.export "
            "writes the model with them; the report's `remove()` takes them off."
        )
    folded = {}
    for chain in transform_chains(model):
        folded[chain.weight.path] = tuple(t.describe() for t in chain.transforms)
        value = chain.value()
        for transform in list(chain.transforms):
            chain.remove(transform)
        chain.weight.value.assign(value)
    dropped = []
    for view in parametrized_layers(model):
        for part in list(view.calls):
            if not part.exact:
                dropped.append(f"{part.describe()} of {view.path!r}")
            view.detach(part)
    freeze(
        model,
        [weight for view in parametrized_layers(model) for weight in view.frozen],
        trainable=True,
    )
    save_as_before(model)
    with model.distribute_strategy.scope():
        for tie in ties:
            folded.setdefault(tie.path, (tie.describe(),))
            tie.undo()
    if ties:
        flavors.of(model).renew(model)
    return MergeReport(folded, tuple(dropped))


def _ties(model):
    """What shared variables have in place of a layer's own, the latest first."""
    inside = [model, *(layer for _, layer in layer_paths(model))]
    found = [tie for layer in inside for tie in vars(layer).get(TIES, ())]
    return sorted(found, key=lambda tie: -tie.number)


def check_strategy(model, caller):
    """Refuse to change a model's variables under a strategy that is not theirs."""
    # (Inside a scope, a model made outside of any takes that for its own.)
    variable = flavors.of(model).value(model.weights[0])
    own = getattr(variable, "distribute_strategy", None)
    here = tf.distribute.get_strategy()
    if tf.distribute.has_strategy() and here is not own:
        kind = "no strategy" if own is None else type(own).__name__
        raise ValueError(
            f"{caller} must run under the strategy that the model was made under. Received: a model "
            f"of {kind} inside the scope of another {type(here).__name__}. Leave the "
            "`with strategy.scope()` block first."
        )
