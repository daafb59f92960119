"""A layer that only holds named variables, for the state of weight transforms."""

from typing import Any


class VariableStore:
    """A layer without a call that holds variables by name.

    Each flavor combines it with its library's `Layer` class. Its variables are saved with the
    model; loading a file that lacks some of them leaves those unchanged.
    """

    #: `{name: variable}`, set in `__init__`.
    named: dict[str, Any]
    #: Prefix of the variables' paths, set by the owner.
    prefix: str

    def __init__(self, name: str):
        options: dict[str, Any] = {"name": name, "dtype": "float32"}
        super().__init__(**options)
        # Written past Keras' tracking of attributes.
        vars(self)["named"] = {}
        self.built = True

    def variable(
        self,
        name: str,
        shape: Any,
        initial: Any,
        *,
        trainable: bool = False,
        dtype: str = "float32",
        regularizer: Any = None,
    ) -> Any:
        """Create a variable. The caller enters the strategy's scope.

        Args:
            name: Unique in this store; without "/".
            shape: Shape of the variable.
            initial: Array or number, broadcast to `shape`.
            trainable: Whether it trains. Default: False.
            dtype: Its dtype. Default: "float32".
            regularizer: A regularizer of the library. Default: None.

        Returns:
            The variable.

        Raises:
            ValueError: The name is taken.
        """
        import numpy as np
        import tensorflow as tf

        if name in self.named:
            raise ValueError(f"Variable {name!r} exists.")
        value = np.broadcast_to(np.asarray(initial), tuple(shape))
        made = self._add(
            name,
            shape=tuple(shape),
            initializer=lambda shape, dtype: tf.cast(value, dtype),
            trainable=trainable,
            dtype=dtype,
            regularizer=regularizer,
        )
        self.named[name] = made
        return made

    def _add(self, name: str, **settings: Any) -> Any:
        """Call the library's `add_weight`."""
        raise NotImplementedError

    def save_own_variables(self, store: Any) -> None:
        """Write the variables and `extra_state` to `store`."""
        for name, variable in self.named.items():
            store[name] = variable.numpy()
        for name, value in self.extra_state().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Read the variables that `store` has, and pass the other arrays to `load_extra_state`."""
        names = set(store.keys())
        for name, variable in self.named.items():
            if name in names:
                variable.assign(store[name][()] if hasattr(store[name], "dims") else store[name])
        self.load_extra_state({name: store[name] for name in names - set(self.named)})

    @staticmethod
    def extra_state() -> dict[str, Any]:
        """Return arrays by name that are saved with the variables."""
        return {}

    @staticmethod
    def load_extra_state(arrays: dict[str, Any]) -> None:
        """Restore what `extra_state` returned when the file was saved."""
