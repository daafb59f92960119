"""Weight-decay exclusions by a variable's path, which both libraries know (names differ)."""

import functools
import re

import tensorflow as tf

from keras_efficient import flavor as flavors

#: Biases and the scales and offsets of normalisation layers, in Keras 3, Hugging Face and Model
#: Garden naming.
NO_DECAY = (r"bias$", r"gamma$", r"beta$")


@functools.cache
def excluding(base):
    """The optimizer class `base` with one more argument, `exclude`: patterns of paths.

    Keras' own `exclude_from_weight_decay` has to be called before `build`, matches names that
    differ between the libraries, and is not saved with the optimizer.
    """
    flavor = flavors.get(base.__module__.partition(".")[0])

    class Excluding(base):
        def __init__(self, *args, exclude=(), **kwargs):
            super().__init__(*args, **kwargs)
            if isinstance(exclude, str):
                exclude = (exclude,)
            # A tuple would be tracked as a list of state by tf_keras.
            self.exclude = "\n".join(exclude)

        def build(self, variables):
            patterns = list(filter(None, self.exclude.split("\n")))
            self._kept = frozenset(
                self._var_key(variable)
                for variable in variables
                if any(re.search(pattern, flavor.path(variable)) for pattern in patterns)
            )
            super().build(variables)

        def _use_weight_decay(self, variable):
            # Both libraries ask about a bare tf.Variable, which in Keras 3 has no path.
            return self._var_key(variable) not in self._kept

        def update_step(self, gradient, variable, *args):
            # Keras 3's Adam squares the gradients of a repeated embedding row one by one, where it
            # should square their sum. It updates every row anyway, so dense costs little.
            sparse = flavor.name == "keras" and isinstance(gradient, tf.IndexedSlices)
            if sparse and not getattr(gradient, "rows_are_unique", False):
                gradient = tf.convert_to_tensor(gradient)
            super().update_step(gradient, variable, *args)

        def get_config(self):
            return {**super().get_config(), "exclude": self.exclude.split("\n")}

    Excluding.__name__ = Excluding.__qualname__ = base.__name__
    return flavor.keras.utils.register_keras_serializable(package="keras_efficient")(Excluding)
