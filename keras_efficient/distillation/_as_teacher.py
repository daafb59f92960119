"""`as_teacher`: a `Teacher` from what users pass as one."""

import os
from pathlib import Path
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.architecture._check_built import check_built
from keras_efficient.distillation._exported_teacher import ExportedTeacher
from keras_efficient.distillation._teacher import FunctionTeacher, KerasTeacher, Teacher
from keras_efficient.distillation._teacher_cache import MANIFEST, TeacherCache


def as_teacher(teacher: Any) -> Teacher:
    """Return the `Teacher` for a model, a path, a function or a `Teacher`.

    Raises:
        TypeError: it is something else.
        ValueError: the model is not built.
        InputError: the path is not that of a teacher.
    """
    if isinstance(teacher, Teacher):
        return teacher
    if isinstance(teacher, str | os.PathLike):
        cached = (Path(teacher) / MANIFEST).is_file()
        return TeacherCache(teacher) if cached else ExportedTeacher(teacher)
    try:
        flavors.of(teacher)
    except TypeError:
        if callable(teacher):
            return FunctionTeacher(teacher)
        raise TypeError(
            "A teacher must be a Keras model, the path of an exported model or a cache, or a "
            f"function of features. Received: {type(teacher).__name__}."
        ) from None
    check_built(teacher, "ke.distill (teacher)")
    return KerasTeacher(teacher)
