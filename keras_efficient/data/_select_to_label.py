"""`select_to_label`: which texts to label next (active learning)."""

from typing import Any

import numpy as np

from keras_efficient._errors import InputError

METHODS = ("entropy", "margin", "confidence", "badge")


def select_to_label(
    probabilities: Any,
    number: int,
    *,
    method: str = "entropy",
    embeddings: Any = None,
    seed: int = 0,
) -> np.ndarray:
    """Select the unlabelled texts whose labels would teach a classifier most.

    - "entropy": those of the largest entropy, −Σ p log p;
    - "margin": of the smallest difference between the two most probable classes;
    - "confidence": of the smallest probability of the most probable class;
    - "badge": uncertain ones that differ from each other. The gradient of the loss in the last
      layer, if the most probable class were the label, is (p − y) ⊗ h; its length grows with the
      uncertainty, and texts are drawn by k-means++ in the space of these gradients.

    Args:
        probabilities: float `[texts, classes]`, what the model predicts; `tf.nn.softmax` of its
            logits.
        number: Number of texts to select.
        method: One of the above. Default: "entropy".
        embeddings: float `[texts, width]`, what the last layer reads, h; for "badge". Default:
            None.
        seed: Seed of the draws of "badge". Default: 0.

    Returns:
        int64 `[number]`, the places of the texts; the most uncertain first.

    Raises:
        InputError: The arrays are no probabilities, or do not fit `number` and `method`.

    Examples:
        >>> predicted = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
        >>> ke.data.select_to_label(predicted, 2).tolist()
        [1, 2]
        >>> hidden = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> found = ke.data.select_to_label(predicted, 2, method="badge", embeddings=hidden)
        >>> sorted(found.tolist())
        [1, 2]

    Reference:
        Lewis & Gale 1994, "A Sequential Algorithm for Training Text Classifiers"; Scheffer et al.
        2001, "Active Hidden Markov Models for Information Extraction" (margin); Ash et al. 2020,
        "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds" (BADGE).
    """
    p = np.asarray(probabilities, np.float64)
    valid = p.ndim == 2 and p.shape[1] > 1 and np.isfinite(p).all() and (p >= 0).all()
    if not valid or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise InputError(
            "`probabilities` must be [texts, classes], and of each text 1 in sum. Received: an "
            f"array {list(p.shape)}. Apply tf.nn.softmax to the logits."
        )
    if method not in METHODS:
        raise InputError(
            f"`method` must be one of {', '.join(METHODS)}. Received: {method!r:.60}. Choose one."
        )
    if type(number) is not int or not 1 <= number <= len(p):
        raise InputError(
            f"`number` must be an int from 1 to the number of texts, {len(p)}. Received: "
            f"{number!r:.60}. Select fewer."
        )
    if method == "badge":
        h = np.asarray(embeddings if embeddings is not None else [], np.float64)
        if h.ndim != 2 or len(h) != len(p) or not np.isfinite(h).all():
            raise InputError(
                '`embeddings` must be finite [texts, width], one row per text, for method="badge". '
                f"Received: {'None' if embeddings is None else list(h.shape)}. Give what the last "
                "layer reads."
            )
        return _badge(p, h, number, np.random.default_rng(seed))
    if method == "entropy":
        certainty = np.sum(p * np.log(np.maximum(p, 1e-300)), 1)
    elif method == "margin":
        two = np.sort(p, 1)[:, -2:]
        certainty = two[:, 1] - two[:, 0]
    else:
        certainty = p.max(1)
    return np.argsort(certainty, kind="stable")[:number]


def _badge(p, h, number, rng):
    """Draw by k-means++ among the gradients (p − y) ⊗ h, without making these outer products."""
    errors = p.copy()
    errors[np.arange(len(p)), p.argmax(1)] -= 1
    norms = (errors**2).sum(1) * (h**2).sum(1)
    chosen = [int(norms.argmax())]
    nearest = np.full(len(p), np.inf)
    while len(chosen) < number:
        last = chosen[-1]
        # Of two outer products: ⟨a ⊗ b, c ⊗ d⟩ = ⟨a, c⟩ ⟨b, d⟩.
        products = (errors @ errors[last]) * (h @ h[last])
        distance = np.maximum(norms + norms[last] - 2 * products, 0)
        nearest = np.minimum(nearest, distance)
        nearest[chosen] = 0
        total = nearest.sum()
        if total > 0:
            chosen.append(int(rng.choice(len(p), p=nearest / total)))
        else:
            rest = np.setdiff1d(np.arange(len(p)), chosen)
            chosen.append(int(rng.choice(rest)))
    return np.array(chosen)
