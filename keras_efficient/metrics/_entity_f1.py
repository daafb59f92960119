"""Entity F1 as a metric of `compile`."""

import functools
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.data._bio_tags import entity_marks
from keras_efficient.flavor._ignored_label import IGNORED


def entity_f1(num_classes: int, *, library: str = "keras") -> Any:
    """Return a metric for `compile`: the F1 of entities, from BIO tags of words and logits.

    It counts entities over the whole epoch, as `entity_report` does. Labels are int [batch,
    tokens], 0 outside of entities, then B and I of each type, with -100 for tokens that do not
    count. Predictions are float [batch, tokens, classes].

    Args:
        num_classes: int, number of classes: 1 and two for each type.
        library: "keras" or "tf_keras", the model's library. Default: "keras".

    Returns:
        A Keras metric named "entity_f1".

    Raises:
        InputError: `num_classes` is no such number.

    Examples:
        >>> import tensorflow as tf
        >>> metric = ke.metrics.entity_f1(3)
        >>> metric.update_state([[1, -100, 2, 1]], tf.one_hot([[1, 0, 2, 0]], 3))
        >>> round(float(metric.result()), 3)
        0.667

    Reference:
        `seqeval.metrics.f1_score`.
    """
    if type(num_classes) is not int or num_classes < 3 or num_classes % 2 == 0:
        raise InputError(
            "`num_classes` must be 1 and two for each type of entity. Received: "
            f"{num_classes!r}. Give the number of `label_names`."
        )
    return _metric_class(flavors.get(library).keras.metrics.Metric)()


@functools.cache
def _metric_class(base):
    class EntityF1(base):
        def __init__(self, name="entity_f1", **options):
            super().__init__(name=name, **options)
            self.right, self.predicted, self.present = (
                self.add_weight(name=name, shape=(), initializer="zeros")
                for name in ("right", "predicted", "present")
            )

        def update_state(self, y_true, y_pred, sample_weight=None):
            labels = tf.cast(y_true, tf.int32)
            classes = tf.argmax(y_pred, axis=-1, output_type=tf.int32)
            weights = tf.ones_like(labels[:, 0], tf.float32)
            if sample_weight is not None:
                weights *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
            for variable, numbers in zip(
                (self.right, self.predicted, self.present), _counts(labels, classes), strict=True
            ):
                variable.assign_add(tf.reduce_sum(weights * tf.cast(numbers, tf.float32)))

        def result(self):
            both = tf.convert_to_tensor(self.predicted) + tf.convert_to_tensor(self.present)
            return tf.math.divide_no_nan(2 * tf.convert_to_tensor(self.right), both)

        def reset_state(self):
            for variable in (self.right, self.predicted, self.present):
                variable.assign(0.0)

    return EntityF1


def _counts(labels, classes):
    """Return the numbers of right, predicted and present entities of each text, int `[batch]`."""
    counted = labels != IGNORED
    # What counts comes first, in its order; the rest is outside of entities. XLA compiles this.
    length = tf.shape(labels)[1]
    keys = tf.range(length)[None] + tf.where(counted, 0, length)
    order = tf.argsort(keys, axis=1)
    counted = tf.gather(counted, order, batch_dims=1)
    truth, found = (
        entity_marks(tf.where(counted, tf.gather(x, order, batch_dims=1), 0), tf.pad)
        for x in (labels, classes)
    )
    begins, types, _ = truth
    same = tf.reduce_all(tf.stack([a == b for a, b in zip(truth, found, strict=True)]), axis=0)
    # An entity is right if nothing differs in any of its words, which are numbered by entity.
    entity = tf.cumsum(tf.cast(begins, tf.int32), axis=1)
    entity += tf.range(tf.shape(labels)[0])[:, None] * (length + 1)
    wrong = tf.math.unsorted_segment_sum(
        tf.cast((types > 0) & ~same, tf.int32), entity, tf.shape(labels)[0] * (length + 1)
    )
    right = begins & (tf.gather(wrong, entity) == 0)
    return [tf.math.count_nonzero(x, axis=1) for x in (right, found[0], begins)]
