"""What an added computation of a model is known by, and how it is taken off."""

from dataclasses import dataclass, field

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._merge import check_strategy
from keras_efficient.parametrize._parametrized_layer import (
    parametrize_layer,
    parametrized_layer,
    parametrized_layers,
)
from keras_efficient.parametrize._plain_model import save_as_before, save_plainly
from keras_efficient.peft._report import TuningReport


@dataclass(frozen=True)
class CallWrapperReport(TuningReport):
    """A `Tuned` of what layers compute besides; see there.

    Attributes:
        model: the model.
        parts: tuple of the `Around`s, in the order they were attached.
    """

    model: object = field(default=None, repr=False, compare=False)
    parts: tuple = field(default=(), repr=False, compare=False)

    def remove(self):
        """Take it off; the base stays frozen until `ke.peft.unfreeze(model)`."""
        check_strategy(self.model, "remove()")
        for part in self.parts:
            if any(part is other for other in getattr(part.view, "calls", ())):
                part.view.detach(part)
        if not parametrized_layers(self.model):
            save_as_before(self.model)
        flavors.of(self.model).renew(self.model)

    @classmethod
    def to(cls, model, method, paths, pairs):
        """Attach `(layer, its path, Around)`s to a model; `paths` are what the report names."""
        flavor = flavors.of(model)
        with model.distribute_strategy.scope():
            for layer, path, part in pairs:
                parametrize_layer(layer, flavor, path).attach(part)
        save_plainly(model)
        flavor.renew(model)
        tuned = TuningReport.of(model, method, paths)
        parts = tuple(part for *_, part in pairs)
        return cls(**vars(tuned), model=model, parts=parts)


def check_no_such(named, caller):
    """Refuse layers that compute something of this name already.

    Args:
        named: list of `(path, layer, name)`.
    """
    for path, layer, name in named:
        view = parametrized_layer(layer)
        if view is not None and any(part.name == name for part in view.calls):
            raise ValueError(
                f"{caller} adds one thing of a name to a layer. Received: name={name!r} for "
                f"{path!r}, which has one. Take it off with the report's `remove()`, or give "
                "another `name`."
            )
