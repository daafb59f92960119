"""Two forms of one computation: one for few numbers, one for many."""

import functools

import tensorflow as tf
from tensorflow.python.ops import control_flow_util_v2

#: Below so many numbers, several simple operations are faster than one of oneDNN, which it
#: prepares at each call.
FEW = 100_000


def by_size(few, many, x, *others):
    """`few(x, *others)` where x has less than `FEW` numbers, else `many(x, *others)`.

    Args:
        few, many: functions of float32 tensors to one tensor; module level, or made once.
        x: tensor that decides.
        others: tensors of known shapes.

    Returns:
        The tensor, with no more than its rank known. Both forms are in the file once, however
        often they are called with the same shapes (`tf.cond` would write them for each call).
    """
    x, *others = (tf.convert_to_tensor(tensor, tf.float32) for tensor in (x, *others))
    free = tf.TensorSpec([None] * x.shape.rank, x.dtype)
    specs = (free, *(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in others))
    forms = [_traced(form, specs) for form in (few, many)]
    if tf.executing_eagerly():
        return forms[int(tf.size(x) >= FEW)](x, *others)
    (y,) = tf.raw_ops.StatelessIf(
        cond=tf.size(x) < FEW,
        input=[x, *others],
        Tout=[forms[0].structured_outputs.dtype],
        then_branch=forms[0],
        else_branch=forms[1],
    )
    # As `tf.cond` does: without a call of a function.
    control_flow_util_v2.maybe_set_lowering_attr(y.op)
    y.set_shape([None] * forms[0].structured_outputs.shape.rank)
    return y


@functools.cache
def _traced(form, specs):
    with tf.init_scope():
        return tf.function(form, autograph=False).get_concrete_function(*specs)
