"""A layer whose weights are seen through chains of transforms."""

import functools

import tensorflow as tf

from keras_efficient.flavor._call_replay import converted
from keras_efficient.parametrize._layer_paths import layer_paths

_VIEW, _STORE = "_keras_efficient_view", "keras_efficient_transforms"


class ParametrizedLayer:
    """What stands between a layer and its weights, for that one layer.

    The layer becomes an instance of a subclass of its class (of the same name) in which the chosen
    attributes are properties that compute what the chain gives. The variables of the transforms
    live in a layer inside of it, so that the library counts, trains, saves and loads them.

    Weights files hold the weights as seen, where a plain model looks for them, and the variables
    of the transforms (and the weights beneath) beside: a plain model reads the first, a model with
    the same transforms both.

    Attributes:
        chains: dict of attribute to `Chain`.
        path: str, of the layer in its model.
        calls: list of `Around`s, outermost last.
    """

    def __init__(self, layer, flavor, path):
        self.layer, self.flavor, self.path = layer, flavor, path
        self.plain_class = type(layer)
        self.chains, self.calls, self.frozen, self.store = {}, [], [], None
        vars(layer)[_VIEW] = self

    def refresh(self):
        """Give the layer the class that its chains and calls need, or its own if it needs none."""
        if not self.chains and not self.calls and not self.frozen:
            if self.store is not None:
                self.flavor.release(self.layer, _STORE)
            del vars(self.layer)[_VIEW]
            object.__setattr__(self.layer, "__class__", self.plain_class)
            return
        cls = _viewed(self.plain_class, self.flavor, tuple(self.chains), bool(self.calls))
        object.__setattr__(self.layer, "__class__", cls)

    def check_plain(self):
        """Refuse what a file of plain layers cannot hold."""
        stuck = [part.name for part in self.calls if not part.droppable]
        if stuck:
            raise NotImplementedError(
                "A model file holds plain layers with plain weights. Received: a model with "
                f"{stuck[0]} in {self.path!r}, which would be lost. Use `model.save_weights`, "
                "ke.save_adapters or ke.export, or take it off first."
            )

    def hide(self):
        """Let the layer be the plain one for a while; `show` undoes it."""
        if self.store is not None:
            self.flavor.release(self.layer, _STORE)
        object.__setattr__(self.layer, "__class__", self.plain_class)

    def show(self):
        if self.store is not None:
            self.flavor.adopt(self.layer, _STORE, self.store)
        self.refresh()

    # --- variables of the transforms -----------------------------------------------------------

    def keep(self):
        """Make the store, without which files would not hold what lies beneath."""
        if self.store is None:
            self.store = self.flavor.store(name=_STORE)
            vars(self.store)["prefix"] = self.path
            vars(self.store).update(saved_too=self._saved_too, loaded=self._loaded)
            self.flavor.adopt(self.layer, _STORE, self.store)

    def add_variable(self, transform, name, shape, initial, **kwargs):
        self.keep()
        weight = None if isinstance(transform, CallWrapper) else transform.weight
        # ("." since files take "/" for a folder.)
        names = (
            [transform.name, name] if weight is None else [weight.attribute, transform.name, name]
        )
        variable = self.store.variable(".".join(names), shape, initial, **kwargs)
        vars(transform).setdefault("variables", []).append(variable)
        return variable

    def drop_variables(self, transform):
        for variable in vars(transform).pop("variables", []):
            self.flavor.remove_variable(self.store, variable)
            del self.store.named[next(n for n, v in self.store.named.items() if v is variable)]

    def _saved_too(self):
        chains = [chain for chain in self.chains.values() if chain.owner is self]
        return {
            f"{chain.weight.attribute}.base": chain.weight.value.numpy()
            for chain in chains
            if chain.transforms and not all(t.in_place for t in chain.transforms)
        }

    def _loaded(self, others):
        bases = {f"{c.weight.attribute}.base" for c in self.chains.values() if c.owner is self}
        if unknown := sorted(set(others) - bases):
            raise ValueError(
                "Weights are loaded under the verbs they were saved with, or into a plain model. "
                f"Received: a file with {unknown[0]!r} of {self.path!r}, which has none. Apply the "
                "same verbs first, or load the file first and then apply others."
            )
        for chain in self.chains.values():
            name = f"{chain.weight.attribute}.base"
            if chain.owner is self and name in others:
                chain.weight.value.assign(others[name][()])

    # --- reading and calling -------------------------------------------------------------------

    def read(self, attribute):
        """What the layer sees of a weight, in the dtype it computes in."""
        return self.flavor.autocast(self.chains[attribute].value())

    def call(self, plain, args, kwargs):
        """What the layer computes of its inputs."""
        call = converted(self.flavor, self.layer, plain)
        for part in self.calls:
            call = functools.partial(part.wrap_call, call)
        return call(*args, **kwargs)

    def attach(self, part):
        """Let an `Around` change what the layer computes; the strategy's scope is the caller's."""
        part.attach(self)
        self.calls.append(part)
        self.refresh()

    def detach(self, part):
        self.drop_variables(part)
        self.calls = [other for other in self.calls if other is not part]
        self.refresh()


class CallWrapper:
    """What changes how a layer computes (adapters, ranges of activations), besides its weights.

    Attributes:
        name: str; a layer has at most one of each.
        droppable: whether `merge` may take it off, because the layer then computes the same but for
            rounding.
        exact: whether it computes just the same then, so that nobody need hear of it.
        updater: as in `Transform`.
    """

    name: str
    droppable = exact = False
    updater = None

    def attach(self, view):
        """Called once; the variables are made here, in the strategy's scope."""
        self.view = view
        self.build()

    def build(self):
        """Make the variables; `self.view` is set."""

    def variable(self, name, shape, initial, **kwargs):
        """A new variable; see `flavor.base.Store.variable`. A `tf.Variable`."""
        return self.view.flavor.value(self.view.add_variable(self, name, shape, initial, **kwargs))

    def wrap_call(self, call, *args, **kwargs):
        """What the layer computes; `call(*args, **kwargs)` is what it does without this."""
        raise NotImplementedError

    def describe(self) -> str:
        """A few words for the summary."""
        return self.name


class TransformChain:
    """The transforms of one weight, in their order; shared by all layers that read the weight.

    Attributes:
        weight: the `Weight`.
        owner: the `View` whose store has the transforms' variables.
        transforms: list of `Transform`s.
    """

    def __init__(self, weight, owner):
        self.weight, self.owner, self.transforms = weight, owner, []

    def value(self, transforms=None):
        """The weight's value as seen (through some of the transforms)."""
        value = tf.convert_to_tensor(self.weight.value)
        for transform in self.transforms if transforms is None else transforms:
            value = transform(value)
        return value

    def add(self, transform):
        self.owner.keep()
        self.transforms = sorted([*self.transforms, transform], key=lambda t: t.place)
        self.refresh()

    def remove(self, transform):
        self.owner.drop_variables(transform)
        self.transforms = [t for t in self.transforms if t is not transform]
        self.refresh()

    def refresh(self):
        for layer, attribute in self.weight.owners:
            view = parametrized_layer(layer)
            if view is None:
                continue
            if self.transforms:
                view.chains[attribute] = self
            else:
                view.chains.pop(attribute, None)
            view.refresh()


def parametrized_layer(layer) -> ParametrizedLayer | None:
    """The layer's view, if it has one."""
    return vars(layer).get(_VIEW)


def parametrize_layer(layer, flavor, path=None) -> ParametrizedLayer:
    """The layer's view, made if there is none; the strategy's scope is the caller's.

    Args:
        path: str, of the layer in its model, by which its transforms' variables are named.
            Default: its name.
    """
    return parametrized_layer(layer) or ParametrizedLayer(
        layer, flavor, layer.name if path is None else path
    )


def parametrized_layers(model) -> list:
    """The `View`s of a model's layers, each once, in the order of the layers."""
    inside = [model, *(layer for _, layer in layer_paths(model))]
    return [view for layer in inside if (view := parametrized_layer(layer)) is not None]


def transform_chains(model) -> list:
    """The `Chain`s of a model's weights, each once."""
    found = {id(c): c for view in parametrized_layers(model) for c in view.chains.values()}
    return list(found.values())


@functools.cache
def _viewed(plain, flavor, attributes, calls):
    """The subclass of `plain` in which `attributes` are seen through their chains."""
    own = {name: _seen(name) for name in attributes} | flavor.viewed()
    own["save_own_variables"] = _save_own_variables
    own["get_config"] = _get_config
    # A clone is a plain layer.
    own["from_config"] = classmethod(lambda cls, config: plain.from_config(config))
    if calls:
        own["call"] = _call
    # Libraries write a layer's class down by its name.
    names = ("__module__", "__name__", "__qualname__", "__doc__")
    own |= {name: getattr(plain, name) for name in names if name != "__name__"}
    return type(plain)(plain.__name__, (plain,), own)


def _seen(attribute):
    return property(lambda layer: vars(layer)[_VIEW].read(attribute))


def _call(self, *args, **kwargs):
    return parametrized_layer(self).call(super(type(self), self).call, args, kwargs)


#: By this AutoGraph leaves it as it is; `converted` sees to the layer's own code.
_call.autograph_info__ = None


def _save_own_variables(self, store):
    """Save the weights as seen in place of those beneath."""
    view, plain = parametrized_layer(self), {}
    super(type(self), self).save_own_variables(plain)
    order = [id(variable) for variable in view.flavor.saved_order(self)]
    for chain in view.chains.values():
        key = (
            str(order.index(id(chain.weight.variable)))
            if id(chain.weight.variable) in order
            else ""
        )
        if key in plain and chain.transforms:
            plain[key] = chain.value().numpy()
    for name, value in plain.items():
        store[name] = value


def _get_config(self):
    parametrized_layer(self).check_plain()
    return super(type(self), self).get_config()
