"""The optimizers' equations in NumPy, as their papers have them, for one variable.

Each takes the value at the start and the (dense) gradients of the steps, and gives the value after.
"""

import numpy as np

BETAS = {"beta_1": 0.875, "beta_2": 0.96875}
EPSILON = 2.0**-20


def adamw(value, gradients, rate, decay, excluded=False, beta_1=0.875, beta_2=0.96875):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        # Keras adds epsilon before the correction: sqrt(v) + epsilon.
        alpha = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        value = value - rate * decay * value - alpha * m / (np.sqrt(v) + EPSILON)
    return value


def lamb(value, gradients, rate, decay, excluded=False, beta_1=0.875, beta_2=0.96875):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        update = m / (1 - beta_1**t) / (np.sqrt(v / (1 - beta_2**t)) + EPSILON) + decay * value
        ratio = 1.0 if excluded else np.linalg.norm(value) / np.linalg.norm(update)
        value = value - rate * ratio * update
    return value


def lion(value, gradients, rate, decay, excluded=False, beta_1=0.875, beta_2=0.96875):
    m = np.zeros_like(value)
    for g in gradients:
        value = value - rate * (np.sign(beta_1 * m + (1 - beta_1) * g) + decay * value)
        m = beta_2 * m + (1 - beta_2) * g
    return value


def sgd(value, gradients, rate, decay, excluded=False, momentum=0.875, nesterov=False):
    m = np.zeros_like(value)
    for g in gradients:
        m = momentum * m - rate * g
        value = value - rate * decay * value + (momentum * m - rate * g if nesterov else m)
    return value


def adafactor(value, gradients, rate, decay, excluded=False, relative_step=True, multiplier=1.0):
    """Algorithms 4 and 5 of the paper, with its sums (the code has means) and constants."""
    rows = columns = v = 0.0
    for t, g in enumerate(gradients, start=1):
        beta, square = 1 - t**-0.8, g**2 + 1e-30
        if g.ndim >= 2:
            rows = beta * rows + (1 - beta) * square.sum(-1)
            columns = beta * columns + (1 - beta) * square.sum(-2)
            v = rows[..., None] * columns[..., None, :] / rows.sum(-1)[..., None, None]
        else:
            v = beta * v + (1 - beta) * square
        update = g / np.sqrt(v)
        update = update / max(1.0, np.sqrt(np.mean(update**2)) / 1.0)
        step = multiplier * (min(rate, t**-0.5) if relative_step else rate)
        size = max(1e-3, np.sqrt(np.mean(value**2)))
        value = value - step * size * update - step * decay * value
    return value


#: Name of the factory -> (equation, arguments in numbers that every dtype holds exactly).
EQUATIONS = {
    "AdamW": (adamw, {**BETAS, "epsilon": EPSILON}),
    "Adafactor": (adafactor, {}),
    "LAMB": (lamb, {**BETAS, "epsilon": EPSILON}),
    "Lion": (lion, BETAS),
    "SGD": (sgd, {"momentum": 0.875}),
}
