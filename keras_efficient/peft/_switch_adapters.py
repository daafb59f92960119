"""Choose which of a model's LoRA adapters are active."""

from collections.abc import Iterable
from dataclasses import dataclass

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import OTHER, Weight
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import freeze
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import transforms
from keras_efficient.peft._low_rank import LowRankDelta


@dataclass(frozen=True)
class SwitchReport:
    """Result of `switch_adapters`.

    Attributes:
        on: tuple of the names of active adapters.
        off: tuple of the names of inactive adapters.
    """

    on: tuple[str, ...]
    off: tuple[str, ...]

    def __str__(self):
        parts = [f"on: {', '.join(self.on) or 'none'}"]
        parts += [f"off: {', '.join(self.off)}"] if self.off else []
        return f"adapters {'; '.join(parts)}"


def switch_adapters(model: Model, names: str | Iterable[str] | None) -> SwitchReport:
    """Activate some of a model's LoRA and AdaLoRA adapters, and deactivate the others.

    The deltas of active adapters are added up, and train. Inactive adapters neither change the
    model's outputs nor train. Files hold both; the choice itself is not saved, so repeat it after
    loading or when a run is resumed. `ke.merge` folds in the active adapters and drops the others.

    Args:
        model: a model with adapters of `ke.lora(model, name=...)` or `ke.adalora`.
        names: name or names of the adapters to activate; None for none, which leaves the base
            model.

    Returns:
        A `SwitchReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is not built, or has no adapter of such a name.

    Examples:
        >>> both = ke.lora(model, 2, name="french"), ke.lora(model, 2, name="german")
        >>> print(ke.switch_adapters(model, "german"))
        adapters on: german; off: french

    Reference:
        `set_adapter` and `disable_adapter` of PEFT.
    """
    check_model(model, "ke.switch_adapters", changes=False)
    deltas = transforms(model, LowRankDelta)
    known = tuple(dict.fromkeys(delta.name for delta in deltas))
    active = [] if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [name for name in active if name not in known]
    if unknown or not known:
        raise ValueError(
            "ke.switch_adapters chooses among the adapters of a model. Received: "
            f"{unknown[0] if unknown else names!r}; {model.name!r} has "
            f"{', '.join(known) or 'none'}. Attach them with ke.lora(model, name=...) or "
            "ke.load_adapters first."
        )
    for delta in deltas:
        delta.active = delta.name in active
    for on in (True, False):
        variables = [w for d in deltas if d.active is on for w in _variables(d)]
        freeze(model, variables, trainable=on)
    return SwitchReport(
        tuple(name for name in known if name in active),
        tuple(name for name in known if name not in active),
    )


def _variables(delta):
    """The variables of a delta as `Weight`s of the store that holds them, for `freeze`."""
    flavor = flavors.of(delta.weight.layer)
    store = delta.parametrized.store
    names = {id(variable): name for name, variable in store.named.items()}
    return [
        Weight(names[id(v)], v, [(store, names[id(v)])], OTHER, (), flavor) for v in delta.variables
    ]
