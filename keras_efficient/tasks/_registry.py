"""The tasks that are known by name: those of this package, and those that are registered."""

import functools
from importlib.metadata import entry_points
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.tasks._causal_lm import CausalLM
from keras_efficient.tasks._classification import Classification
from keras_efficient.tasks._masked_lm import MaskedLM
from keras_efficient.tasks._multi_label import MultiLabel
from keras_efficient.tasks._question_answering import QuestionAnswering
from keras_efficient.tasks._regression import Regression
from keras_efficient.tasks._sentence_embedding import SentenceEmbedding
from keras_efficient.tasks._seq2seq import Seq2Seq
from keras_efficient.tasks._task import Task
from keras_efficient.tasks._token_classification import TokenClassification

#: The task of models and files that name none.
DEFAULT = Classification.name
#: Group of the entry points by which installed packages add tasks.
ENTRY_POINTS = "keras_efficient.tasks"
_known: dict[str, type[Task]] = {
    cls.name: cls
    for cls in (
        *(Classification, MultiLabel, Regression, TokenClassification, QuestionAnswering),
        *(MaskedLM, CausalLM, Seq2Seq, SentenceEmbedding),
    )
}


def register(task: type[Task]) -> type[Task]:
    """Make a task known by its name, for `ke.models.load`, `ke.export`, `predict` and others.

    An installed package registers its tasks for every process, the command line included, by an
    entry point of the group "keras_efficient.tasks": `name = "package.module:Class"`.

    Args:
        task: A subclass of `Task` with a name of its own.

    Returns:
        The class, so that this is a decorator.

    Raises:
        InputError: It is no such class, or another one has its name.

    Examples:
        >>> @ke.tasks.register
        ... class Topics(ke.tasks.Classification):
        ...     name = "topics"
        >>> ke.tasks.get("topics", texts=2)
        <task topics, of pairs of texts>

    Reference:
        Entry points, https://packaging.python.org/specifications/entry-points.
    """
    name = getattr(task, "name", None)
    if not (isinstance(task, type) and issubclass(task, Task) and isinstance(name, str) and name):
        raise InputError(
            "A task is a subclass of ke.tasks.Task with a `name`. Received: "
            f"{task!r:.100}. Derive a class from ke.tasks.Task."
        )
    other = _known.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (
        task.__module__,
        task.__qualname__,
    ):
        raise InputError(
            f"Tasks must have different names. Received: {name!r} for {task!r} and {other!r}. "
            "Rename one."
        )
    _known[name] = task
    return task


def get(task: Any = None, *, texts: int | None = None) -> Task:
    """Return a task by its name.

    Args:
        task: Name of a task, or a `Task`. Default: None, "classification".
        texts: Number of texts per example, 2 for pairs. Default: None, that of a `Task`, otherwise
            the task's default, which is 1 for most.

    Returns:
        The task.

    Raises:
        InputError: There is no task of this name.

    Examples:
        >>> ke.tasks.get("classification")
        <task classification>

    Reference:
        `keras.losses.get`.
    """
    if isinstance(task, Task):
        return task if texts in (None, task.texts) else type(task)(texts)
    name = DEFAULT if task is None else task
    if name not in _known:
        _load_installed()
    if not isinstance(name, str) or name not in _known:
        raise InputError(
            f"`task` must be one of {', '.join(names())}. Received: {task!r:.60}. Correct the "
            "name, or register a task of your own with ke.tasks.register."
        )
    return _known[name]() if texts is None else _known[name](texts)


def names() -> tuple[str, ...]:
    """Return the names of all tasks that are known.

    Returns:
        The names, first those of this package.

    Examples:
        >>> "classification" in ke.tasks.names()
        True

    Reference:
        `ke.tasks.register`.
    """
    _load_installed()
    return tuple(_known)


@functools.cache
def _load_installed():
    for point in entry_points(group=ENTRY_POINTS):
        register(point.load())
