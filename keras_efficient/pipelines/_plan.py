"""`CompressPlan`: what a run of `compress` will do, and how long it will take."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from keras_efficient.architecture import describe
from keras_efficient.pipelines._quantized_export import plain_copy

#: Seconds that do not depend on the model much: to export and verify, to start the processes that
#: are timed, and what an int8 export of BERT gains over Keras' float32 export.
_EXPORT, _START, _INT8_SPEEDUP = 20.0, 8.0, 3.0
_STEPS = 4


@dataclass(frozen=True)
class CompressPlan:
    """What `compress` will do.

    Attributes:
        rows: dict of a topic to one line about it.
        minutes: dict of a phase to its estimated minutes, in the order of the phases. They follow
            from a few measured steps; those of small models are extrapolated.
    """

    rows: dict[str, str]
    minutes: dict[str, float]

    @property
    def total_minutes(self) -> float:
        """The estimated minutes of all phases."""
        return sum(self.minutes.values())


def make_plan(run: Any) -> CompressPlan:
    """Measure a few steps of a `CompressRun`'s teacher, and return the plan."""
    settings, train = run.settings, run.train
    data = run.to_predict()
    labelled = run.batches(train, run.words)
    predict, step = _predict_seconds(run, labelled), _step_seconds(run, labelled)
    targets = settings.targets()
    blocks = len(describe(run.model, sample=next(iter(labelled))[0]).blocks)
    evaluate = predict * -(-len(run.validation) // settings.batch_size)
    served = _EXPORT + 2 * evaluate
    timed = _START + settings.seconds
    tried = blocks * (blocks + 1) / 2 + 6
    minutes = {
        "export and time the model as it is": evaluate + 10 + served + 2 * timed,
        "choose the candidates": len(targets) * tried * 8 * predict
        + (3 + len(targets)) * (0.7 * _EXPORT + 2 * timed),
        "teacher outputs": data.stats.batches * predict,
        **{
            f"distil {target.label}": settings.epochs
            * data.stats.batches
            * step
            * _share(target, settings, run)
            + evaluate
            for target in targets
        },
        "calibrate, export and evaluate": len(targets) * served,
        "time everything in turns": (2 + len(targets)) * timed,
    }
    tokens = "the whole vocabulary"
    if run.words is not run.tokenizer:
        size, whole = run.words.largest_id + 1, run.tokenizer.largest_id + 1
        tokens = f"{size:,} of {whole:,} tokens are left"
    more = f", {len(run.further):,} unlabelled" if len(run.further) else ""
    texts = "pairs of texts" if run.task.texts == 2 else "texts"
    rows = {
        "data": f"{len(train):,} labelled {texts} to train on{more}; {len(run.validation):,} "
        "others to evaluate on",
        "vocabulary": tokens,
        "target": f"{settings.target}, with at least {100 * (1 - settings.max_drop):.4g}% of the "
        "model's score",
        "candidates": ", ".join(target.label for target in targets),
        "training": f"{settings.epochs} epochs of {data.stats.batches:,} batches of "
        f"{settings.batch_size} for each candidate, {step:.2f} s per step of the whole model",
        "latency": f"of {settings.batch} texts of {settings.length} tokens in int8, "
        f"{'1 thread' if settings.threads == 1 else f'{settings.threads} threads'}",
    }
    both = {*train.examples()} & {*run.validation.examples()}
    if both:
        rows["warning"] = (
            f"{len(both):,} of the {texts} to evaluate on occur in the training texts, too"
        )
    return CompressPlan(rows, {name: seconds / 60 for name, seconds in minutes.items()})


def _share(target, settings, run):
    """Return how long a step of a candidate takes, as a share of one of the whole model."""
    if target.name == "speedup":
        return min(1.0, _INT8_SPEEDUP / target.value)
    if target.name in ("parameters", "bytes"):
        # As int8, a parameter takes about a byte.
        return min(1.0, target.value / run.model.count_params())
    # The latency of the model is measured later.
    return 1.0 if target.value >= settings.target.value else 0.5


def _predict_seconds(run, labelled):
    features = next(iter(labelled))[0]
    run.trimmed.predict_on_batch(features)
    return _timed(lambda: run.trimmed.predict_on_batch(features))


def _step_seconds(run, labelled):
    """Return the seconds of a training step, on a copy of the model."""
    copy = plain_copy(run.trimmed, next(iter(labelled)))
    run._compile(copy, 100, 1e-6)
    with suppress(ValueError):
        run.unpad(copy)
    options = {"verbose": 0, "shuffle": False}
    copy.fit(labelled.take(1), **options)
    steps = min(_STEPS, labelled.stats.batches)
    return _timed(lambda: copy.fit(labelled.take(steps), **options)) / steps


def _timed(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
