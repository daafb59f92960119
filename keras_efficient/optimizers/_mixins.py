"""Mixins that give an optimizer class of either library rules per variable."""

import functools
import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Flavor, Model, Optimizer
from keras_efficient.optimizers._param_groups import PathRules
from keras_efficient.optimizers._sparse_gradients import densify
from keras_efficient.optimizers._validation import LearningRate, check_number, rate_for

#: The mixins' base class, which a type checker takes for any optimizer class.
_OptimizerBase: Any = object


def make_optimizer(
    library: str | Model,
    optimizer_class: Callable[[Flavor], type],
    learning_rate: LearningRate,
    *,
    weight_decay: float,
    global_clipnorm: float | None,
    **arguments: Any,
) -> Optimizer:
    """Create an optimizer of a library, after checking the arguments that all optimizers share.

    Args:
        library: "keras", "tf_keras", or a model of either.
        optimizer_class: function from a flavour to the class.
        learning_rate: number or schedule.
        weight_decay: float >= 0.
        global_clipnorm: float > 0 or None.
        **arguments: further arguments of the class.
    """
    flavor = flavors.get(library)
    check_number("weight_decay", weight_decay)
    if global_clipnorm is not None:
        check_number("global_clipnorm", global_clipnorm, exclusive=True)
    return optimizer_class(flavor)(
        rate_for(flavor, learning_rate),
        weight_decay=float(weight_decay),
        global_clipnorm=global_clipnorm,
        **arguments,
    )


@functools.cache
def make_optimizer_class(flavor: Flavor, name: str, base: str, update: type | None) -> type:
    """Create and register the optimizer class `name` of a library.

    Args:
        flavor: the library.
        name: name of the class.
        base: name of the library's optimizer class to derive it from.
        update: mixin with an update rule that replaces the library's, such as a subclass of
            `CustomUpdateMixin`, or None.

    Returns:
        The class: the library's, with the arguments `exclude`, `groups` and `layerwise_decay`.
    """
    bases = (PathRulesMixin, getattr(flavor.keras.optimizers, base))
    cls: Any = types.new_class(name, (update, *bases) if update else bases)
    cls.__module__ = __name__
    cls._recipe = (name, base, update)
    return flavor.keras.utils.register_keras_serializable(package="keras_efficient")(cls)


def _unpickle(library: str, name: str, base: str, update: type | None, config: dict) -> Optimizer:
    """Create an optimizer from the values that `PathRulesMixin.__reduce__` pickles."""
    cls: Any = make_optimizer_class(flavors.get(library), name, base, update)
    return cls.from_config(config)


class PathRulesMixin(_OptimizerBase):
    """Per-variable learning rates, decays and exclusions, put before a library's optimizer class.

    Both libraries call `update_step` once per variable: Keras 3 passes the learning rate, tf_keras
    does not and reads `self.learning_rate`. Both decay all variables in a separate pass before it;
    here `update_step` decays its variable, at the variable's own rate.
    """

    #: The arguments of `make_optimizer_class`, except the flavour.
    _recipe: tuple
    #: Learning-rate multiplier during a variable's `update_step` in tf_keras.
    _multiplier = 1.0
    _assigned: Any = None

    def __init__(self, *args, exclude=(), groups=(), layerwise_decay=None, **kwargs):
        super().__init__(*args, **kwargs)
        self._rules = PathRules.of(exclude, groups, layerwise_decay)

    def get_config(self):
        return {**super().get_config(), **self._rules.config()}

    def __reduce__(self):
        """Pickle and copy the configuration without the state, as Keras 3 does.

        tf_keras' own optimizers cannot be pickled.
        """
        return _unpickle, (flavors.of(self).name, *self._recipe, self.get_config())

    @property
    def learning_rate(self):
        rate = super().learning_rate
        return rate if self._multiplier == 1 else rate * self._multiplier

    @learning_rate.setter
    def learning_rate(self, rate):
        parent: Any = super(PathRulesMixin, type(self))
        parent.learning_rate.fset(self, rate)

    def build(self, variables):
        variables = list(variables)
        self._assign_rules(variables)
        super().build(variables)

    def _assign_rules(self, variables):
        """Assign each variable its rule, once: tf_keras calls `build` in every step."""
        keys = list(map(self._var_key, variables))
        # Functions such as `ke.lora` may change which variables are trainable between two `fit`s.
        if self._assigned is None or any(key not in self._assigned for key in keys):
            rules = self._rules.assign(map(flavors.of(self).path, variables))
            # A mapping proxy, because neither library tracks it as state.
            self._assigned = types.MappingProxyType(
                {key: (i, rule) for i, (key, rule) in enumerate(zip(keys, rules, strict=True))}
            )

    def _rule(self, variable):
        """Return `(index, rule)` of a variable, which the libraries pass without its path."""
        return self._assigned[self._var_key(variable)]

    def _decay(self, variable):
        """Return the weight decay of a variable, a float; 0 for none."""
        _, rule = self._rule(variable)
        # The library's own `exclude_from_weight_decay` applies as well.
        if rule.excluded or not super()._use_weight_decay(variable):
            return 0.0
        return rule.weight_decay if rule.weight_decay is not None else self.weight_decay or 0.0

    def _use_weight_decay(self, variable):
        return self._decay(variable) > 0

    def _apply_weight_decay(self, variables):
        """Do nothing: `update_step` applies the decay."""

    def _clip_gradients(self, gradients):
        if self.clipnorm or self.global_clipnorm or self.clipvalue:
            # The libraries would count repeated rows of a sparse gradient separately.
            gradients = [
                tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients
            ]
        return super()._clip_gradients(gradients)

    def _deduplicate_sparse_grad(self, gradients):
        """Do nothing: `update_step` sums repeated rows, also under XLA."""
        return gradients

    def _step_rate(self, learning_rate, dtype):
        """Return the learning rate of this step as a scalar, before any multiplier."""
        return tf.cast(learning_rate[0] if learning_rate else self.learning_rate, dtype)

    def update_step(self, gradient, variable, *learning_rate):
        """Decay and update a variable; `learning_rate` is empty in tf_keras."""
        _, rule = self._rule(variable)
        rate = self._step_rate(learning_rate, variable.dtype) * rule.multiplier
        if decay := self._decay(variable):
            variable.assign_sub(rate * decay * variable)
        self._library_update(gradient, variable, rate, *learning_rate)

    def _library_update(self, gradient, variable, rate, *learning_rate):
        """Update a variable at its own rate, a scalar tensor, by the library's `update_step`."""
        gradient = densify(gradient, variable)
        if learning_rate:
            return super().update_step(gradient, variable, rate)
        _, rule = self._rule(variable)
        self._multiplier = rule.multiplier
        try:
            return super().update_step(gradient, variable)
        finally:
            self._multiplier = 1.0


class CustomUpdateMixin(_OptimizerBase):
    """An update rule of this package, written once for both libraries.

    Goes before `PathRulesMixin` in the bases of a class.
    """

    def update_step(self, gradient, variable, *learning_rate):
        index, rule = self._rule(variable)
        rate = self._step_rate(learning_rate, variable.dtype) * rule.multiplier
        self._update(densify(gradient, variable), variable, index, rate)

    def _update(self, gradient, variable, index, rate):
        """Update a `tf.Variable` and its slots.

        Args:
            gradient: dense tensor of the variable's shape and dtype.
            variable: `tf.Variable`.
            index: int, the variable's position in the optimizer's lists of slots.
            rate: scalar tensor, the variable's own learning rate.
        """
        raise NotImplementedError

    def _time(self, dtype):
        """Return the number of this update, counted from 1, as a scalar."""
        return tf.cast(self.iterations + 1, dtype)
