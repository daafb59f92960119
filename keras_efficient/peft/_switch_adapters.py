"""Choose which of several adapters a model computes with."""

from dataclasses import dataclass

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import transforms
from keras_efficient.parametrize._weights import OTHER, Weight
from keras_efficient.peft._low_rank import LowRankDelta


@dataclass(frozen=True)
class SwitchReport:
    """What `switch_adapters` set.

    Attributes:
        on, off: tuples of the adapters' names.
    """

    on: tuple
    off: tuple

    def __str__(self):
        parts = [f"on: {', '.join(self.on) or 'none'}"]
        parts += [f"off: {', '.join(self.off)}"] if self.off else []
        return f"adapters {'; '.join(parts)}"


def switch_adapters(model, names) -> SwitchReport:
    """Compute with some of a model's LoRA and AdaLoRA adapters, and leave the others out.

    The deltas of those that are on are added up, and train; those that are off neither change what
    the model computes nor train. Files hold both. The choice itself is in no file: make it again
    after loading, or when a run resumes. `ke.merge` folds in those that are on, and drops others.

    Args:
        model: a model with adapters of `ke.lora(model, name=...)` or `ke.adalora`.
        names: str or list of str, those to compute with; None: none, the base model alone.

    Returns:
        A `Switched`, to print.

    Raises:
        ValueError: the model has no adapter, or none of such a name.

    Example:
        >>> both = ke.lora(model, 2, name="french"), ke.lora(model, 2, name="german")
        >>> print(ke.switch_adapters(model, "german"))
        adapters on: german; off: french
    """
    check_model(model, "ke.switch_adapters", strategy=False)
    deltas = transforms(model, LowRankDelta)
    known = tuple(dict.fromkeys(delta.name for delta in deltas))
    wanted = [] if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown or not known:
        raise ValueError(
            "ke.switch_adapters chooses among the adapters of a model. Received: "
            f"{unknown[0] if unknown else names!r}; {model.name!r} has "
            f"{', '.join(known) or 'none'}. Attach them with ke.lora(model, name=...) or "
            "ke.load_adapters first."
        )
    for delta in deltas:
        delta.active = delta.name in wanted
    for on in (True, False):
        freeze(model, [w for d in deltas if d.active is on for w in _variables(d)], trainable=on)
    return SwitchReport(
        tuple(name for name in known if name in wanted),
        tuple(name for name in known if name not in wanted),
    )


def _variables(delta):
    """A delta's variables as weights of the layer that holds them, to be frozen."""
    flavor = flavors.of(delta.weight.layer)
    store = delta.parametrized.store
    names = {id(variable): name for name, variable in store.named.items()}
    return [
        Weight(names[id(v)], v, [(store, names[id(v)])], OTHER, (), flavor) for v in delta.variables
    ]
