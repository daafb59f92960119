"""Exact match and F1 of answers to questions, by the rules of SQuAD, beside a baseline."""

import collections
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.metrics._intervals import bootstrap_intervals
from keras_efficient.metrics._task_report import TaskReport


@dataclass(frozen=True)
class AnswerReport(TaskReport):
    """Quality of a model that answers questions with parts of their contexts; prints as a table.

    Answers are compared in lower case, without punctuation, English articles and surplus spaces,
    as by SQuAD's script. The best of several right answers counts. The score is the mean F1 of the
    words of the answers; its interval is that of the percentile bootstrap over the questions with
    1,000 resamples.

    Attributes:
        f1: float, mean over the questions of the F1 of the words of the answer.
        exact_match: float, share of the questions whose answer is exactly right.
        baseline_f1: float, F1 of the better of two answers without a model: the whole context for
            all questions, or no answer for all of them.
        baseline_exact_match: float, exact match of this answer.
        baseline: str, "the whole context" or "no answer".
        unanswerable: int, number of questions that have no answer.
        unanswerable_accuracy: float, share of these that are not answered; 0 if there are none.

    Examples:
        >>> report = ke.metrics.answer_report(
        ...     ["in Rome", "The cat."],
        ...     [["Rome"], ["cat", "a black cat"]],
        ...     ["Anna lives in Rome.", "A black cat sleeps."],
        ... )
        >>> round(report.f1, 3), report.exact_match
        (0.833, 0.5)
    """

    f1: float
    exact_match: float
    baseline_f1: float
    baseline_exact_match: float
    baseline: str
    unanswerable: int
    unanswerable_accuracy: float
    metric: ClassVar[str] = "answer F1"

    @property
    def score(self) -> float:
        """Return the F1."""
        return self.f1

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        return {"answer_f1": self.f1, "exact_match": self.exact_match}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        low, high = self.interval
        rows = [
            ("Answer F1", f"{self.f1:.4f} (95% interval {low:.4f} to {high:.4f})"),
            ("Exact match", f"{self.exact_match:.2%}"),
            (
                "Baseline",
                f"F1 {self.baseline_f1:.4f}, exact match {self.baseline_exact_match:.2%} (always "
                f"{self.baseline})",
            ),
        ]
        if self.unanswerable:
            rows.append(
                (
                    "Unanswerable",
                    f"{self.unanswerable:,} questions, {self.unanswerable_accuracy:.2%} of them "
                    "not answered",
                )
            )
        return rows


def answer_report(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    contexts: Sequence[str],
    *,
    sample_weight: Any = None,
) -> AnswerReport:
    """Compare predicted answers with the right ones.

    Args:
        predictions: str for each question, "" for no answer.
        answers: list of str for each question, the right answers; empty if there is none.
        contexts: str for each question, in which the answers stand.
        sample_weight: float array [questions] >= 0. Default: None, ones.

    Returns:
        An `AnswerReport`.

    Raises:
        InputError: there are no questions, or their numbers differ.

    Examples:
        >>> ke.metrics.answer_report([""], [[]], ["Anna lives in Rome."]).exact_match
        1.0

    Reference:
        Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", and
        the evaluation script of SQuAD 2.0.
    """
    numbers = [len(predictions), len(answers), len(contexts)]
    count = np.ones(numbers[0]) if sample_weight is None else np.asarray(sample_weight, float)
    if not numbers[0] or len({*numbers, *count.shape}) != 1 or not count.sum() > 0:
        raise InputError(
            "A report needs a prediction, answers, a context and a weight for each question, and "
            "a weight above 0. Received (predictions, answers, contexts, weights): "
            f"{numbers[0]}, {numbers[1]}, {numbers[2]}, {count.shape}."
        )
    found = np.array(list(map(_best, predictions, answers)))
    whole = np.array(list(map(_best, contexts, answers)))
    none = np.array([_best("", right) for right in answers])
    names = {"the whole context": whole, "no answer": none}
    baselines = {name: np.average(x, axis=0, weights=count) for name, x in names.items()}
    baseline = max(baselines, key=lambda name: baselines[name][1])
    empty = np.array([not any(map(normalized_words, right)) for right in answers])
    correct = float(count[empty] @ found[empty, 0])
    exact_match, f1 = np.average(found, axis=0, weights=count)
    report = {
        "f1": float(f1),
        "exact_match": float(exact_match),
        "baseline_f1": float(baselines[baseline][1]),
        "baseline_exact_match": float(baselines[baseline][0]),
        "baseline": baseline,
        "unanswerable": int(empty.sum()),
        "unanswerable_accuracy": correct / max(float(count[empty].sum()), 1e-12),
    }
    intervals = bootstrap_intervals(
        {"f1": count * found[:, 1], "weight": count},
        {"f1": lambda sums: sums["f1"] / np.maximum(sums["weight"], 1e-12)},
    )
    return AnswerReport(len(predictions), intervals["f1"], tuple(_warnings(report)), **report)


def normalized_words(answer: str) -> list[str]:
    """Return the words of an answer by which SQuAD's script compares it with others."""
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _best(prediction, answers):
    """Return the exact match and the F1 with the answer to which a prediction is nearest."""
    # The script leaves out answers of which nothing is left.
    right = [words for words in map(normalized_words, answers) if words] or [[]]
    words = normalized_words(prediction)
    return max(float(words == r) for r in right), max(_f1(words, r) for r in right)


def _f1(words, right):
    if not words or not right:
        return float(words == right)
    same = sum((collections.Counter(words) & collections.Counter(right)).values())
    return 2 * same / (len(words) + len(right))


def _warnings(report):
    if report["f1"] <= report["baseline_f1"]:
        yield (
            f"The answers are not better than always giving {report['baseline']}. Train longer, or "
            "with another learning rate."
        )
