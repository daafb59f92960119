"""Distillation: train a student on its labels and on what a teacher computes."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._check_built import check_built
from keras_efficient.architecture._dense_layer import kernel_of
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.distillation._as_teacher import as_teacher
from keras_efficient.distillation._block_recorder import BlockRecorder
from keras_efficient.distillation._distillation_term import (
    OF_HIDDEN_STATES,
    AttentionMaps,
    Contrastive,
    Distillation,
    HiddenStates,
    Relations,
    pooled,
)
from keras_efficient.distillation._layer_mapping import check_layers, map_layers
from keras_efficient.distillation._projection import Projection
from keras_efficient.distillation._soft_targets import check_divergence
from keras_efficient.distillation._teacher import KerasTeacher, Teacher
from keras_efficient.flavor import Model
from keras_efficient.training import _train_step_hook as train_step_hook

_NAME = "distillation"


def distill(
    student: Model,
    teacher: Any,
    *,
    alpha: float = 0.5,
    temperature: float = 2.0,
    divergence: str | None = "forward_kl",
    hidden: float | HiddenStates | Contrastive | None = None,
    attention: float | AttentionMaps | Relations | None = None,
    layers: str | Mapping[int, int] = "uniform",
    from_logits: bool | None = None,
    sample: Any = None,
) -> Model:
    """Train a model to imitate a teacher, besides fitting the labels.

    The teacher runs on each microbatch, in inference mode and without gradients, and terms are
    added to the loss:

        L = α · L(labels) + (1 - α) · T² · KL(teacher‖student) + w_h · L_hidden + w_a · L_attention

    The terms are averages over the same examples or tokens as the loss of the labels, with the
    same sample weights and masks. So k microbatches on any number of replicas equal one large
    batch, and padding has no effect. Data without labels will do for `alpha=0`, in models with the
    library's own training step.

    It takes effect with the next `fit`, and works with `ke.accumulate`, mixed precision, XLA, LoRA,
    `ke.unpad`, `ke.remat`, `callbacks.Resume` and the other parts of the training step. The teacher
    is not saved with the student and its weights do not train. A second call replaces the first;
    `ke.distill(student, None)` removes it.

    Args:
        student: a built Keras 3 or tf_keras model; before or after `compile`.
        teacher: a built model of either library, which receives the student's features, with those
            of KerasHub, Hugging Face and Model Garden renamed as it needs them; the path of a
            SavedModel, LiteRT or ONNX file, which runs in a process of its own; a
            `ke.distillation.cache` or its path; a function of a
            batch of features that returns outputs, or a dict with "logits" or "probabilities"; a
            list of these, whose probabilities are averaged; or None, to remove the teacher.
        alpha: float in [0, 1], α: weight of the loss of the labels. Default: 0.5.
        temperature: float > 0, T: both predictions are softened by it. Default: 2.0.
        divergence: "forward_kl", "reverse_kl", "jensen_shannon" or "mse" (of logits, or of the
            numbers of a regression, which needs it), as in
            `ke.distillation.soft_target_divergence`; or None for no term between outputs, which
            then may differ. Default: "forward_kl".
        hidden: weight of the distance of hidden states after Transformer blocks, or
            `ke.distillation.HiddenStates` or `Contrastive`. Where widths differ, those of the
            student are multiplied by a matrix that trains with it and belongs to neither model.
            Default: None, none.
        attention: weight of the distance of attention probabilities, or
            `ke.distillation.AttentionMaps`; or `ke.distillation.Relations`, for models of different
            widths or numbers of heads. Default: None, none.
        layers: which block of the teacher each block of the student learns from. "uniform": blocks
            at the same relative depth; "last": the last from the last; or a dict of indices, such
            as {0: 1, 1: 3, 2: 5}. Default: "uniform".
        from_logits: whether outputs are logits. Default: None, read from the compiled losses;
            outputs of Hugging Face models are logits, and those of a function are what the
            student's are, unless it names them.
        sample: features for `ke.architecture.describe`, which `hidden` and `attention` use.
            Default: None.

    Returns:
        The student.

    Raises:
        TypeError: the student is not a Keras model, or the teacher is none of the above.
        ValueError: a value is not accepted, or they leave nothing for the teacher; a model is not
            built; teacher and student are the same or have vocabularies, blocks, heads or widths
            that do not fit; in `fit`, before the first step, if their outputs do not fit.

    Examples:
        >>> teacher = lambda features: {"logits": 3.0 * model(features)}
        >>> student = ke.distill(model, teacher, alpha=0.3, temperature=4.0)
        >>> history = student.fit(dataset, verbose=0)

    Reference:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Jiao et al. 2020,
        "TinyBERT"; Wang et al. 2021, "MiniLMv2". `keras.distillation.Distiller` wraps the student
        in another model, knows neither sample weights nor masks, and takes Keras 3 models only.
    """
    flavors.of(student)
    if teacher is None:
        train_step_hook.set_loss_term(student, _NAME, None)
        return student
    _check_numbers(alpha, temperature)
    if divergence is not None:
        check_divergence(divergence)
    check_layers(layers)
    between = _between_blocks(hidden, attention)
    if (divergence is None or alpha == 1) and not between:
        received = "divergence=None" if divergence is None else f"alpha={alpha!r}"
        raise ValueError(
            f"A teacher must teach something. Received: {received}, without `hidden` and "
            "`attention`. Give one of these, or a divergence and alpha < 1."
        )
    check_built(student, "ke.distill")
    several = isinstance(teacher, list | tuple)
    teachers = tuple(_teacher_of(student, t) for t in (teacher if several else [teacher]))
    if not teachers:
        raise ValueError("`teacher` must name at least one teacher. Received: an empty list.")
    recorder, projection, negatives = None, None, ()
    if between:
        recorder = BlockRecorder(student, "student", sample)
        _record_blocks(teachers, sample)
        _check_blocks(recorder, teachers[0], between, layers)
        projection = _projection(student, recorder, teachers[0], between, layers)
        negatives = _negatives(teachers[0], between)
    term = Distillation(
        teachers,
        float(alpha),
        float(temperature),
        divergence,
        from_logits,
        between,
        layers,
        recorder,
        projection,
        negatives,
    )
    train_step_hook.set_loss_term(student, _NAME, term)
    return student


def _check_numbers(alpha, temperature):
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not 0 <= alpha <= 1:
        raise ValueError(
            "`alpha`, the weight of the loss of the labels, must be a number from 0 to 1. "
            f"Received: {alpha!r}."
        )
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not temperature > 0:
        raise ValueError(f"`temperature` must be a number > 0. Received: {temperature!r}.")


def _between_blocks(hidden, attention):
    found = []
    for name, value, classes in (
        ("hidden", hidden, OF_HIDDEN_STATES),
        ("attention", attention, (AttentionMaps, Relations)),
    ):
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value < 0:
                raise ValueError(f"`{name}` must be a weight >= 0. Received: {value!r}.")
            value = classes[0](value) if value else None
        if value is None:
            continue
        if not isinstance(value, classes):
            names = " or ".join(f"ke.distillation.{cls.__name__}" for cls in classes)
            raise ValueError(f"`{name}` must be a number, {names}, or None. Received: {value!r}.")
        found.append(value)
    return tuple(found)


def _teacher_of(student, teacher) -> Teacher:
    """Return the `Teacher`, unless the student cannot learn from it."""
    if teacher is student:
        raise ValueError(
            "A teacher must be another model than the student. Received: the same object for "
            "both. Give a copy of it, `clone_model` with its weights, to distil a model into "
            "itself."
        )
    found = as_teacher(teacher)
    if not isinstance(found, KerasTeacher):
        return found
    rows = [
        max((weight.shape[0] for weight in embeddings(model).token), default=None)
        for model in (student, found.model)
    ]
    if None not in rows and rows[0] != rows[1]:
        raise ValueError(
            "Student and teacher must read the same token ids. Received: vocabularies of "
            f"{rows[0]:,} tokens (student) and {rows[1]:,} (teacher). Take models with one "
            "tokenizer, or give as teacher a function of the student's features that tokenizes "
            "anew."
        )
    return found


def _record_blocks(teachers, sample):
    if len(teachers) > 1 or not isinstance(teachers[0], KerasTeacher):
        names = ", ".join(teacher.name for teacher in teachers)
        raise ValueError(
            "Hidden states and attention are those of one Keras model. Received as teacher: "
            f"{names}. Give one model, or hidden=None and attention=None."
        )
    teachers[0].recorder = BlockRecorder(teachers[0].model, "teacher", sample)


def _check_blocks(recorder, teacher, between, layers):
    """Refuse blocks that cannot be compared."""
    ours, theirs = recorder.blocks, teacher.recorder.blocks
    for student, other in map_layers(layers, len(ours), len(theirs)):
        one, two = ours[student], theirs[other]
        widths = [_width(block.attention.output) for block in (one, two)]
        inner = [_inputs(block.attention.output) for block in (one, two)]
        heads = [block.attention.heads for block in (one, two)]
        for loss in between:
            plain = isinstance(loss, OF_HIDDEN_STATES) and loss.projection is False
            if plain and widths[0] != widths[1]:
                raise ValueError(
                    "Hidden states can be compared without a projection if they are equally wide. "
                    f"Received: widths of {widths[0]} (student) and {widths[1]} (teacher), and "
                    "projection=False. Leave that out, or distil relations instead, which do not "
                    "depend on the width: attention=ke.distillation.Relations()."
                )
            if isinstance(loss, AttentionMaps) and heads[0] != heads[1]:
                raise ValueError(
                    "Attention maps are compared head by head. Received: "
                    f"{heads[0]} heads (student) and {heads[1]} (teacher). Distil relations "
                    "instead, whose heads are divided anew: attention=ke.distillation.Relations()."
                )
            number = loss.heads or heads[0] if isinstance(loss, Relations) else 1
            if any(size % number for size in inner):
                raise ValueError(
                    "Relation heads must divide the widths of student and teacher. Received: "
                    f"{number} heads for widths of {inner[0]} and {inner[1]}. Give a common "
                    "divisor as Relations(heads=…)."
                )


def _projection(student, recorder, teacher, between, layers):
    """Return the `Projection` of the student's hidden states, or None if none is needed."""
    loss = next((loss for loss in between if isinstance(loss, OF_HIDDEN_STATES)), None)
    if loss is None or loss.projection is False:
        return None
    pairs = map_layers(layers, len(recorder.blocks), len(teacher.recorder.blocks))
    ours, theirs = recorder.widths(), teacher.recorder.widths()
    widths = {(ours[s], theirs[t]) for s, t in pairs}
    if loss.projection is None and all(one == two for one, two in widths):
        return None
    if len(widths) > 1:
        raise ValueError(
            "One projection is for hidden states of one width. Received: pairs of blocks with the "
            f"widths {sorted(widths)}. Name blocks of one width by `layers`."
        )
    return Projection(student, *widths.pop(), loss.learning_rate)


def _negatives(teacher, between):
    """Return the teacher's pooled hidden states of the negatives after each block, if needed."""
    loss = next((loss for loss in between if isinstance(loss, Contrastive)), None)
    if loss is None:
        return ()
    with teacher.recorder.recording() as records:
        teacher(tf.nest.map_structure(tf.convert_to_tensor, loss.negatives))
    return tuple(pooled(record, record.mask) for record in records)


def _width(layer):
    return kernel_of(layer).shape[-1]


def _inputs(layer):
    size = 1
    for number in kernel_of(layer).shape[:-1]:
        size *= number
    return size
