"""In-memory texts with class indices as labels."""

import dataclasses
import difflib
import functools
import hashlib
import math
import numbers
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, listed

# Larger in-memory integers are not class indices, but probably ids.
_MOST_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Records:
    """Texts, their labels as class indices, and the names of the classes.

    `read_records` makes records from a file and `Records.of` from lists; `split` divides them.

    Attributes:
        texts: The texts, each a string with at least one character that is not white space.
        labels: int32 array of shape `[texts]` of indices into `label_names`, or None. Default:
            None.
        label_names: Name of each class. Default: ().
        source: Origin of the records, for error messages. Default: "memory".

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

    def __post_init__(self):
        if isinstance(self.texts, str):
            raise InputError(
                f"`texts` must be a sequence of strings. Received one string: {self.texts[:60]!r}. "
                "Put it in a list."
            )
        texts = tuple(self.texts)
        for number, text in enumerate(texts):
            check_text(text, f"{self.source}, item {number}")
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "label_names", tuple(self.label_names))
        if self.labels is None:
            return
        labels = np.asarray(self.labels)
        if labels.shape != (len(texts),):
            raise InputError(
                f"There must be one label per text. Received: {len(texts)} texts and labels of "
                f"shape {labels.shape} ({self.source}). Check that both come from the same rows."
            )
        classes = len(self.label_names)
        if labels.size and (
            labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes
        ):
            raise InputError(
                f"`labels` must be indices into the {classes} `label_names`. Received: "
                f"{labels.dtype} from {labels.min()!r} to {labels.max()!r}. Use `Records.of`, "
                "which makes indices of any labels."
            )
        labels = labels.astype(np.int32)  # A copy, since the caller's array may change.
        labels.flags.writeable = False
        object.__setattr__(self, "labels", labels)

    @classmethod
    def of(
        cls,
        texts: Iterable,
        labels: Sequence | None = None,
        label_names: Sequence[str] | None = None,
        *,
        source: str = "memory",
    ) -> "Records":
        """Make records from lists.

        Without `label_names`, non-negative integers and bools are taken as class indices. All
        other labels become indices into `label_names`, which default to the sorted labels. For
        validation data pass the `label_names` of the training records: a class that does not occur
        in the validation data would otherwise shift the indices.

        Args:
            texts: Strings, or (text, label) pairs.
            labels: One string, number or bool per text. Default: None, those of the pairs, if any.
            label_names: The classes in the order of their indices. Default: None, as above.
            source: Origin of the texts, for error messages. Default: "memory".

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
        texts = list(texts)
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
        if labels is None:
            return cls(tuple(texts), None, tuple(label_names or ()), source)
        labels = list(labels)
        if len(labels) != len(texts):
            raise InputError(
                f"There must be one label per text. Received: {len(texts)} texts and "
                f"{len(labels)} labels. Check that both come from the same rows."
            )
        if label_names is None and labels and all(_is_index(label) for label in labels):
            indices = [int(label) for label in labels]
            if max(indices) >= _MOST_CLASSES:
                raise InputError(
                    f"Integer labels are class indices, below {_MOST_CLASSES}. Received: "
                    f"{max(indices)}. Give `label_names`, or take the column that has the classes."
                )
            return cls(tuple(texts), indices, tuple(map(str, range(max(indices) + 1))), source)

        def where(number):
            return f"{source}, item {number}"

        named = [label_name(label, where(number)) for number, label in enumerate(labels)]
        return cls(tuple(texts), *index_labels(named, label_names, where), source)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        # That of a dataclass would print every text.
        if self.labels is None:
            classes = "no labels"
        else:
            classes = f"{len(self.label_names):,} classes: {listed(self.label_names)}"
        return f"Records({len(self):,} texts, {classes}, source={self.source!r})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Return the hexadecimal SHA-256 of the texts, labels and label names in their order."""
        digest = hashlib.sha256()
        for part in (self.texts, self.label_names):
            digest.update(len(part).to_bytes(8, "little"))
            for string in part:
                data = string.encode()
                # The length precedes the bytes, so that ["ab", "c"] and ["a", "bc"] differ.
                digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(b"none" if self.labels is None else self.labels.astype("<i4").tobytes())
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
        return Records(
            tuple(self.texts[i] for i in indices.tolist()),
            None if self.labels is None else self.labels[indices],
            self.label_names,
            self.source,
        )


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
    unless `validation` leaves fewer records than classes. Without labels, or with `stratify=False`,
    the last records of the permutation become the validation records. The same records and seed
    give the same split on every machine.

    Args:
        records: The records to split.
        validation: Fraction in (0, 1), or number of records.
        seed: Seed of the permutation. Default: 0.
        stratify: Whether to take the same share of each class. Default: True.

    Returns:
        The training records and the validation records.

    Raises:
        InputError: One part would be empty, or `validation` is neither a fraction nor a number.

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
    if stratify and records.labels is not None:
        held_out = _last_of_each_class(records.labels[order], count)
    else:
        held_out = np.arange(total) >= total - count
    return records.take(order[~held_out]), records.take(order[held_out])


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


def check_text(text: Any, where: str) -> None:
    """Require a text that can be tokenized. `where` names its origin in the error message."""
    if not isinstance(text, str):
        raise InputError(
            f"Each text must be a string. Received: {text!r:.60} of type {type(text).__name__} "
            f"({where}). Correct or remove it."
        )
    if not text or text.isspace():
        raise InputError(
            f"Each text must have something in it. Received: an empty text {text!r:.20} "
            f"({where}). Correct or remove it."
        )
    _check_string(text, "text", where)


def _check_string(string: str, what: str, where: str) -> None:
    if "\0" in string:
        raise InputError(
            f"A {what} must not hold NUL characters. Received: {string!r:.60} ({where}). Remove "
            "them; if there are many, the file may be UTF-16: save it as UTF-8."
        )
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"A {what} must be valid Unicode. Received: {string!r:.60}, with half of a surrogate "
            f"pair ({where}). Correct or remove it."
        ) from error


def label_name(label: Any, where: str) -> str:
    """Return the name of a label found in data: the numbers 1 and 1.0 and "1 " all become "1"."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, str):
        name = label.strip()
        _check_string(name, "label", where)
    elif isinstance(label, float):
        if math.isinf(label):
            raise InputError(
                f"A label that is a number must be finite. Received: {label!r} ({where}). Correct "
                "or remove it."
            )
        name = "" if math.isnan(label) else str(int(label) if label.is_integer() else label)
    elif isinstance(label, bool | int):
        name = str(label)
    elif label is None:
        name = ""
    else:
        raise InputError(
            f"A label must be a string, a number or a bool. Received: {label!r:.60} of type "
            f"{type(label).__name__} ({where}). Give one class per text."
        )
    if not name:
        raise InputError(
            f"Each text needs a label. Received: {label!r} ({where}). Fill it in, or remove the "
            "row; in Python, label_column=None reads no labels."
        )
    return name


def index_labels(
    named: Sequence[str], label_names: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return int32 class indices and class names. `where(i)` names the origin of label i."""
    if label_names is None:
        names = _sorted_classes(named, where)
    else:
        names = tuple(label_name(name, "label_names") for name in label_names)
        if len(set(names)) != len(names):
            twice = sorted({name for name, count in Counter(names).items() if count > 1})
            raise InputError(
                f"`label_names` must differ. Received more than once: {listed(twice)}. Name each "
                "class once."
            )
    index = {name: i for i, name in enumerate(names)}
    labels = np.empty(len(named), np.int32)
    for number, name in enumerate(named):
        if name not in index:
            near = difflib.get_close_matches(name, names, n=1) if len(names) <= 1000 else []
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"Each label must be one of {len(names):,} classes: {listed(names)}. Received: "
                f"{name!r:.80}, unseen in training ({where(number)}). {hint}Correct the row, or "
                "train with this class."
            )
        labels[number] = index[name]
    return labels, names


def _is_index(label) -> bool:
    if isinstance(label, float | str) or label is None:
        return False
    try:
        return operator.index(label) >= 0
    except TypeError:
        return isinstance(label, np.bool_)


def _sorted_classes(named: Sequence[str], where: Callable[[int], str]) -> tuple[str, ...]:
    """Return the classes in their order: of numbers, if all of them are; they have to be whole."""
    first: dict[str, int] = {}
    for i, name in enumerate(named):
        first.setdefault(name, i)
    values = {name: number for name in first if (number := _number(name)) is not None}
    for name, number in values.items():
        if math.isnan(number):
            raise InputError(
                f"Each text needs a label. Received: {name!r}, which stands for a missing one "
                f"({where(first[name])}). Fill it in, or remove the row; if it is the name of a "
                "class, pass `label_names`."
            )
    if len(values) < len(first):
        return tuple(sorted(first))
    for name, number in values.items():
        if not math.isfinite(number):
            raise InputError(
                f"A label that is a number must be finite. Received: {name!r} "
                f"({where(first[name])}). Correct or remove it."
            )
        if not number.is_integer():
            raise InputError(
                "The labels of a classifier must be classes. Received: numbers with fractions, "
                f"such as {name!r} ({where(first[name])}). Is regression meant? There is no such "
                "task yet. If each number is a class, pass `label_names`, or give them names such "
                f"as '{name} stars'."
            )
    return tuple(sorted(first, key=lambda name: (values[name], name)))


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
