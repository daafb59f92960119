"""Choose between two implementations by the number of elements of a tensor."""

import functools

import tensorflow as tf
from tensorflow.python.ops import control_flow_util_v2

#: Below this number of elements several simple operations are faster than one of oneDNN, which has
#: a constant cost per call.
SMALL = 100_000


def by_size(few, many, x, *others):
    """Return `few(x, *others)` if x has less than `SMALL` elements, else `many(x, *others)`.

    Both functions are in the graph once, however often they are called with the same shapes.
    `tf.cond` would write them for each call.

    Args:
        few: function of float32 tensors that returns one tensor. It is cached by identity, so it
            must not be created per call.
        many: the same, for many elements.
        x: tensor whose number of elements decides.
        others: tensors of known shapes.

    Returns:
        The tensor, of which only the rank is known statically.
    """
    x, *others = (tf.convert_to_tensor(tensor, tf.float32) for tensor in (x, *others))
    free = tf.TensorSpec([None] * x.shape.rank, x.dtype)
    specs = (free, *(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in others))
    forms = [_traced(form, specs) for form in (few, many)]
    if tf.executing_eagerly():
        return forms[int(tf.size(x) >= SMALL)](x, *others)
    (y,) = tf.raw_ops.StatelessIf(
        cond=tf.size(x) < SMALL,
        input=[x, *others],
        Tout=[forms[0].structured_outputs.dtype],
        then_branch=forms[0],
        else_branch=forms[1],
    )
    # Inline the branches, as `tf.cond` does.
    control_flow_util_v2.maybe_set_lowering_attr(y.op)
    y.set_shape([None] * forms[0].structured_outputs.shape.rank)
    return y


@functools.cache
def _traced(form, specs):
    with tf.init_scope():
        return tf.function(form, autograph=False).get_concrete_function(*specs)
