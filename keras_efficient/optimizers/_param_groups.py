"""Learning-rate multipliers, decays and exclusions of variables, selected by their paths."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from keras_efficient.optimizers._layer_depths import layer_depths
from keras_efficient.optimizers._validation import check_number, is_number

#: Patterns for biases and for the scales and offsets of normalisation layers, in the naming of
#: Keras 3, KerasHub, Hugging Face and Model Garden.
NO_DECAY = (r"bias$", r"gamma$", r"beta$", r"(?i:norm)[^/]*/(scale|weight)$")


@dataclass(frozen=True)
class ParamGroup:
    """Settings for the variables that a pattern of an optimizer's `groups` matches.

    Args:
        rate_multiplier: float >= 0, multiplies the optimizer's learning rate, together with the
            factor of `layerwise_decay`; 0 freezes the variables. Default: 1.
        weight_decay: float >= 0 that replaces the optimizer's, or None to keep that.
            Default: None.
        exclude: bool, whether to treat the variables as if a pattern of the optimizer's `exclude`
            matched them. Default: False.

    Raises:
        ValueError: a number is out of its range, or an excluded group has a decay.

    Examples:
        >>> head = ke.optimizers.ParamGroup(rate_multiplier=10.0, weight_decay=0.0)
        >>> model.compile(ke.optimizers.AdamW(1e-5, groups={"dense": head}), loss)

    Reference:
        The parameter groups of `torch.optim.Optimizer`.
    """

    rate_multiplier: float = 1.0
    weight_decay: float | None = None
    exclude: bool = False

    def __post_init__(self):
        check_number("rate_multiplier", self.rate_multiplier)
        if self.weight_decay is not None:
            check_number("weight_decay", self.weight_decay)
            if self.exclude and self.weight_decay:
                raise ValueError(
                    "A group that is excluded does not decay. Received: "
                    f"weight_decay={self.weight_decay}, exclude=True. Remove one of them."
                )


#: The argument `groups` of the optimizers.
Groups: TypeAlias = Mapping[str, ParamGroup] | Sequence[tuple[str, ParamGroup]]


@dataclass(frozen=True)
class VariableRule:
    """The settings of one variable.

    Attributes:
        multiplier: float, multiplies the learning rate.
        weight_decay: float, or None for the optimizer's.
        excluded: bool, whether the variable has neither weight decay nor, in LAMB, a trust ratio.
    """

    multiplier: float = 1.0
    weight_decay: float | None = None
    excluded: bool = False


@dataclass(frozen=True)
class PathRules:
    """The validated `exclude`, `groups` and `layerwise_decay` of an optimizer.

    Attributes:
        exclude: tuple of regular expressions.
        groups: tuple of (regular expression, `ParamGroup`).
        layerwise_decay: float in (0, 1], or None.
    """

    exclude: tuple = ()
    groups: tuple = ()
    layerwise_decay: float | None = None

    @classmethod
    def of(
        cls, exclude: str | Iterable[str], groups: Any, layerwise_decay: float | None
    ) -> "PathRules":
        """Create the rules from the arguments, or the saved configuration, of an optimizer."""
        exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        pairs = groups.items() if isinstance(groups, Mapping) else groups
        # Optimizers saved before there were groups have an empty pattern for no exclusions.
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
                "`layerwise_decay` must be None or in (0, 1]: the ratio of a layer's learning rate "
                f"to that of the layer above. Received: {decay!r}. Values from 0.65 to 0.95 are "
                "common."
            )

    def config(self) -> dict[str, Any]:
        """Return the arguments of `of` as JSON values."""
        groups = [[pattern, asdict(group)] for pattern, group in self.groups]
        return {
            "exclude": list(self.exclude),
            "groups": groups,
            "layerwise_decay": self.layerwise_decay,
        }

    def assign(self, paths: Iterable[str]) -> list[VariableRule]:
        """Return the rule of each variable, given the paths of all of them.

        Raises:
            ValueError: no variable is left for a group, or `layerwise_decay` finds no numbered
                layers.
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
                    f"{paths[:3]}. Print `ke.optimizers.describe(model)` of a model compiled "
                    "without `groups` to see the paths, and put more specific patterns first."
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
        # A saved configuration has the group as a dict.
        group = ParamGroup(**group) if isinstance(group, Mapping) else group
        if isinstance(group, ParamGroup):
            return pattern, group
    raise TypeError(
        "`groups` must map patterns to `ke.optimizers.ParamGroup`s, or list (pattern, ParamGroup) "
        f"pairs. Received: {pair!r}. Write for example "
        "groups={'embeddings': ke.optimizers.ParamGroup(0.1)}."
    )


def _check_pattern(argument, pattern):
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`{argument}` takes regular expressions, which are searched for in the variables' "
            f"paths. Received: {pattern!r} ({error}). Escape special characters with a backslash."
        ) from error
