"""Parametrized layers, which read their weights through chains of transforms."""

import functools
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._layer_class import ORIGINAL
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Layer, Model, Variable
from keras_efficient.parametrize._transform import Transform

_PARAMETRIZED, _STORE = "_keras_efficient_parametrized", "keras_efficient_transforms"


class ParametrizedLayer:
    """The parametrization of one layer: its transform chains and call wrappers.

    The layer's class is replaced by a subclass of the same name in which each parametrized
    attribute is a property that computes the value of its chain; this is how
    `torch.nn.utils.parametrize` works too. The variables of transforms live in a layer inside of
    it, the store, so that the library counts, trains, saves and loads them.

    Weights files hold the transformed values where a model without transforms looks for its
    weights. The variables of the transforms and the untransformed weights are stored in addition.
    So a model without transforms can read the file, and so can one with the same transforms.

    Attributes:
        layer: the layer.
        flavor: its library.
        path: path of the layer in its model.
        original_class: class of the layer before.
        chains: dict of attribute name to `TransformChain`.
        call_wrappers: list of `CallWrapper`s, the outermost last.
        frozen: list of `Weight`s of the layer that `freeze` has frozen.
        store: the layer with the variables of the transforms, or None if there are none.
    """

    def __init__(self, layer: Layer, flavor: Any, path: str):
        self.layer, self.flavor, self.path = layer, flavor, path
        self.original_class = type(layer)
        self.chains, self.call_wrappers, self.frozen = {}, [], []
        self.store: Any = None
        vars(layer)[_PARAMETRIZED] = self

    def refresh(self) -> None:
        """Set the class of the layer to the one for its present chains and call wrappers."""
        if not self.chains and not self.call_wrappers and not self.frozen:
            if self.store is not None:
                self.flavor.remove_sublayer(self.layer, _STORE)
            del vars(self.layer)[_PARAMETRIZED]
            object.__setattr__(self.layer, "__class__", self.original_class)
            return
        cls = _parametrized_class(
            self.original_class, self.flavor, tuple(self.chains), bool(self.call_wrappers)
        )
        object.__setattr__(self.layer, "__class__", cls)

    def check_serializable(self) -> None:
        """Require that a model file, which holds layers without transforms, loses no computation.

        Raises:
            NotImplementedError: the layer has a call wrapper that changes its outputs.
        """
        lost = [wrapper.name for wrapper in self.call_wrappers if not wrapper.droppable]
        if lost:
            raise NotImplementedError(
                "A model file holds plain layers with plain weights. Received: a model with "
                f"{lost[0]} in {self.path!r}, which would be lost. Use `model.save_weights`, "
                "ke.save_adapters or ke.export, or take it off first."
            )

    def hide(self) -> None:
        """Give the layer its original class and no store, until `show` is called."""
        if self.store is not None:
            self.flavor.remove_sublayer(self.layer, _STORE)
        object.__setattr__(self.layer, "__class__", self.original_class)

    def show(self) -> None:
        """Undo `hide`."""
        if self.store is not None:
            self.flavor.add_sublayer(self.layer, _STORE, self.store)
        self.refresh()

    # --- variables of transforms and call wrappers -----------------------------------------------

    def create_store(self) -> None:
        """Create the store if there is none; files also need it for the untransformed weights."""
        if self.store is None:
            self.store = self.flavor.store(name=_STORE)
            vars(self.store)["prefix"] = self.path
            hooks = {"extra_state": self._base_values, "load_extra_state": self._load_base_values}
            vars(self.store).update(hooks)
            self.flavor.add_sublayer(self.layer, _STORE, self.store)

    def add_variable(self, owner: Any, name: str, shape, initial, **kwargs) -> Variable:
        """Create a variable of a `Transform` or `CallWrapper` in the store."""
        self.create_store()
        weight = None if isinstance(owner, CallWrapper) else owner.weight
        parts = [owner.name, name] if weight is None else [weight.attribute, owner.name, name]
        # Joined by ".", since weights files take "/" for a folder.
        variable = self.store.variable(".".join(parts), shape, initial, **kwargs)
        vars(owner).setdefault("variables", []).append(variable)
        return variable

    def remove_variables(self, owner: Any) -> None:
        """Delete the variables of a `Transform` or `CallWrapper`."""
        for variable in vars(owner).pop("variables", []):
            self.flavor.remove_variable(self.store, variable)
            del self.store.named[next(n for n, v in self.store.named.items() if v is variable)]

    def _base_values(self):
        """Untransformed weights that a file needs besides the transformed ones, by name."""
        chains = [chain for chain in self.chains.values() if chain.owner is self]
        return {
            f"{chain.weight.attribute}.base": chain.weight.value.numpy()
            for chain in chains
            if chain.transforms and not all(t.in_place for t in chain.transforms)
        }

    def _load_base_values(self, values):
        names = {f"{c.weight.attribute}.base" for c in self.chains.values() if c.owner is self}
        if unknown := sorted(set(values) - names):
            raise ValueError(
                "A weights file is loaded into a model with the transforms it was saved with, or "
                f"with none. Received: a file with {unknown[0]!r} of {self.path!r}, which has no "
                "such transform. Apply the same methods (ke.prune, ke.lora, ...) before loading, "
                "or load the file before applying others."
            )
        for chain in self.chains.values():
            name = f"{chain.weight.attribute}.base"
            if chain.owner is self and name in values:
                chain.weight.value.assign(values[name][()])

    # --- reading weights and calling -------------------------------------------------------------

    def read(self, attribute: str) -> tf.Tensor:
        """Return the transformed value of a weight, in the dtype the layer computes in."""
        return self.flavor.autocast(self.chains[attribute].value())

    def weights(self, listed: list) -> list:
        """Return the layer's weights as code reads them: inside of calls with their transforms.

        Layers such as the output layers of Hugging Face's decoders compute with
        `embedding.weights`. They get the weights that the layer has without its parametrization,
        each with its transformed value. Outside of calls, where variables are saved, trained and
        counted, the list is left as it is.

        Args:
            listed: the variables that the library lists for the layer.
        """
        if not self.flavor.in_call():
            return listed
        # The layers inside belong to the list, too.
        inside = parametrized_layers(self.layer)
        stores = [parametrized.store for parametrized in inside if parametrized.store is not None]
        added = {id(variable) for store in stores for variable in store.named.values()}
        chains = {
            id(chain.weight.variable): chain
            for parametrized in inside
            for chain in parametrized.chains.values()
        }
        return [
            self._with_transforms(variable, chains.get(id(variable)))
            for variable in listed
            if id(variable) not in added
        ]

    def _with_transforms(self, variable, chain):
        if chain is None:
            return variable
        value = self.flavor.autocast(tf.convert_to_tensor(chain.value()))
        return self.flavor.with_value(variable, value)

    def call(self, original, args, kwargs):
        """Return what the layer's original `call` computes inside of the call wrappers."""
        call = self.flavor.converted(self.layer, original)
        for wrapper in self.call_wrappers:
            call = functools.partial(wrapper.wrap_call, call)
        return call(*args, **kwargs)

    def attach(self, wrapper: "CallWrapper") -> None:
        """Add a call wrapper outside of the others; to be called in the strategy's scope."""
        wrapper.attach(self)
        self.call_wrappers.append(wrapper)
        self.refresh()

    def detach(self, wrapper: "CallWrapper") -> None:
        """Remove a call wrapper and its variables."""
        self.remove_variables(wrapper)
        self.call_wrappers = [other for other in self.call_wrappers if other is not wrapper]
        self.refresh()


class CallWrapper:
    """A computation around a layer's `call`, such as an adapter or the rounding of its inputs.

    A subclass sets `name`, creates its variables in `build` and computes in `wrap_call`.

    Attributes:
        name: name of the wrapper, unique in its layer.
        droppable: whether `merge` may remove it, because without it outputs change by no more than
            rounding. Default: False.
        exact: whether outputs do not change at all without it, so that no report need mention it.
            Default: False.
        updater: as in `Transform`. Default: None.
        parametrized: the `ParametrizedLayer` it is attached to.
        layer: the layer it is attached to.
    """

    name: str
    droppable = exact = False
    updater = None
    parametrized: ParametrizedLayer

    @property
    def layer(self) -> Any:
        """The layer it is attached to."""
        return self.parametrized.layer

    def attach(self, parametrized: ParametrizedLayer) -> None:
        """Set the layer and create the variables; called once, in the strategy's scope."""
        self.parametrized = parametrized
        self.build()

    def build(self) -> None:
        """Create the variables with `self.variable`; `self.layer` is set."""

    def variable(self, name: str, shape, initial, **kwargs) -> tf.Variable:
        """Create a variable; see `VariableStore.variable`."""
        made = self.parametrized.add_variable(self, name, shape, initial, **kwargs)
        return self.parametrized.flavor.value(made)

    def wrap_call(self, call, *args, **kwargs):
        """Return the layer's outputs; `call(*args, **kwargs)` are those without the wrapper."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return a short text for the summary."""
        return self.name


class TransformChain:
    """The transforms of one weight in their order, shared by all layers that read the weight.

    Attributes:
        weight: the `Weight`.
        owner: the `ParametrizedLayer` whose store has the variables of the transforms.
        transforms: list of `Transform`s, sorted by `place`.
    """

    def __init__(self, weight: Weight, owner: ParametrizedLayer):
        self.weight, self.owner = weight, owner
        self.transforms: list[Transform] = []

    def value(self, transforms: list[Transform] | None = None) -> tf.Tensor:
        """Return the weight's transformed value, or its value after some of the transforms only."""
        value = tf.convert_to_tensor(self.weight.value)
        for transform in self.transforms if transforms is None else transforms:
            value = transform(value)
        return value

    def add(self, transform: Transform) -> None:
        """Add a transform at its place."""
        self.owner.create_store()
        self.transforms = sorted([*self.transforms, transform], key=lambda t: t.place)
        self.refresh()

    def remove(self, transform: Transform) -> None:
        """Remove a transform and its variables."""
        self.owner.remove_variables(transform)
        self.transforms = [t for t in self.transforms if t is not transform]
        self.refresh()

    def refresh(self) -> None:
        """Update the layers that read the weight."""
        for layer, attribute in self.weight.owners:
            parametrized = parametrized_layer(layer)
            if parametrized is None:
                continue
            if self.transforms:
                parametrized.chains[attribute] = self
            else:
                parametrized.chains.pop(attribute, None)
            parametrized.refresh()


# --- look-up -------------------------------------------------------------------------------------


def parametrized_layer(layer: Layer) -> ParametrizedLayer | None:
    """Return the parametrization of a layer, or None."""
    return vars(layer).get(_PARAMETRIZED)


def parametrize_layer(layer: Layer, flavor: Any, path: str | None = None) -> ParametrizedLayer:
    """Return the parametrization of a layer, created if there is none, in the strategy's scope.

    Args:
        layer: the layer.
        flavor: its library.
        path: path of the layer in its model, by which variables are named. Default: its name.
    """
    return parametrized_layer(layer) or ParametrizedLayer(
        layer, flavor, layer.name if path is None else path
    )


def parametrized_layers(model: Model) -> list[ParametrizedLayer]:
    """Return the parametrizations of a model's layers, in the order of the layers."""
    inside = [model, *(layer for _, layer in layer_paths(model))]
    return [found for layer in inside if (found := parametrized_layer(layer)) is not None]


def transform_chains(model: Model) -> list[TransformChain]:
    """Return the transform chains of a model's weights, each once."""
    chains = [c for layer in parametrized_layers(model) for c in layer.chains.values()]
    return list({id(chain): chain for chain in chains}.values())


def transform_chain(weight: Weight) -> TransformChain | None:
    """Return the chain of a weight, or None."""
    parametrized = parametrized_layer(weight.layer)
    return None if parametrized is None else parametrized.chains.get(weight.attribute)


def transforms(model: Model, kind: type = object) -> list:
    """Return the transforms of a model's weights that are instances of `kind`."""
    return [t for chain in transform_chains(model) for t in chain.transforms if isinstance(t, kind)]


def transform_of(weight: Weight, name: str) -> Transform | None:
    """Return the transform of this name in a weight's chain, or None."""
    chain = transform_chain(weight)
    found = [] if chain is None else [t for t in chain.transforms if t.name == name]
    return found[0] if found else None


# --- the class of a parametrized layer -----------------------------------------------------------


@functools.cache
def _parametrized_class(original, flavor, attributes, calls):
    """The subclass of `original` in which `attributes` are read through their chains."""
    members = {name: _transformed(name) for name in attributes} | flavor.class_attributes()
    members[ORIGINAL] = original
    members["weights"] = _weights(members.get("weights"))
    members["save_own_variables"] = _save_own_variables
    members["get_config"] = _get_config
    # A clone has no transforms.
    members["from_config"] = classmethod(lambda cls, config: original.from_config(config))
    if calls:
        members["call"] = _call
    # Libraries store the name of a layer's class in files.
    members |= {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original)(original.__name__, (original,), members)


def _transformed(attribute):
    return property(lambda layer: vars(layer)[_PARAMETRIZED].read(attribute))


def _weights(listed):
    def weights(self):
        base: Any = super(type(self), self)
        variables = base.weights if listed is None else listed.fget(self)
        return vars(self)[_PARAMETRIZED].weights(variables)

    return property(weights)


def _call(self: Any, *args, **kwargs):
    original: Any = super(type(self), self)
    return vars(self)[_PARAMETRIZED].call(original.call, args, kwargs)


#: Keeps AutoGraph from converting `_call`; `Flavor.converted` applies it to the layer's own code.
_call.autograph_info__ = None  # pyright: ignore[reportFunctionMemberAccess]


def _save_own_variables(self: Any, store):
    """Save the transformed values in place of the weights."""
    parametrized, values = vars(self)[_PARAMETRIZED], {}
    original: Any = super(type(self), self)
    original.save_own_variables(values)
    order = [id(variable) for variable in parametrized.flavor.own_variables(self)]
    for chain in parametrized.chains.values():
        if id(chain.weight.variable) not in order or not chain.transforms:
            continue
        key = str(order.index(id(chain.weight.variable)))
        if key in values:
            values[key] = chain.value().numpy()
    for name, value in values.items():
        store[name] = value


def _get_config(self: Any):
    vars(self)[_PARAMETRIZED].check_serializable()
    original: Any = super(type(self), self)
    return original.get_config()
