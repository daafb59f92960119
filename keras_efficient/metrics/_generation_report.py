"""Generated texts beside the references: exact matches, word error rate, BLEU and chrF."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.metrics._intervals import bootstrap_intervals, share_interval
from keras_efficient.metrics._task_report import TaskReport


@dataclass(frozen=True)
class GenerationReport(TaskReport):
    """Quality of generated texts, each beside one reference.

    Texts are compared word by word, where words are separated by white space; of phonemes, the word
    error rate is the phoneme error rate. The baseline answers with the most frequent reference. The
    interval of the exact matches is Wilson's, that of the error rate the percentile bootstrap with
    1,000 resamples.

    Attributes:
        exact_match: float, share of texts that equal their reference word for word.
        word_error_rate: float, words to insert, delete or replace, per word of the references.
        bleu: float from 0 to 100, or None if sacrebleu is not installed, the extra `bleu`.
        chrf: float from 0 to 100, likewise.
        baseline: str, the most frequent reference.
        baseline_exact_match: float, exact matches of always answering with `baseline`.
        baseline_word_error_rate: float, likewise.
        error_rate_interval: tuple of the bounds of the 95% interval of `word_error_rate`.

    Examples:
        >>> report = ke.metrics.generation_report(["K AE1 T", "D AO1 G"], ["K AE1 T", "D AA1 G"])
        >>> report.exact_match, round(report.word_error_rate, 3)
        (0.5, 0.167)
    """

    exact_match: float
    word_error_rate: float
    bleu: float | None
    chrf: float | None
    baseline: str
    baseline_exact_match: float
    baseline_word_error_rate: float
    error_rate_interval: tuple[float, float]
    metric: ClassVar[str] = "exact match"

    @property
    def score(self) -> float:
        """Return the share of exact matches."""
        return self.exact_match

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        names = ("exact_match", "word_error_rate", "bleu", "chrf")
        return {n: value for n in names if (value := getattr(self, n)) is not None}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        low, high = self.interval
        least, most = self.error_rate_interval
        rows = [
            ("Exact match", f"{self.exact_match:.2%} (95% interval {low:.2%} to {high:.2%})"),
            (
                "Word error rate",
                f"{self.word_error_rate:.4f} (95% interval {least:.4f} to {most:.4f})",
            ),
            (
                "Most frequent text",
                f"exact match {self.baseline_exact_match:.2%}, word error rate "
                f"{self.baseline_word_error_rate:.4f} (always {self.baseline!r:.40})",
            ),
        ]
        shown = (("BLEU", self.bleu), ("chrF", self.chrf))
        return rows + [(name, f"{value:.2f}") for name, value in shown if value is not None]


def generation_report(references: Sequence[str], predictions: Sequence[str]) -> GenerationReport:
    """Compare generated texts with references.

    Args:
        references: the texts that should have been generated.
        predictions: the generated texts, in the same order.

    Returns:
        A `GenerationReport`.

    Raises:
        InputError: there are no texts, their numbers differ, or a reference has no word.

    Examples:
        >>> ke.metrics.generation_report(["a b", "a c"], ["a b", "a b"]).baseline
        'a b'

    Reference:
        sacrebleu, https://github.com/mjpost/sacrebleu (Post 2018), for BLEU and chrF.
    """
    references, predictions = list(references), list(predictions)
    if not references or len(references) != len(predictions):
        raise InputError(
            "A report needs one generated text for each reference, at least one. Received: "
            f"{len(references)} references and {len(predictions)} generated texts. Give both in "
            "the same order."
        )
    wanted = [text.split() for text in references]
    if not all(wanted):
        raise InputError(
            "A reference must have a word. Received: an empty text, number "
            f"{wanted.index([])}. Leave it out."
        )
    frequent = Counter(map(tuple, wanted)).most_common(1)[0][0]
    sizes = np.array([len(words) for words in wanted])
    found, constant = (
        _Compared(wanted, texts)
        for texts in ([text.split() for text in predictions], [list(frequent)] * len(wanted))
    )
    exact = float(found.equal.mean())
    intervals = bootstrap_intervals(
        {"edits": found.edits, "words": sizes}, {"rate": lambda s: s["edits"] / s["words"]}
    )
    warnings = []
    if len(references) > 1 and len({*map(tuple, found.texts)}) == 1:
        warnings.append(
            f"The model generates one text only: {predictions[0]!r:.60}, for all "
            f"{len(references):,} examples."
        )
    bleu, chrf = _with_sacrebleu(references, predictions)
    return GenerationReport(
        examples=len(references),
        interval=share_interval(exact, np.ones(len(references))),
        warnings=tuple(warnings),
        exact_match=exact,
        word_error_rate=float(found.edits.sum() / sizes.sum()),
        bleu=bleu,
        chrf=chrf,
        baseline=" ".join(frequent),
        baseline_exact_match=float(constant.equal.mean()),
        baseline_word_error_rate=float(constant.edits.sum() / sizes.sum()),
        error_rate_interval=intervals["rate"],
    )


class _Compared:
    """Which texts equal their references, and how many words are wrong in each."""

    def __init__(self, wanted, texts):
        self.texts = texts
        self.equal = np.array([a == b for a, b in zip(wanted, texts, strict=True)])
        self.edits = np.array([edit_distance(a, b) for a, b in zip(wanted, texts, strict=True)])


def edit_distance(first: Sequence, second: Sequence) -> int:
    """Return the smallest number of insertions, deletions and replacements between sequences.

    Reference:
        Levenshtein 1966; Wagner & Fischer 1974, "The String-to-String Correction Problem".
    """
    if first == second:
        return 0
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _with_sacrebleu(references, predictions):
    try:
        import sacrebleu
    except ImportError:
        return None, None
    bleu = sacrebleu.corpus_bleu(predictions, [references], force=True)
    return float(bleu.score), float(sacrebleu.corpus_chrf(predictions, [references]).score)
