"""What an optimizer does to each variable of a model, as text."""

from keras_efficient import flavor as flavors


def describe(model):
    """One line per trainable variable: what its rate is times, its decay λ, and its path.

    Args:
        model: a built model, compiled with an optimizer of this package (or with loss scaling
            around one).

    Returns:
        str.

    Raises:
        TypeError: the model has another optimizer, or none.

    Example:
        >>> model.compile(ke.optimizers.AdamW(weight_decay=0.1, exclude="bias$"), loss)
        >>> header, kernel, bias = ke.optimizers.describe(model).splitlines()
        >>> kernel.split()[:2], bias.split()[:2]
        (['1', '0.1'], ['1', '0'])
    """
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(optimizer, "_rules"):
        raise TypeError(
            "`describe` needs a model compiled with an optimizer of `ke.optimizers`. Received a "
            f"model with the optimizer {optimizer!r}. Compile it with one of them."
        )
    paths = list(map(flavors.of(model).path, model.trainable_variables))
    lines = ["rate x  decay  path"]
    for path, rule in zip(paths, optimizer._rules.assign(paths), strict=True):
        decay = optimizer.weight_decay if rule.weight_decay is None else rule.weight_decay
        decay = 0.0 if rule.excluded else decay
        lines.append(f"{rule.multiplier:<6.4g}  {decay:<5.4g}  {path}")
    return "\n".join(lines)
