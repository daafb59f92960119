"""Which variable decays, and at which rate: rules read from the paths, which both libraries know.

(Their names differ between the libraries.)
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from keras_efficient.optimizers._layer_depths import layer_depths
from keras_efficient.optimizers._validation import check, is_number

#: Biases, and the scales and offsets of normalisation layers, in Keras 3, KerasHub, Hugging Face
#: and Model Garden naming.
NO_DECAY = (r"bias$", r"gamma$", r"beta$", r"(?i:norm)[^/]*/(scale|weight)$")


@dataclass(frozen=True)
class ParamGroup:
    """What the variables that a pattern of `groups` matches get instead.

    Args:
        rate_multiplier: float >= 0, times the optimizer's learning rate (and times what
            `layerwise_decay` gives); 0 stands still.
        weight_decay: float >= 0, instead of the optimizer's; None keeps the optimizer's.
        exclude: bool, as if a pattern of the optimizer's `exclude` matched.

    Example:
        >>> head = ke.optimizers.ParamGroup(rate_multiplier=10.0, weight_decay=0.0)
        >>> model.compile(ke.optimizers.AdamW(1e-5, groups={"dense": head}), loss)
    """

    rate_multiplier: float = 1.0
    weight_decay: float | None = None
    exclude: bool = False

    def __post_init__(self):
        check("rate_multiplier", self.rate_multiplier)
        if self.weight_decay is not None:
            check("weight_decay", self.weight_decay)
            if self.exclude and self.weight_decay:
                raise ValueError(
                    "A group that is excluded does not decay. Received: "
                    f"weight_decay={self.weight_decay}, exclude=True. Leave one of them out."
                )


@dataclass(frozen=True)
class VariableRule:
    """What one variable gets.

    Attributes:
        multiplier: of the learning rate.
        weight_decay: None for the optimizer's.
        excluded: neither weight decay nor (LAMB) a trust ratio.
    """

    multiplier: float = 1.0
    weight_decay: float | None = None
    excluded: bool = False


@dataclass(frozen=True)
class PathRules:
    """An optimizer's `exclude`, `groups` and `layerwise_decay`, checked."""

    exclude: tuple = ()
    groups: tuple = ()
    layerwise_decay: float | None = None

    @classmethod
    def of(cls, exclude, groups, layerwise_decay):
        """From what a user, or a saved optimizer, gives."""
        exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        pairs = groups.items() if isinstance(groups, Mapping) else groups
        # An optimizer saved before there were groups has an empty pattern for none.
        return cls(tuple(filter(None, exclude)), tuple(map(_pair, pairs)), layerwise_decay)

    def __post_init__(self):
        for argument, patterns in (
            ("exclude", self.exclude),
            ("groups", [pattern for pattern, _ in self.groups]),
        ):
            for pattern in patterns:
                _check_pattern(argument, pattern)
        decay = self.layerwise_decay
        if decay is not None and not (is_number(decay) and 0 < decay <= 1):
            raise ValueError(
                "`layerwise_decay` must be None or in (0, 1]: the learning rate of a layer over "
                f"that of the layer above. Received: {decay!r}. Usual are 0.65 to 0.95."
            )

    def config(self):
        """Plain values that `of` takes."""
        groups = [[pattern, asdict(group)] for pattern, group in self.groups]
        return {
            "exclude": list(self.exclude),
            "groups": groups,
            "layerwise_decay": self.layerwise_decay,
        }

    def assign(self, paths):
        """One `Rule` per path.

        Raises:
            ValueError: a group is left without a variable, or the model has no numbered layers.
        """
        paths = list(paths)
        multipliers = [1.0] * len(paths)
        if self.layerwise_decay is not None:
            depths, head = layer_depths(paths)
            multipliers = [self.layerwise_decay ** (head - depth) for depth in depths]
        members = [
            next((i for i, (pattern, _) in enumerate(self.groups) if re.search(pattern, path)), -1)
            for path in paths
        ]
        for index, (pattern, _) in enumerate(self.groups):
            if index not in members:
                raise ValueError(
                    "Every pattern of `groups` must match the path of a trainable variable that no "
                    f"earlier pattern matches. Received: {pattern!r}, for paths such as "
                    f"{paths[:3]}. Print `ke.optimizers.describe(model)` of a model without "
                    "`groups` to see the paths; patterns of more variables come later."
                )
        rules = []
        for path, multiplier, member in zip(paths, multipliers, members, strict=True):
            group = self.groups[member][1] if member >= 0 else ParamGroup()
            excluded = group.exclude or any(re.search(p, path) for p in self.exclude)
            rules.append(
                VariableRule(multiplier * group.rate_multiplier, group.weight_decay, excluded)
            )
        return rules


def _pair(pair):
    if isinstance(pair, tuple | list) and len(pair) == 2:
        pattern, group = pair
        # As `config` has it.
        group = ParamGroup(**group) if isinstance(group, Mapping) else group
        if isinstance(group, ParamGroup):
            return pattern, group
    raise TypeError(
        "`groups` must map patterns to `ke.optimizers.ParamGroup`s, or list (pattern, Group) pairs. "
        f"Received: {pair!r}. Write groups={{'embeddings': ke.optimizers.ParamGroup(0.1)}}."
    )


def _check_pattern(argument, pattern):
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`{argument}` takes regular expressions, searched in the variables' paths. "
            f"Received: {pattern!r} ({error}). Escape characters that mean themselves."
        ) from error
