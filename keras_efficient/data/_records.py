"""In-memory texts, or pairs of texts, and their labels."""

import dataclasses
import functools
import hashlib
import numbers
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, listed
from keras_efficient.data._answer_labels import AnswerLabels
from keras_efficient.data._check_text import check_text
from keras_efficient.data._class_labels import class_labels
from keras_efficient.data._read_items import iterated
from keras_efficient.data._structured_labels import StructuredLabels

# Larger in-memory integers are not class indices, but probably ids.
_MOST_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Records:
    """Texts or pairs of texts, their labels, and the names of the classes.

    `read_records` makes records from files, tables and rows, and `Records.of` from texts; `split`
    divides them.

    Attributes:
        texts: The texts, each a string with at least one character that is not white space.
        labels: What each text is labelled with, or None. Classes: int32 array of shape `[texts]` of
            indices into `label_names`. Several classes: int32 array `[texts, classes]` of 0 and 1.
            Numbers: float32 array `[texts]`, without `label_names`. A class for each word:
            `TokenLabels`. Answers to questions: `AnswerLabels`. A text to generate: `TargetTexts`.
            Default: None.
        label_names: Name of each class. Default: ().
        source: Origin of the records, for error messages. Default: "memory".
        second_texts: The second text of each pair, or None for single texts. Default: None.

    Raises:
        InputError: A text is empty or not a string, or the labels do not match the texts or the
            names.

    Examples:
        >>> records = ke.data.Records.of(["good", "bad"], ["pos", "neg"])
        >>> records.labels.tolist(), records.label_names
        ([1, 0], ('neg', 'pos'))
    """

    texts: tuple[str, ...]
    labels: Any = None
    label_names: tuple[str, ...] = ()
    source: str = "memory"
    second_texts: tuple[str, ...] | None = None

    def __post_init__(self):
        if isinstance(self.texts, str):
            raise InputError(
                f"`texts` must be a sequence of strings. Received one string: {self.texts[:60]!r}. "
                "Put it in a list."
            )
        texts = tuple(self.texts)
        second = None if self.second_texts is None else tuple(self.second_texts)
        if second is not None and len(second) != len(texts):
            raise InputError(
                f"Each text must have a second text, or none. Received: {len(texts)} texts and "
                f"{len(second)} second texts ({self.source}). Check that both come from the same "
                "rows."
            )
        for part in (texts, second or ()):
            for number, text in enumerate(part):
                check_text(text, f"{self.source}, item {number}")
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "second_texts", second)
        object.__setattr__(self, "label_names", tuple(self.label_names))
        if self.labels is None:
            return
        if isinstance(self.labels, StructuredLabels):
            self._check_count((len(self.labels),), len(texts))
            self.labels.check(self)
            return
        labels = self._checked_labels(np.asarray(self.labels), len(texts))
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    def _check_count(self, shape, texts):
        if shape not in ((texts,), (texts, len(self.label_names))):
            raise InputError(
                f"There must be one label per text. Received: {texts} texts and labels of "
                f"shape {shape} ({self.source}). Check that both come from the same rows."
            )

    def _checked_labels(self, labels, texts):
        """Return a copy of the labels, since the caller's array may change."""
        classes = len(self.label_names)
        self._check_count(labels.shape, texts)
        if labels.ndim == 1 and labels.dtype.kind == "f" and not classes:
            if not np.isfinite(labels).all():
                raise InputError(
                    "Labels that are numbers must be finite. Received: "
                    f"{labels[~np.isfinite(labels)][0]} ({self.source}). Correct or remove it."
                )
            return labels.astype(np.float32)
        most = classes - 1 if labels.ndim == 1 else 1
        if labels.size and (
            labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > most
        ):
            rule = f"indices into the {classes} `label_names`"
            if labels.ndim == 2:
                rule = "0 or 1 for each text and class"
            raise InputError(
                f"`labels` must be {rule}. Received: "
                f"{labels.dtype} from {labels.min()!r} to {labels.max()!r}. Use `Records.of`, "
                "which makes indices of any labels."
            )
        return labels.astype(np.int32)

    @classmethod
    def of(
        cls,
        texts: Any,
        labels: Any = None,
        label_names: Sequence[str] | None = None,
        *,
        source: str = "memory",
        second_texts: Iterable[str] | None = None,
        encode: Callable | None = None,
    ) -> "Records":
        """Make records from lists, arrays or finite iterables.

        Without `label_names`, non-negative integers and bools are taken as class indices. All
        other labels become indices into `label_names`, which default to the sorted labels. For
        validation data pass the `label_names` of the training records: a class that does not occur
        in the validation data would otherwise shift the indices.

        Args:
            texts: Strings, or (text, label) pairs: a list, NumPy array, generator or other finite
                iterable, or `tf.data.Dataset`.
            labels: One string, number or bool per text; or an int array `[texts, classes]` of 0 and
                1 for any number of classes. Default: None, those of the pairs, if any.
            label_names: The classes in the order of their indices. Default: None, as above.
            source: Origin of the texts, for error messages. Default: "memory".
            second_texts: The second text of each pair of texts. Default: None, single texts.
            encode: Function that makes an array of labels of another kind: the `encode` of a task
                (`ke.tasks.get("regression").encode`). Default: None, one class per text.

        Returns:
            The records.

        Raises:
            InputError: An item is neither a text nor a pair, or a label is missing or not among
                the names.

        Examples:
            >>> ke.data.Records.of([("good", 1), ("bad", 0)]).labels.tolist()
            [1, 0]
        """
        if isinstance(texts, str | dict):
            raise InputError(
                "`texts` must be a list of strings or of (text, label) pairs. Received: "
                f"{type(texts).__name__}. Put it in a list."
            )
        # The elements of an array as Python values.
        texts = texts.tolist() if isinstance(texts, np.ndarray) else list(iterated(texts))
        pairs = [isinstance(item, tuple | list) and len(item) == 2 for item in texts]
        if any(pairs):
            if labels is not None:
                raise InputError(
                    "Labels must be given once. Received: (text, label) pairs and `labels`. "
                    "Leave out one of them."
                )
            if not all(pairs):
                number = pairs.index(False)
                raise InputError(
                    "Either every item or none must be a (text, label) pair. Received: "
                    f"{texts[number]!r:.80} as item {number}. Give it a label, or take it out."
                )
            texts, labels = [t for t, _ in texts], [label for _, label in texts]
        second = None if second_texts is None else tuple(second_texts)
        if labels is None:
            return cls(tuple(texts), None, tuple(label_names or ()), source, second)
        if isinstance(labels, np.ndarray) and labels.ndim == 2:
            names = range(labels.shape[1]) if label_names is None else label_names
            return cls(tuple(texts), labels, tuple(map(str, names)), source, second)
        labels = list(labels)
        if len(labels) != len(texts):
            raise InputError(
                f"There must be one label per text. Received: {len(texts)} texts and "
                f"{len(labels)} labels. Check that both come from the same rows."
            )
        classes = encode is None and label_names is None
        if classes and labels and all(_is_index(label) for label in labels):
            indices = [int(label) for label in labels]
            if max(indices) >= _MOST_CLASSES:
                raise InputError(
                    f"Integer labels are class indices, below {_MOST_CLASSES}. Received: "
                    f"{max(indices)}. Give `label_names`, or take the column that has the classes."
                )
            names = tuple(map(str, range(max(indices) + 1)))
            return cls(tuple(texts), indices, names, source, second)

        def where(number):
            return f"{source}, item {number}"

        found, names = (encode or class_labels)(labels, label_names, where)
        return cls(tuple(texts), found, names, source, second)

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: "Records") -> "Records":
        """Return these records followed by others with labels of the same kind.

        Raises:
            InputError: Their labels or their classes differ, or only some are pairs of texts.
        """
        if self._kind() != other._kind():
            raise InputError(
                "Records that are joined must be alike: single texts or pairs, labels of one kind, "
                f"the same classes. Received: {self!r:.200} and {other!r:.200}. Read both in the "
                "same way, with the same `label_names`."
            )
        labels: Any = self.labels
        if isinstance(labels, StructuredLabels):
            labels = labels + other.labels
        elif labels is not None:
            labels = np.concatenate([labels, other.labels])
        second = self.second_texts
        if second is not None:
            second += other.second_texts or ()
        texts = self.texts + other.texts
        return Records(texts, labels, self.label_names, self.source, second)

    def _kind(self):
        labels = self.labels
        if isinstance(labels, np.ndarray):
            labels = labels.ndim, labels.dtype.kind
        elif labels is not None:
            labels = type(labels)
        return labels, self.label_names, self.second_texts is None

    def examples(self) -> list[tuple[str, ...]]:
        """Return the text or the texts of each record."""
        columns = (self.texts,) if self.second_texts is None else (self.texts, self.second_texts)
        return list(zip(*columns, strict=True))

    def without_labels(self) -> "Records":
        """Return the texts, or pairs of texts, alone."""
        return Records(self.texts, source=self.source, second_texts=self.second_texts)

    def __repr__(self) -> str:
        # That of a dataclass would print every text.
        if self.labels is None:
            classes = "no labels"
        elif not self.label_names:
            classes = "numbers" if isinstance(self.labels, np.ndarray) else "answers"
        else:
            classes = f"{len(self.label_names):,} classes: {listed(self.label_names)}"
        texts = "texts" if self.second_texts is None else "pairs of texts"
        return f"Records({len(self):,} {texts}, {classes}, source={self.source!r})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 of the texts, labels and label names in their order."""
        digest = hashlib.sha256()
        second = () if self.second_texts is None else (self.second_texts,)
        for part in (self.texts, self.label_names, *second):
            digest.update(len(part).to_bytes(8, "little"))
            for string in part:
                data = string.encode()
                # The length precedes the bytes, so that ["ab", "c"] and ["a", "bc"] differ.
                digest.update(len(data).to_bytes(8, "little") + data)
        if self.labels is None:
            digest.update(b"none")
        elif isinstance(self.labels, StructuredLabels):
            digest.update(self.labels.tobytes())
        else:
            # Little-endian on every machine.
            kind = self.labels.dtype.newbyteorder("<")
            digest.update(self.labels.astype(kind).tobytes())
        return digest.hexdigest()

    def take(self, indices: Any) -> "Records":
        """Select records by position.

        Args:
            indices: Int array of positions, in the order wanted, or bool array of shape
                `[records]`.

        Returns:
            The selected records.

        Raises:
            InputError: A bool array has another shape.
            IndexError: A position is out of range.
        """
        indices = np.asarray(indices)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise InputError(
                    f"A mask must have one value per record ({len(self)}). Received: shape "
                    f"{indices.shape}. Build it from these records."
                )
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64).reshape(-1)
        second = self.second_texts
        return Records(
            tuple(self.texts[i] for i in indices.tolist()),
            None if self.labels is None else self.labels[indices],
            self.label_names,
            self.source,
            second and tuple(second[i] for i in indices.tolist()),
        )

    @property
    def has_classes(self) -> bool:
        """Return whether each text is labelled with one class."""
        labels = self.labels
        return isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind == "i"


def require_classes(records: Records, at_least: int = 2) -> Records:
    """Require that several classes occur among the labels.

    Args:
        records: The records.
        at_least: Number of different classes. Default: 2.

    Returns:
        The records.

    Raises:
        InputError: There are no labels, or fewer classes.

    Examples:
        >>> len(ke.data.require_classes(ke.data.Records.of(["good", "bad"], [1, 0])))
        2

    Reference:
        `sklearn.utils.multiclass.unique_labels`.
    """
    if records.labels is None:
        raise InputError(
            f"Training a classifier needs labels. Received: {records.source} without labels. Name "
            "the label column, or give `labels`."
        )
    if not records.has_classes:
        raise InputError(
            f"A classifier learns one class per text. Received: {records!r} with labels of another "
            "kind. Read the file without `encode`, or choose the task that fits."
        )
    present = np.unique(records.labels)
    if len(present) < at_least:
        names = [records.label_names[i] for i in present]
        raise InputError(
            f"At least {at_least} classes must occur in the data. Received: {names} in "
            f"{records.source}. Add examples of the other classes, or take another label column."
        )
    return records


def split(
    records: Records, *, validation: float | int, seed: int = 0, stratify: bool = True
) -> tuple[Records, Records]:
    """Split records into training and validation records by a seeded permutation.

    The permutation is `np.random.default_rng(seed).permutation(len(records))`. Each class gives the
    same share of its records to the validation, rounded to whole records: the last ones in the
    permutation. So rare classes are evaluated too, and the first record of each class is trained on
    unless `validation` leaves fewer records than classes. Without labels, with labels of another
    kind than one class per text, or with `stratify=False`, the last records of the permutation
    become the validation records. Questions with the same context stay in one part, so that the
    number of validation records may be a little larger. The same records and seed give the same
    split on every machine.

    Args:
        records: The records to split.
        validation: Fraction in (0, 1), or number of records.
        seed: Seed of the permutation. Default: 0.
        stratify: Whether to take the same share of each class. Default: True.

    Returns:
        The training records and the validation records.

    Raises:
        InputError: One part would be empty, `validation` is neither a fraction nor a number, or
            `records` are not `Records`.

    Examples:
        >>> records = ke.data.Records.of(list("abcde"))
        >>> train, validation = ke.data.split(records, validation=0.4)
        >>> len(train), len(validation)
        (3, 2)
        >>> records = ke.data.Records.of(["a", "b"] * 10, [0] * 16 + [1] * 4)
        >>> ke.data.split(records, validation=0.25)[1].labels.tolist().count(1)
        1

    Reference:
        `sklearn.model_selection.train_test_split`, whose `stratify` needs two records per class and
        a validation record for each.
    """
    if not isinstance(records, Records):
        raise InputError(
            f"`records` must be Records. Received: {records!r:.80} of type "
            f"{type(records).__name__}. Read them by ke.data.read_records; keep the validation "
            "data of texts on a disk in files of its own."
        )
    total = len(records)
    if isinstance(validation, bool) or not isinstance(validation, numbers.Real):
        raise InputError(
            "`validation` must be a share (float in (0, 1)) or a number of records (int). "
            f"Received: {validation!r}. Give for example 0.1."
        )
    if isinstance(validation, numbers.Integral):
        count = int(validation)
    elif 0 < validation < 1:
        count = round(total * float(validation))
    else:
        raise InputError(
            f"As a float, `validation` must lie in (0, 1). Received: {validation!r}. Give a share "
            "such as 0.1, or an int for a number of records."
        )
    if not 0 < count < total:
        raise InputError(
            "Both sides of a split must have a record. Received: "
            f"validation={validation!r} of {total} records ({records.source}), which puts {count} "
            "there. Change `validation`, or add records."
        )
    order = np.random.default_rng(seed).permutation(total)
    if isinstance(records.labels, AnswerLabels):
        contexts = records.second_texts or ()
        held_out = _last_contexts([contexts[i] for i in order.tolist()], count)
        if held_out.all():
            raise InputError(
                "Both sides of a split must have a context. Received: "
                f"validation={validation!r} of questions about {len(set(contexts))} "
                f"contexts ({records.source}). Lower `validation`, or give data to evaluate on."
            )
    elif stratify and records.has_classes:
        held_out = _last_of_each_class(records.labels[order], count)
    else:
        held_out = np.arange(total) >= total - count
    return records.take(order[~held_out]), records.take(order[held_out])


def _last_contexts(contexts, count):
    """Return a mask of `count` positions or a little more: those of the last contexts."""
    numbers = {context: n for n, context in enumerate(dict.fromkeys(reversed(contexts)))}
    of = np.array([numbers[context] for context in contexts])
    # The contexts that have enough questions together.
    total = np.cumsum(np.bincount(of))
    return of <= np.searchsorted(total, count)


def _last_of_each_class(labels, count):
    """Return a mask of `count` positions: the last of each class, in proportion to its size."""
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)
    # Record i of n stands for the share (i + 0.5) / n of its class: those above a common threshold
    # are the nearest whole number to each class's share. The first of each class comes last.
    place = np.where(rank == 0, -1.0, (rank + 0.5) / np.repeat(sizes, sizes))
    position = np.empty(len(labels))
    position[by_class] = place
    chosen = np.zeros(len(labels), bool)
    chosen[np.argsort(position, kind="stable")[len(labels) - count :]] = True
    return chosen


def _is_index(label) -> bool:
    if isinstance(label, float | str) or label is None:
        return False
    try:
        return operator.index(label) >= 0
    except TypeError:
        return isinstance(label, np.bool_)
