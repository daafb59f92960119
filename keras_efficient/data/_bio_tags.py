"""BIO tags: which sequences are allowed, their classes, and the entities that they mark."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, listed

OUTSIDE = "O"


def check_tags(tags: Sequence[str], where: Callable[[int], str]) -> None:
    """Require tags in the BIO scheme: O, B-TYPE for the first word of an entity, then I-TYPE.

    Args:
        tags: tags of the words of a text.
        where: function of i that names the origin of tag i, for error messages.

    Raises:
        InputError: a tag is of another form, or an I-TYPE does not continue an entity of its type.
    """
    before = OUTSIDE
    for i, tag in enumerate(tags):
        if not isinstance(tag, str) or not (
            tag == OUTSIDE or (tag[:2] in ("B-", "I-") and tag[2:].strip() == tag[2:] != "")
        ):
            raise InputError(
                "A tag is O outside of entities, B-TYPE for the first word of an entity, or I-TYPE "
                f"for its other words. Received: {tag!r:.60} ({where(i)}). Convert the tags to BIO "
                "(IOB2): in BIOES and BILOU, S- and U- become B-, and E- and L- become I-."
            )
        if tag[0] == "I" and before[1:] != tag[1:]:
            raise InputError(
                "I-TYPE continues an entity of the same type. Received: "
                f"{tag!r:.60} after {before if i else 'the beginning of the text'!s:.60} "
                f"({where(i)}). Write {'B' + tag[1:]!r:.60} for the first word of an entity."
            )
        before = tag


def tag_names(types: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the classes: O, then B-TYPE and I-TYPE of each type, sorted."""
    return (OUTSIDE, *(f"{prefix}-{name}" for name in sorted(set(types)) for prefix in "BI"))


def entity_types(names: Sequence[str]) -> tuple[str, ...]:
    """Return the types of the classes that `tag_names` makes.

    Raises:
        InputError: the names are others.
    """
    types = tuple(str(name)[2:] for name in names[1::2])
    expected = (OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI"))
    if tuple(names) != expected or len(set(types)) < len(types) or not types:
        raise InputError(
            "The classes of tags are O, then B-TYPE and I-TYPE of each type. Received: "
            f"{listed(names)}. Take the `label_names` of the records that were trained on."
        )
    return types


def tag_indices(
    tags: Sequence[str], names: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """Return the int32 index of each tag among the names of the classes.

    Raises:
        InputError: a tag is not among them.
    """
    index = {name: i for i, name in enumerate(names)}
    for i, tag in enumerate(tags):
        if tag not in index:
            near = difflib.get_close_matches(tag, names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"Each tag must be one of {listed(names)}. Received: {tag!r:.60}, unseen in "
                f"training ({where(i)}). {hint}Correct the tag, or train with this type."
            )
    return np.array([index[tag] for tag in tags], np.int32)


def entity_marks(classes: Any, pad: Callable = np.pad) -> tuple[Any, Any, Any]:
    """Return which words begin an entity, its type there, and which words end one.

    An entity begins at B, and at I where the word before has another type or none, so that any
    sequence of a model is read.

    Args:
        classes: int array `[texts, words]` of classes in the order of `tag_names`; 0, outside, for
            padding. An array, or a tensor in a graph.
        pad: `np.pad`, or `tf.pad` for tensors. Default: `np.pad`.

    Returns:
        Bool `[texts, words]`; int `[texts, words]`, 0 outside of entities; bool `[texts, words]`.
    """
    types = (classes + 1) // 2
    before = pad(types, [(0, 0), (1, 0)])[:, :-1]
    begins = (types > 0) & ((classes % 2 == 1) | (types != before))
    goes_on = pad((types > 0) & ~begins, [(0, 0), (0, 1)])[:, 1:]
    return begins, types, (types > 0) & ~goes_on
