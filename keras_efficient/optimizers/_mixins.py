"""The optimizer classes: a library's own, steered variable by variable."""

import functools
import types

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.optimizers._param_groups import PathRules
from keras_efficient.optimizers._sparse_gradients import densify
from keras_efficient.optimizers._validation import check, rate_for


def make_optimizer(library, kind, learning_rate, *, weight_decay, global_clipnorm, **arguments):
    """An optimizer of a library. `kind(flavor)` is its class; the rest are its arguments."""
    flavor = flavors.get(library)
    check("weight_decay", weight_decay)
    if global_clipnorm is not None:
        check("global_clipnorm", global_clipnorm, exclusive=True)
    return kind(flavor)(
        rate_for(flavor, learning_rate),
        weight_decay=float(weight_decay),
        global_clipnorm=global_clipnorm,
        **arguments,
    )


@functools.cache
def make_optimizer_class(flavor, name, base, update=None):
    """The class `name`: the library's optimizer `base`, with `exclude`, `groups` and
    `layerwise_decay`, and with the update rule of the mixin `update`, if there is one.
    """
    bases = (PathRulesMixin, getattr(flavor.keras.optimizers, base))
    cls = types.new_class(name, (update, *bases) if update else bases)
    cls.__module__ = __name__
    return flavor.keras.utils.register_keras_serializable(package="keras_efficient")(cls)


class PathRulesMixin:
    """Goes before an optimizer class of either library.

    Both libraries call `update_step` per variable: Keras 3 with the learning rate, tf_keras
    without (it reads `self.learning_rate`). Decay, which they do in a pass of its own, and before,
    is done there too: at the variable's own rate.
    """

    #: What `learning_rate` is times, during a variable's `update_step` in tf_keras.
    _multiplier = 1.0
    _assigned = None

    def __init__(self, *args, exclude=(), groups=(), layerwise_decay=None, **kwargs):
        super().__init__(*args, **kwargs)
        self._rules = PathRules.of(exclude, groups, layerwise_decay)

    def get_config(self):
        return {**super().get_config(), **self._rules.config()}

    def __reduce__(self):
        """Pickled and copied as its settings, without state, as Keras 3's are.

        (tf_keras' own cannot be pickled.)
        """
        from keras_efficient.optimizers._custom_objects import _unpickle

        return _unpickle, (flavors.of(self).name, type(self).__name__, self.get_config())

    @property
    def learning_rate(self):
        rate = super().learning_rate
        return rate if self._multiplier == 1 else rate * self._multiplier

    @learning_rate.setter
    def learning_rate(self, rate):
        super(PathRulesMixin, type(self)).learning_rate.fset(self, rate)

    def build(self, variables):
        variables = list(variables)
        self._assign(variables)
        super().build(variables)

    def _assign(self, variables):
        """Give each variable its rule, once: tf_keras builds in every step."""
        keys = list(map(self._var_key, variables))
        # (Verbs such as ke.lora may let others train between two `fit`s.)
        if self._assigned is None or any(key not in self._assigned for key in keys):
            rules = self._rules.assign(map(flavors.of(self).path, variables))
            # Neither library tracks a mapping proxy as state.
            self._assigned = types.MappingProxyType(
                {key: (i, rule) for i, (key, rule) in enumerate(zip(keys, rules, strict=True))}
            )

    def _rule(self, variable):
        """`(index, rule)` of a variable. Both libraries give bare ones, which have no path."""
        return self._assigned[self._var_key(variable)]

    def _decay(self, variable):
        """A variable's λ: a float, 0.0 for none."""
        _, rule = self._rule(variable)
        # The library's own `exclude_from_weight_decay` holds as well.
        if rule.excluded or not super()._use_weight_decay(variable):
            return 0.0
        return rule.weight_decay if rule.weight_decay is not None else self.weight_decay or 0.0

    def _use_weight_decay(self, variable):
        return self._decay(variable) > 0

    def _apply_weight_decay(self, variables):
        """Nothing: `update_step` does it."""

    def _clip_gradients(self, gradients):
        if self.clipnorm or self.global_clipnorm or self.clipvalue:
            # Both libraries would take repeated rows for rows of their own.
            gradients = [
                tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients
            ]
        return super()._clip_gradients(gradients)

    def _deduplicate_sparse_grad(self, gradients):
        """Nothing: `update_step` does it (and under XLA, too)."""
        return gradients

    def _rate(self, given, dtype):
        """The learning rate of this step, before any multiplier."""
        return tf.cast(given[0] if given else self.learning_rate, dtype)

    def update_step(self, gradient, variable, *given):
        """The library's. `given` is the learning rate in Keras 3, and empty in tf_keras."""
        _, rule = self._rule(variable)
        gradient, rate = densify(gradient, variable), self._rate(given, variable.dtype)
        rate, decay = rate * rule.multiplier, self._decay(variable)
        if decay:
            variable.assign_sub(rate * decay * variable)
        if given:
            return super().update_step(gradient, variable, rate)
        self._multiplier = rule.multiplier
        try:
            return super().update_step(gradient, variable)
        finally:
            self._multiplier = 1.0


class CustomUpdateMixin:
    """Goes before `Steering` where the update rule is ours, written once for both libraries."""

    def update_step(self, gradient, variable, *given):
        index, rule = self._rule(variable)
        rate = self._rate(given, variable.dtype) * rule.multiplier
        self._update(densify(gradient, variable), variable, index, rate)

    def _update(self, gradient, variable, index, rate):
        """Update a `tf.Variable` and the slots of this index."""
        raise NotImplementedError

    def _time(self, dtype):
        """t = 1, 2, …"""
        return tf.cast(self.iterations + 1, dtype)
