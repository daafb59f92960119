"""Perplexity and accuracy of a language model, beside the frequencies of tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.metrics._intervals import bootstrap_intervals
from keras_efficient.metrics._task_report import TaskReport


@dataclass(frozen=True)
class LanguageModelReport(TaskReport):
    """Quality of a model that predicts tokens; prints as a table.

    The score is the mean log-likelihood of the tokens in nats, of which the perplexity is the
    exponential of the negative. Its interval is that of the percentile bootstrap over the texts
    with 1,000 resamples. Perplexities are comparable for one tokenizer and one choice of tokens
    only.

    The baseline predicts each token with its frequency. Its perplexity is the exponential of the
    entropy of the evaluated tokens, which is estimated as by Chao and Shen, since many tokens occur
    in a few texts never or once.

    Attributes:
        loss: float, mean negative log-likelihood of a token, in nats.
        perplexity: float, exponential of the loss.
        accuracy: float, share of the tokens that are the most probable one.
        baseline_perplexity: float, perplexity of the frequencies of the tokens.
        baseline_accuracy: float, share of the most frequent token.
        tokens: int, number of tokens that are predicted.

    Examples:
        >>> import numpy as np
        >>> labels = [[3, 5], [3, -100]]
        >>> report = ke.metrics.language_model_report(labels, np.log([[0.5, 0.25], [1, 1]]))
        >>> round(report.perplexity, 3), round(report.baseline_perplexity, 3), report.tokens
        (2.0, 2.904, 3)
    """

    loss: float
    perplexity: float
    accuracy: float
    baseline_perplexity: float
    baseline_accuracy: float
    tokens: int
    metric: ClassVar[str] = "log-likelihood per token"

    @property
    def score(self) -> float:
        """Return the mean log-likelihood of a token."""
        return -self.loss

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        """Return the bounds of the 95% interval of the perplexity."""
        low, high = self.interval
        return float(np.exp(-high)), float(np.exp(-low))

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        return {name: getattr(self, name) for name in ("perplexity", "loss", "accuracy")}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        low, high = self.perplexity_interval
        return [
            ("Perplexity", f"{self.perplexity:.4g} (95% interval {low:.4g} to {high:.4g})"),
            ("Loss", f"{self.loss:.4f} nats per token, {self.tokens:,} tokens"),
            ("Accuracy", f"{self.accuracy:.2%} of the tokens"),
            (
                "Unigram baseline",
                f"perplexity {self.baseline_perplexity:.4g}, accuracy "
                f"{self.baseline_accuracy:.2%} (frequencies of the tokens)",
            ),
        ]


def language_model_report(
    labels: Any, log_probabilities: Any, correct: Any = None, *, sample_weight: Any = None
) -> LanguageModelReport:
    """Report the perplexity of a language model from the probabilities that it gave the tokens.

    Args:
        labels: int array [texts, tokens], ids of the tokens to predict; -100 for others.
        log_probabilities: float array [texts, tokens], natural logarithm of the probability of each
            label. Values where the label is -100 are not read.
        correct: bool array [texts, tokens], whether the label is the most probable token. Default:
            None, no token.
        sample_weight: float array [texts] >= 0. Default: None, ones.

    Returns:
        A `LanguageModelReport`.

    Raises:
        InputError: there are no labels that count, or the shapes differ.

    Examples:
        >>> import numpy as np
        >>> round(ke.metrics.language_model_report([[7]], np.log([[0.125]])).perplexity, 6)
        8.0

    Reference:
        Jelinek et al. 1977, "Perplexity - a measure of the difficulty of speech recognition tasks";
        Chao & Shen 2003 for the baseline.
    """
    labels, values = np.asarray(labels), np.asarray(log_probabilities, "float64")
    right = np.zeros(labels.shape) if correct is None else np.asarray(correct, "float64")
    weight = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, "float64")
    counted = labels != IGNORED
    same = labels.shape == values.shape == right.shape and weight.shape == labels.shape[:1]
    if labels.ndim != 2 or not same or not counted.any():
        raise InputError(
            "A report needs the label of each token of each text, some of which count, its "
            "log-probability, and a weight for each text. Received: labels of shape "
            f"{labels.shape}, log-probabilities of shape {values.shape}, weights of shape "
            f"{weight.shape}. Give what a language model task returns."
        )
    weights = weight[:, None] * counted
    numbers = weights.sum(1)
    sums = (weights * np.where(counted, values, 0.0)).sum(1)
    total = numbers.sum()
    intervals = bootstrap_intervals(
        {"sum": sums, "tokens": numbers},
        {"score": lambda found: found["sum"] / np.maximum(found["tokens"], 1e-12)},
    )
    ids, counts = np.unique(labels[counted & (weights > 0)], return_counts=True)
    most = ids[counts.argmax()] if len(ids) else -1
    loss = float(-sums.sum() / total)
    report = {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "accuracy": float((weights * right).sum() / total),
        "baseline_perplexity": float(np.exp(_entropy(counts))),
        "baseline_accuracy": float((weights * (labels == most)).sum() / total),
        "tokens": int(counted.sum()),
    }
    return LanguageModelReport(len(labels), intervals["score"], tuple(_warnings(report)), **report)


def _entropy(counts):
    """Return the entropy in nats of a distribution of which samples were counted.

    Reference:
        Chao & Shen 2003, "Nonparametric estimation of Shannon's index of diversity when there are
        unseen species in sample".
    """
    number = counts.sum()
    # The share of the distribution that was seen.
    singles = min(int((counts == 1).sum()), number - 1)
    shares = (1 - singles / number) * counts / number
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares) / (1 - (1 - shares) ** number)).sum())


def _warnings(report):
    if report["perplexity"] >= report["baseline_perplexity"]:
        yield (
            "The perplexity is not below that of the frequencies of the tokens. Train longer, or "
            "on more text."
        )
