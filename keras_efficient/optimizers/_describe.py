"""A table of what an optimizer does to each variable of a model."""

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model


def describe(model: Model) -> str:
    """List learning-rate multiplier, weight decay and path of each trainable variable.

    Args:
        model: built model, compiled with an optimizer of this package, with or without a
            `LossScaleOptimizer` around it.

    Returns:
        Text: a header and one line per trainable variable.

    Raises:
        TypeError: the model has another optimizer, or none.

    Examples:
        >>> model.compile(ke.optimizers.AdamW(weight_decay=0.1, exclude="bias$"), loss)
        >>> header, kernel, bias = ke.optimizers.describe(model).splitlines()
        >>> kernel.split()[:2], bias.split()[:2]
        (['1', '0.1'], ['1', '0'])

    Reference:
        Parameter groups of `torch.optim.Optimizer`, which print their settings.
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rules = getattr(optimizer, "_rules", None)
    if optimizer is None or rules is None:
        raise TypeError(
            "`describe` needs a model compiled with an optimizer of `ke.optimizers`. Received a "
            f"model with the optimizer {optimizer!r}. Compile it with one of them."
        )
    paths = list(map(flavors.of(model).path, model.trainable_variables))
    lines = ["multiplier  decay  path"]
    for path, rule in zip(paths, rules.assign(paths), strict=True):
        decay = optimizer.weight_decay if rule.weight_decay is None else rule.weight_decay
        decay = 0.0 if rule.excluded else decay
        lines.append(f"{rule.multiplier:<10.4g}  {decay:<5.4g}  {path}")
    return "\n".join(lines)
