"""How well embeddings of pairs of texts agree with scores, or find the other text."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.metrics._intervals import bootstrap_intervals
from keras_efficient.metrics._task_report import TaskReport

#: Numbers of best texts among which the right one is looked for.
DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class EmbeddingReport(TaskReport):
    """Quality of embeddings on pairs of texts.

    For pairs with scores, the main score is Spearman's correlation of the scores and the cosine
    similarities. Otherwise the two texts of a pair belong together, and it is the recall at 1: how
    often the second text is the most similar of all second texts to the first one. Intervals are
    those of the percentile bootstrap with 1,000 resamples.

    Attributes:
        scored: bool, whether the pairs have scores.
        spearman: float, correlation of the ranks of scores and similarities; None without scores.
        pearson: float, correlation of scores and similarities; None without scores.
        recall: dict of the recall at 1, 5 and 10, of different second texts; empty with scores.
        mrr: float, mean reciprocal rank of the right text; None with scores.
        candidates: int, number of different second texts.

    Examples:
        >>> import numpy as np
        >>> report = ke.metrics.embedding_report(np.eye(3)[:, None].repeat(2, 1))
        >>> report.recall[1], report.mrr
        (1.0, 1.0)
    """

    scored: bool
    spearman: float | None
    pearson: float | None
    recall: dict[int, float]
    mrr: float | None
    candidates: int
    metric: ClassVar[str] = "agreement"

    @property
    def score(self) -> float:
        """Return Spearman's correlation, or the recall at 1."""
        return float(self.spearman if self.spearman is not None else self.recall[1])

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        found = {f"recall_at_{k}": share for k, share in self.recall.items()}
        others = {"spearman": self.spearman, "pearson": self.pearson, "mrr": self.mrr}
        return found | {name: value for name, value in others.items() if value is not None}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        interval = "(95% interval {:.4f} to {:.4f})".format(*self.interval)
        if self.scored:
            return [
                ("Spearman", f"{self.spearman:.4f} {interval}"),
                ("Pearson", f"{self.pearson:.4f}"),
            ]
        rows = [(f"Recall at {k}", f"{share:.4f}") for k, share in self.recall.items()]
        rows[0] = (rows[0][0], f"{rows[0][1]} {interval}")
        return [
            *rows,
            ("Mean reciprocal rank", f"{self.mrr:.4f}"),
            ("Chance", f"{1 / self.candidates:.4f} at 1, of {self.candidates:,} texts"),
        ]


def embedding_report(embeddings: Any, scores: Any = None, *, keys: Any = None) -> EmbeddingReport:
    """Compare the cosine similarities of pairs with scores, or find each pair's second text.

    Args:
        embeddings: float array `[pairs, 2, width]`.
        scores: float array `[pairs]`, how similar the texts are, on any scale. Default: None, the
            texts of a pair belong together.
        keys: array `[pairs]`, equal for equal second texts, which count as one candidate. Default:
            None, second texts with the same embedding are one.

    Returns:
        An `EmbeddingReport`.

    Raises:
        InputError: There are fewer than two pairs, a shape does not fit, or a number is not finite.

    Examples:
        >>> import numpy as np
        >>> pairs = np.array([[[1, 0], [1, 0]], [[1, 0], [1, 1]], [[1, 0], [0, 1]]])
        >>> ke.metrics.embedding_report(pairs, [5.0, 3.0, 1.0]).spearman
        1.0

    Reference:
        Cer et al. 2017, "SemEval-2017 Task 1: Semantic Textual Similarity";
        `sentence_transformers.evaluation`, EmbeddingSimilarityEvaluator and
        InformationRetrievalEvaluator.
    """
    from scipy.stats import rankdata

    z = np.asarray(embeddings, "float64")
    y = None if scores is None else np.asarray(scores, "float64")
    if z.ndim != 3 or z.shape[1] != 2 or len(z) < 2 or (y is not None and y.shape != z.shape[:1]):
        raise InputError(
            "A report needs two embeddings for each of two or more pairs, [pairs, 2, width], and "
            f"one score per pair or none. Received: embeddings of shape {z.shape} and scores of "
            f"shape {None if y is None else y.shape}. Evaluate pairs of texts."
        )
    if not np.isfinite(z).all() or (y is not None and not np.isfinite(y).all()):
        raise InputError(
            "Embeddings and scores must be finite. Received: NaN or infinities. Check the data, "
            "and whether training diverged."
        )
    z /= np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    if y is not None:
        similarity = np.sum(z[:, 0] * z[:, 1], -1)
        spearman, interval = _correlation(rankdata(y), rankdata(similarity))
        pearson, _ = _correlation(y, similarity)
        found = {"spearman": spearman, "pearson": pearson, "recall": {}, "mrr": None}
        candidates = len(z)
    else:
        second = z[:, 1] if keys is None else np.asarray(keys)
        _, firsts, own = np.unique(second, axis=0, return_index=True, return_inverse=True)
        own, candidates = own.reshape(-1), len(firsts)
        ranks = _ranks(z[:, 0], z[firsts, 1], own)
        recall = {k: float(np.mean(ranks <= k)) for k in DEPTHS}
        hits = {"hit": ranks <= 1, "all": np.ones(len(z))}
        interval = bootstrap_intervals(hits, {"hit": lambda s: s["hit"] / s["all"]})["hit"]
        found = {"spearman": None, "pearson": None, "recall": recall}
        found["mrr"] = float(np.mean(1 / ranks))
    warnings = []
    if interval[0] <= (0.0 if y is not None else 1 / candidates):
        warnings.append("The embeddings are not clearly better than chance on these pairs.")
    return EmbeddingReport(
        examples=len(z),
        interval=interval,
        warnings=tuple(warnings),
        scored=y is not None,
        candidates=candidates,
        **found,
    )


def _correlation(a, b):
    """Return Pearson's correlation, 0 where it is undefined, and its interval."""
    a, b = a - a.mean(), b - b.mean()
    terms = {"n": np.ones(len(a)), "a": a, "b": b, "aa": a * a, "bb": b * b, "ab": a * b}

    def correlation(s):
        covariance = s["ab"] - s["a"] * s["b"] / s["n"]
        spread = (s["aa"] - s["a"] ** 2 / s["n"]) * (s["bb"] - s["b"] ** 2 / s["n"])
        return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)

    found = correlation({name: values.sum() for name, values in terms.items()})
    return float(found), bootstrap_intervals(terms, {"r": correlation})["r"]


def _ranks(queries, candidates, own):
    """Return the rank of each query's own candidate; of equally similar ones, the worst."""
    ranks = []
    for start in range(0, len(queries), 1024):
        part = queries[start : start + 1024] @ candidates.T
        mine = np.take_along_axis(part, own[start : start + 1024, None], 1)
        ranks.append(np.sum(part >= mine - 1e-9, 1))
    return np.concatenate(ranks)
