"""Sum a function over consecutive slices of a batch, in one loop of the graph."""

import tensorflow as tf


def batch_size(data):
    """The number of examples in `data` (any nest of tensors that share their first dimension).

    An int where the shape tells, else a scalar int32 tensor.
    """
    first = next(leaf for leaf in tf.nest.flatten(data) if leaf is not None)
    if isinstance(first, tf.RaggedTensor):
        return tf.cast(first.nrows(), tf.int32)
    known = first.shape[0]
    return tf.shape(first)[0] if known is None else known


def spec_of_any_batch(data):
    """The specs of a nest of tensors, with any number of examples."""

    def any_batch(value):
        spec = tf.type_spec_from_value(value)
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
            return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
        return spec

    return tf.nest.map_structure(any_batch, data)


def sum_over(function, data, size, zeros, *, static=False):
    """Σ function(slice) over the slices of `size` consecutive examples of `data`.

    The graph holds `function` once, however many slices there are, and only one slice's
    intermediate values are alive at a time.

    Args:
        function: slice of `data` -> nest of tensors like `zeros`.
        data: nest of tensors `[examples, ...]`; None leaves stay None.
        size: int or scalar int32 tensor, the examples per slice; the last slice may be smaller.
        zeros: nest of tensors to start from.
        static: XLA needs one shape for all turns of the loop: put the smaller last slice, if
            there is one, into a second copy of `function` behind the loop.

    Returns:
        The sums, a nest like `zeros`.
    """
    examples = batch_size(data)

    def plus(sums, start, stop):
        part = tf.nest.map_structure(lambda t: None if t is None else cut(t, start, stop), data)
        return tf.nest.map_structure(tf.add, sums, function(part))

    def cut(tensor, start, stop):
        if not static:
            return tensor[start:stop]
        # XLA would take `start:stop` for anything up to the whole batch, and compute all of it. (It
        # compiles a turn even if none is made: no slice may be larger than the batch.)
        count = tf.minimum(size, examples) if stop is None else stop - start
        rest = tf.shape(tensor)[1:]
        begin = tf.concat([[start], tf.zeros_like(rest)], 0)
        return tf.slice(tensor, begin, tf.concat([[count], rest], 0))

    def turn(index, sums):
        start = index * size
        stop = None if static else tf.minimum(start + size, examples)
        return index + 1, plus(sums, start, stop)

    turns = examples // size if static else -(-examples // size)
    _, sums = tf.while_loop(
        lambda index, _: index < turns, turn, (tf.constant(0), zeros), parallel_iterations=1
    )
    if not static:
        return sums
    done = turns * size
    rest = tf.get_static_value(examples - done)
    if rest == 0:
        return sums
    if rest is not None:
        return plus(sums, done, examples)
    return tf.cond(examples > done, lambda: plus(sums, done, examples), lambda: sums)
