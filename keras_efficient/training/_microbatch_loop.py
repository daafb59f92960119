"""Sum of a function over consecutive slices of a batch, in one loop of the graph."""

from collections.abc import Callable

import tensorflow as tf


def batch_size(data):
    """Return the number of examples in a nest of tensors that share their first dimension.

    An int if the static shape has it, else a scalar int32 tensor.
    """
    first = next(leaf for leaf in tf.nest.flatten(data) if leaf is not None)
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    known = first.shape[0]
    if isinstance(first, tf.SparseTensor) and known is None:
        return tf.cast(first.dense_shape[0], tf.int32)
    return tf.shape(first)[0] if known is None else known


def sum_over(function: Callable, data, size, zeros, *, static: bool = False):
    """Return Σ function(slice) over the slices of `size` consecutive examples of `data`.

    The graph contains `function` once, however many slices there are, and only the intermediate
    values of one slice are alive at a time.

    Args:
        function: maps a slice of `data` to a nest of tensors like `zeros`.
        data: nest of tensors `[examples, ...]`; leaves that are None stay None.
        size: int or scalar int32 tensor, examples per slice; the last slice may be smaller.
        zeros: nest of tensors, the start of the sums.
        static: for XLA, which needs one shape for all iterations of the loop: a smaller last slice
            is computed by a second copy of `function` behind the loop. If `size` is an int and the
            shapes of `data` are static, so are those of the slices.

    Returns:
        The sums, a nest like `zeros`.
    """
    examples = batch_size(data)
    known = isinstance(size, int) and isinstance(examples, int)

    def plus(sums, start, stop):
        part = tf.nest.map_structure(lambda t: None if t is None else cut(t, start, stop), data)
        return tf.nest.map_structure(tf.add, sums, function(part))

    def cut(tensor, start, stop):
        if isinstance(tensor, tf.SparseTensor):
            return _rows(tensor, start, stop)
        if not static:
            return tensor[start:stop]
        # XLA would treat `start:stop` as a slice of up to the whole batch, and compute all of it.
        # It compiles the loop body even if it never runs, so no slice may exceed the batch.
        smaller = min if known else tf.minimum
        count = smaller(size, examples) if stop is None else stop - start
        rest = tf.shape(tensor)[1:]
        begin = tf.concat([[start], tf.zeros_like(rest)], 0)
        part = tf.slice(tensor, begin, tf.concat([[count], rest], 0))
        # TensorFlow infers no shape from a `start` that is not constant.
        part.set_shape(tf.TensorShape([count if known else None]).concatenate(tensor.shape[1:]))
        return part

    def body(index, sums):
        start = index * size
        stop = None if static else tf.minimum(start + size, examples)
        return index + 1, plus(sums, start, stop)

    iterations = examples // size if static else -(-examples // size)
    _, sums = tf.while_loop(
        lambda index, _: index < iterations, body, (tf.constant(0), zeros), parallel_iterations=1
    )
    if not static:
        return sums
    done = iterations * size
    rest = tf.get_static_value(examples - done)
    if rest == 0:
        return sums
    if rest is not None:
        return plus(sums, done, examples)
    return tf.cond(examples > done, lambda: plus(sums, done, examples), lambda: sums)


def _rows(tensor, start, stop):
    """Return `tensor[start:stop]` of a `tf.SparseTensor`."""
    rest = tensor.dense_shape[1:]
    begin, size = (tf.cast(tf.reshape(n, [1]), tf.int64) for n in (start, stop - start))
    part = tf.sparse.slice(
        tensor, tf.concat([begin, tf.zeros_like(rest)], 0), tf.concat([size, rest], 0)
    )
    part.set_shape([None, *tensor.shape[1:]])
    return part
