"""Fold all transforms of a model into plain weights, permanently."""

from dataclasses import dataclass

from keras_efficient import flavor as flavors
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains
from keras_efficient.parametrize._plain_model import restore_save_methods

#: Attribute of a layer with the ties of its variables to those of others (`ke.share_weights`).
TIES = "_keras_efficient_ties"


@dataclass(frozen=True)
class MergeReport:
    """Result of `merge`.

    Attributes:
        folded: dict of a weight's path to a tuple of descriptions of what was folded into it.
        dropped: tuple of descriptions of what cannot be folded into a weight and was removed.
    """

    folded: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...] = ()

    def __str__(self):
        lines = [f"merged: {len(self.folded)} weights are plain again"]
        lines += [f"  {path}: {', '.join(names)}" for path, names in self.folded.items()]
        lines += [f"  no plain form, taken off: {dropped}" for dropped in self.dropped]
        return "\n".join(lines)


def merge(model: Model) -> MergeReport:
    """Fold every transform into plain weights and restore the model's original layers.

    Each weight gets its transformed value: masked, clustered, rounded, or with its low-rank delta
    added. Layers get their original classes back, frozen weights train again, and the variables of
    the transforms are deleted. Layers that share weights by `ke.share_weights` get variables of
    their own. Outputs stay the same up to float rounding. Only the rounding of activations
    (`ke.quantize_aware(activation_bits=8)`) has no plain form: it is removed, and the report says
    so. To keep its ranges, export the model before merging.

    Args:
        model: a built Keras 3 or tf_keras model with transforms.

    Returns:
        A `MergeReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is not built or has no transforms; it has adapters or prefixes, which
            are not functions of a weight; or another strategy's scope is entered.

    Examples:
        >>> report = ke.lora(model, rank=2)
        >>> print(ke.merge(model))  # doctest: +ELLIPSIS
        merged: ...

    Reference:
        `merge_and_unload` of PEFT; `strip_pruning` and `strip_clustering` of
        tensorflow-model-optimization.
    """
    check_model(model, "ke.merge")
    ties = _ties(model)
    layers = parametrized_layers(model)
    if not layers and not ties:
        raise ValueError(
            f"ke.merge folds transforms into weights. Received: {model.name!r}, which has none. "
            "Apply ke.prune, ke.lora or the like first, or leave ke.merge out."
        )
    stuck = [
        f"{wrapper.name} of {parametrized.layer.name!r}"
        for parametrized in layers
        for wrapper in parametrized.call_wrappers
        if not wrapper.droppable
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
    for parametrized in parametrized_layers(model):
        for wrapper in list(parametrized.call_wrappers):
            if not wrapper.exact:
                dropped.append(f"{wrapper.describe()} of {parametrized.path!r}")
            parametrized.detach(wrapper)
    frozen = [
        weight for parametrized in parametrized_layers(model) for weight in parametrized.frozen
    ]
    freeze(model, frozen, trainable=True)
    restore_save_methods(model)
    with model.distribute_strategy.scope():
        for tie in ties:
            folded.setdefault(tie.path, (tie.describe(),))
            tie.undo()
    if ties:
        flavors.of(model).retrace(model)
    return MergeReport(folded, tuple(dropped))


def _ties(model):
    """The ties of shared variables, the latest first."""
    inside = [model, *(layer for _, layer in layer_paths(model))]
    found = [tie for layer in inside for tie in vars(layer).get(TIES, ())]
    return sorted(found, key=lambda tie: -tie.number)
