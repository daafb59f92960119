"""The interface to a Keras library: every operation on which Keras 3 and tf_keras differ."""

import functools
from abc import abstractmethod
from typing import Any

from keras_efficient.flavor._layer_editing import LayerEditing
from keras_efficient.flavor._multi_worker_save import save_on_all_workers
from keras_efficient.flavor._training_access import TrainingAccess
from keras_efficient.flavor._typing import Model, Variable


class Flavor(LayerEditing, TrainingAccess):
    """Common interface to Keras 3 and tf_keras.

    `ke.flavor.of(model)` returns the flavor of a model and `ke.flavor.get("keras")` that of a
    library. The methods are those that the rest of the package needs; your own code will mostly
    use the attributes.

    Attributes:
        name: "keras" or "tf_keras", the value that users pass as `library=`.
        keras: The library's module; both have the same public namespace.

    Examples:
        >>> ke.flavor.of(model).name
        'keras'
        >>> ke.flavor.of(model).keras.__name__
        'keras'

    Reference:
        `keras` (Keras 3) and `tf_keras` (Keras 2), https://keras.io/getting_started/.
    """

    name: str
    keras: Any
    #: Whether models have a `quantize` method, the library's own post-training quantization.
    has_quantize: bool
    #: The module whose `save_model` and `save_weights` a model's methods call.
    _saving: Any

    def __init__(self) -> None:
        self._multi_worker_classes: list[type] = []

    @abstractmethod
    def value(self, variable: Variable) -> Variable:
        """Return the `tf.Variable` that holds a variable of the library.

        Args:
            variable: `keras.Variable`, or a `tf.Variable` that may be wrapped for autocasting.

        Returns:
            The `tf.Variable`.
        """

    @abstractmethod
    def path(self, variable: Variable) -> str:
        """Return a variable's path in its model.

        Args:
            variable: Variable of a built model.

        Returns:
            A path such as "encoder/layer_0/dense/kernel".
        """

    def weights(self, model: Model) -> list[Variable]:
        """Return each variable of a model once, in the library's order.

        Args:
            model: A built model.

        Returns:
            List of `tf.Variable`s.
        """
        unique = {id(value): value for value in map(self.value, model.weights)}
        return list(unique.values())

    def state(self, model: Model) -> list[Variable]:
        """Return `weights` and whatever else its layers change in training.

        Args:
            model: A built model.

        Returns:
            List of `tf.Variable`s; in Keras 3 with the states of random seed generators.
        """
        return self.weights(model)

    def random_state(self, model: Model) -> list[Variable]:
        """Return the variables, not in `state`, that decide the random draws of a training step.

        Call this before the training step is traced, because it may have to create them.
        """
        return []

    def reset_random_state(self, model: Model) -> None:
        """Undo the changes that `random_state` made to the model's random generators."""
        return

    def enable_multi_worker(self, strategy_class: type) -> None:
        """Make the library save models that were made under a multi-worker strategy (trap 21).

        Replaces the library's functions, once per class. They behave as before for all other
        models.

        Args:
            strategy_class: Class of the strategies.
        """
        if strategy_class in self._multi_worker_classes:
            return
        self._multi_worker_classes.append(strategy_class)
        for name in ("save_model", "save_weights"):
            plain = getattr(self._saving, name)
            save = functools.partial(save_on_all_workers, plain, strategy_class)
            save = functools.wraps(plain)(save)
            for module in (self._saving, self.keras.saving, self.keras.models):
                if hasattr(module, name):
                    setattr(module, name, save)
