"""`compress`: from a trained model to a small, fast, int8 one that is nearly as good."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

from keras_efficient.data import Records
from keras_efficient.flavor import Model
from keras_efficient.pipelines._compress_report import CompressReport
from keras_efficient.pipelines._compress_run import CompressRun
from keras_efficient.pipelines._compress_settings import CompressSettings


def compress(
    model: Model,
    tokenizer: Any,
    train: Records,
    validation: Records,
    directory: str | os.PathLike,
    *,
    target: Any,
    settings: CompressSettings | None = None,
    unlabelled: Any = (),
    resume: bool = False,
    say: Callable[[str], Any] | None = print,
    task: Any = None,
) -> CompressReport:
    """Shrink a trained text model, distil it, quantize it, and show what was gained.

    The model is exported as it is, by Keras in float32 and as int8, and measured. Its vocabulary is
    trimmed to the texts, and `ke.shrink` chooses a candidate for each of several targets, by the
    latency of its int8 export in turns with Keras' float32 export. The candidates learn from the
    labels and from the cached outputs of the model (`ke.distill`), are calibrated and exported as
    int8, and evaluated and timed in turns.

    Every phase leaves its result in the folder: the same call with `resume=True` goes on where it
    was stopped, also within a training, and may have another target, for which all candidates that
    are there count.

    Args:
        model: a trained model that `ke.models.load` returned.
        tokenizer: its tokenizer.
        train: labelled `Records` to train on.
        validation: labelled `Records` to evaluate on, which the model has not seen in training.
        directory: path of the run's folder, new or empty.
        target: "speedup=10" or {"speedup": 10}; as in `CompressSettings`.
        settings: other settings; their `target` is replaced. Default: None, the defaults of
            `CompressSettings`.
        unlabelled: further texts, or `Records` of texts or pairs, which only the teacher labels.
            Default: ().
        resume: whether to go on with the run that is in the folder. Default: False.
        say: function of a line about the progress. Default: `print`.
        task: name of the task that the model was trained for, or a `ke.tasks.Task`:
            classification, several labels, regression, token classification or question answering.
            Default: None, "classification".

    Returns:
        A `CompressReport`, which is also written to report.json, beside front.png.

    Raises:
        InputError: the target cannot be reached by `ke.shrink`, the folder is another run's, or the
            data, the tokenizer or the task cannot be used.

    Examples:
        >>> model, tokenizer = ke.models.load("saved_models/reviews")  # doctest: +SKIP
        >>> train, validation = ke.data.split(
        ...     ke.data.read_records("reviews.csv"), validation=0.1
        ... )  # doctest: +SKIP
        >>> report = ke.pipelines.compress(
        ...     model, tokenizer, train, validation, "compressed", target="speedup=10"
        ... )  # doctest: +SKIP

    Reference:
        Kurtic, Frantar & Alistarh 2023, "ZipLM"; Hinton, Vinyals & Dean 2015, "Distilling the
        Knowledge in a Neural Network".
    """
    chosen = CompressSettings(target)
    if settings is not None:
        chosen = dataclasses.replace(settings, target=target)
    run = CompressRun(
        model,
        tokenizer,
        train,
        validation,
        directory,
        chosen,
        unlabelled=unlabelled,
        say=say,
        task=task,
    )
    run.open(resume)
    try:
        return run_phases(run)
    finally:
        run.close()


def run_phases(
    run: CompressRun, progress: Callable[[Iterable], Iterable] | None = None
) -> CompressReport:
    """Run all phases of a run whose folder is open.

    Args:
        run: the run.
        progress: function of the batches for the teacher that returns them again. Default: None.
    """
    run.measure_baselines()
    run.trim()
    run.choose()
    outputs = run.cache_outputs(progress)
    for target in run.targets():
        run.distil(target, outputs)
    for target in run.targets():
        run.export(target)
    return run.report()
