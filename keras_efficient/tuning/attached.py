"""What an added computation of a model is known by, and how it is taken off."""

from dataclasses import dataclass, field

from keras_efficient import flavor as flavors
from keras_efficient.parametrize.finding import views
from keras_efficient.parametrize.merging import check_strategy
from keras_efficient.parametrize.plain import save_as_before, save_plainly
from keras_efficient.parametrize.view import make_view, view_of
from keras_efficient.tuning.training import Tuned


@dataclass(frozen=True)
class Attached(Tuned):
    """A `Tuned` of what layers compute besides; see there.

    Attributes:
        model: the model.
        parts: tuple of the `Around`s, in the order they were attached.
    """

    model: object = field(default=None, repr=False, compare=False)
    parts: tuple = field(default=(), repr=False, compare=False)

    def remove(self):
        """Take it off; the base stays frozen until `ke.tuning.unfreeze(model)`."""
        check_strategy(self.model, "remove()")
        for part in self.parts:
            if any(part is other for other in getattr(part.view, "calls", ())):
                part.view.detach(part)
        if not views(self.model):
            save_as_before(self.model)
        flavors.of(self.model).renew(self.model)

    @classmethod
    def to(cls, model, method, paths, pairs):
        """Attach `(layer, its path, Around)`s to a model; `paths` are what the report names."""
        flavor = flavors.of(model)
        with model.distribute_strategy.scope():
            for layer, path, part in pairs:
                make_view(layer, flavor, path).attach(part)
        save_plainly(model)
        flavor.renew(model)
        tuned = Tuned.of(model, method, paths)
        parts = tuple(part for *_, part in pairs)
        return cls(**vars(tuned), model=model, parts=parts)


def check_no_such(named, verb):
    """Refuse layers that compute something of this name already.

    Args:
        named: list of `(path, layer, name)`.
    """
    for path, layer, name in named:
        view = view_of(layer)
        if view is not None and any(part.name == name for part in view.calls):
            raise ValueError(
                f"{verb} adds one thing of a name to a layer. Received: name={name!r} for "
                f"{path!r}, which has one. Take it off with the report's `remove()`, or give "
                "another `name`."
            )
