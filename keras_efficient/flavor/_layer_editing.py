"""Edit built layers: their variables, sublayers and trainability."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_efficient.flavor._typing import Layer, Model, Tensor, Variable


@dataclass(frozen=True)
class VariableSlot:
    """The place of a variable in a layer.

    Attributes:
        name: The layer's attribute that held it.
        group: Name of the layer's list that held it.
        index: Its index in that list.
        make: Function of an array that creates a variable with the same settings, without
            keeping a reference to the old one. The caller enters the strategy's scope.
    """

    name: str
    group: str
    index: int
    make: Callable[[Any], Variable]


class LayerEditing(ABC):
    """The part of a flavor that edits built layers, for `parametrize` and the packages on top."""

    #: The library's module.
    keras: Any
    #: Class of the library's `VariableStore`, a layer.
    store: type
    #: A layer's lists of its own trainable and non-trainable variables.
    _variable_lists: tuple[str, str]

    @abstractmethod
    def set_policy(self, layer: Layer, policy: str) -> None:
        """Change the dtype policy of a built layer. Its variables keep their dtype."""

    @abstractmethod
    def add_weight(
        self,
        layer: Layer,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        initializer: str,
        *,
        trainable: bool,
    ) -> Variable:
        """Add a weight that no policy casts.

        Each replica updates a non-trainable one by itself; reading it outside of a replica gives
        the mean.
        """

    @abstractmethod
    def variable_attributes(self, layer: Layer) -> dict[str, Variable]:
        """Return `{attribute: variable}` of the layer's own variables, as its `call` reads them."""

    @abstractmethod
    def add_sublayer(self, layer: Layer, name: str, child: Layer) -> None:
        """Make `child` a sublayer of `layer`, which is built, under the attribute `name`."""

    @abstractmethod
    def remove_sublayer(self, layer: Layer, name: str) -> None:
        """Undo `add_sublayer`."""

    @abstractmethod
    def remove_variable(self, layer: Layer, variable: Variable) -> None:
        """Remove a variable from the layer's own variables."""

    @abstractmethod
    def _forget_attribute(self, layer: Layer, name: str, variable: Variable) -> None:
        """Remove the library's tracking of an attribute that holds `variable`."""

    @abstractmethod
    def _maker(self, variable: Variable) -> Callable[[Any], Variable]:
        """Return a function that creates a variable with the same settings from a value."""

    def own_variables(self, layer: Layer) -> list:
        """Return the layer's own variables in the order `save_own_variables` numbers them."""
        return [v for group in self._variable_lists for v in getattr(layer, group)]

    def detach_variable(self, layer: Layer, variable: Variable) -> VariableSlot:
        """Remove a variable from a layer, whose attribute becomes None; returns its slot."""
        name = next(name for name, value in vars(layer).items() if value is variable)
        group, index = next(
            (group, index)
            for group in self._variable_lists
            for index, v in enumerate(getattr(layer, group))
            if v is variable
        )
        slot = VariableSlot(name, group, index, self._maker(variable))
        self.remove_variable(layer, variable)
        self._forget_attribute(layer, name, variable)
        vars(layer)[name] = None
        return slot

    @abstractmethod
    def attach_variable(self, layer: Layer, slot: VariableSlot, variable: Variable) -> None:
        """Put a variable into the slot that `detach_variable` returned."""

    @abstractmethod
    def autocast(self, tensor: Tensor) -> Tensor:
        """Cast a tensor to the compute dtype of the layer being called, as variables are."""

    @abstractmethod
    def in_call(self) -> bool:
        """Whether the call of a layer of this library is running."""

    @abstractmethod
    def with_value(self, variable: Variable, value: Tensor) -> Any:
        """Return what the code of a layer can read in place of a variable to get `value`."""

    @abstractmethod
    def set_trainable(self, layer: Layer, variable: Variable, trainable: bool) -> None:
        """Freeze or unfreeze one variable of a parametrized layer."""

    @abstractmethod
    def is_trainable(self, layer: Layer, variable: Variable) -> bool:
        """Whether the variable itself trains, apart from whether the model freezes the layer."""

    def class_attributes(self) -> dict[str, Any]:
        """Return attributes that the class of a parametrized layer needs in this library."""
        return {}

    @abstractmethod
    def converted(self, layer: Layer, call: Callable) -> Callable:
        """Return `call` as the library would run it; tf_keras converts layers with AutoGraph."""

    @abstractmethod
    def replay(self, layer: Layer, kwargs: dict[str, Any]) -> Any:
        """Return an object for running `layer.call` twice with the same random numbers.

        Its context managers `first()` and `again()` surround the two runs. The second one has no
        side effects on the state of the layer.

        Returns:
            The object, or None if one run is enough: outside of training, in Keras' symbolic
            calls and while a model is being saved.
        """

    # --- inputs and outputs of models ------------------------------------------------------------

    @abstractmethod
    def call_specs(self, model: Model) -> list[tuple[list, dict]]:
        """Return `(args, kwargs)` of `tf.TensorSpec`s that a built model can be called with.

        Returns:
            List of what to try in turn; empty if nothing is known.
        """

    def rebuild(
        self, model: Model, made: Callable[[Any], Callable], called: Callable[..., Any]
    ) -> Model:
        """Run the graph of a functional or sequential model on new inputs, with other layers.

        Args:
            model: The model.
            made: Function of a layer, or an operation of Keras 3, that returns what to call in
                its place. It must return the same for the same layer.
            called: Function of what `made` returned and the arguments of its call.

        Returns:
            A new model of the same class.
        """
        if isinstance(model, self.keras.Sequential):
            first = [self.keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in model.inputs]
            return type(model)([*first, *map(made, model.layers)], name=model.name)
        return self._rebuild_graph(model, made, called)

    @abstractmethod
    def _rebuild_graph(self, model: Model, made: Callable, called: Callable) -> Model:
        """Do what `rebuild` does with a functional model."""

    # --- differences between the layers of the libraries -----------------------------------------

    def is_bert_self_attention(self, layer_class: type) -> bool:
        """Whether this is a Hugging Face class whose `call` is that of BERT's self-attention."""
        return False

    @abstractmethod
    def dropout_seed(self, layer: Layer) -> Tensor:
        """Return the next seed `[2]` of a Dropout layer's generator, a new one at every step."""

    def attention_mask(self, layer: Layer, mask: Tensor) -> Tensor:
        """Return an attention mask as the library's `MultiHeadAttention` reads it."""
        return mask
