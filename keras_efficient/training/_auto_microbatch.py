"""`microbatch_size="auto"`: halve the microbatch on running out of memory, repeat the batch."""

import warnings
from typing import Any

import tensorflow as tf

from keras_efficient.training._microbatch_loop import batch_size


def retrying(step):
    """Return a train function for `fit` that repeats a batch in smaller microbatches until it fits.

    Before a batch is repeated, metrics, moving statistics and random seeds are restored and the
    gradient sums cleared, so nothing counts twice. Weights change only after all microbatches.

    Args:
        step: the model's `TrainingStep`.
    """
    model, flavor = step.model, step.flavor
    strategy = model.distribute_strategy
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            "microbatch_size='auto' needs one process: a worker that runs out of memory cannot "
            "make the others repeat the batch. Received: a MultiWorkerMirroredStrategy. Find the "
            "size on one worker first, then give it as an int."
        )

    def one_step(data):
        outputs = strategy.run(step.hook, args=(data,))
        return tf.nest.map_structure(lambda value: _reduced_log(flavor, strategy, value), outputs)

    def traced():
        if model.run_eagerly:
            return one_step
        jit = step.static and not step.distributed
        return tf.function(one_step, reduce_retracing=True, autograph=False, jit_compile=jit)

    run, prepared = traced(), False

    def train_function(iterator):
        nonlocal run, prepared
        outputs = None
        for _ in range(flavor.steps_per_execution(model)):
            try:
                data = next(iterator)
            except StopIteration:
                if outputs is None:
                    raise
                return outputs
            data = tf.nest.map_structure(_tensor, data)
            if not prepared:
                step.prepare(tf.nest.map_structure(tf.type_spec_from_value, data))
                prepared = True
            before = step.halvings
            while True:
                state = _State(step)
                try:
                    outputs = step.traced(run, data)
                    break
                except tf.errors.ResourceExhaustedError as error:
                    state.restore()
                    _halve(step, _examples(strategy, data), error)
                    run = traced() if step.static else run
                except tf.errors.OpError as error:
                    if "Collective ops is aborted" not in str(error):
                        raise
                    raise RuntimeError(
                        "One replica ran out of memory while the others waited for it in an "
                        "all-reduce, from which TensorFlow cannot recover. Received: "
                        "microbatch_size='auto', which was at "
                        f"{step.split.size_of(_examples(strategy, data), step.halvings)} examples. "
                        "Start again with microbatch_size as a smaller int."
                    ) from error
            if step.halvings > before:
                _warn(step, before, _examples(strategy, data))
            flavor.count_step(model)
        return outputs

    return train_function


def _halve(step, examples, error):
    if _largest(step, step.applying) > 0:
        raise RuntimeError(
            "The device ran out of memory while the optimizer changed the weights, so the batch "
            "cannot be repeated: load the last checkpoint. Smaller microbatches would not help; "
            "a smaller model or an optimizer with less state (Adafactor) would. Received: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if step.split.size_of(examples, step.halvings) == 1:
        raise RuntimeError(
            "Not even one example per microbatch fits into the device's memory. Shorten the texts, "
            f"or use ke.remat(model). Received: {str(error).splitlines()[0]}"
        ) from error
    step.halvings += 1
    step.halved.assign(step.halvings)


def _warn(step, before, examples):
    sizes = [step.split.size_of(examples, halvings) for halvings in (before, step.halvings)]
    warnings.warn(
        f"Out of memory: microbatches of {sizes[0]} examples did not fit, from now on they have "
        f"{sizes[1]}. The batch was repeated from the start; no result changes.",
        stacklevel=3,
    )


class _State:
    """Values before a step of everything that a failed step may change."""

    def __init__(self, step):
        model, flavor = step.model, step.flavor
        variables = [v for v in flavor.state(model) if not v.trainable]
        for metric in flavor.all_metrics(model):
            variables += map(flavor.value, metric.variables)
        # An optimizer's counters wait for no gradient, so a failed step has advanced them.
        optimizer = flavor.optimizer(model)
        owned: Any = optimizer.variables
        owned = owned() if callable(owned) else owned
        variables += [v for v in map(flavor.value, owned) if v.shape.rank == 0]
        for observer in step.hook.observers:
            variables += getattr(observer, "variables", [])
        unique = {id(variable): variable for variable in variables}
        step.applying.assign(0)
        self.dirty = model.distribute_strategy.experimental_local_results(step.accumulator.dirty)
        self.parts = [
            part
            for variable in unique.values()
            for part in model.distribute_strategy.experimental_local_results(variable)
        ]
        self.values = [part.read_value() for part in self.parts]

    def restore(self):
        """Write the values back and mark the gradient sums as dirty."""
        for part, value in zip(self.parts, self.values, strict=True):
            part.assign(value)
        # A replica may have been stopped while it cleared its sums, already marked as clean.
        for dirty in self.dirty:
            dirty.assign(1)


def _largest(step, variable):
    parts = step.model.distribute_strategy.experimental_local_results(variable)
    return max(int(part.numpy()) for part in parts)


def _examples(strategy, data):
    """Return the largest number of examples on any replica."""
    first = next(leaf for leaf in tf.nest.flatten(data) if leaf is not None)
    parts = strategy.experimental_local_results(first)
    return max(int(batch_size(part)) for part in parts)


def _reduced_log(flavor, strategy, value):
    values = strategy.experimental_local_results(value)
    if len(values) == 1:
        return values[0]
    return (tf.reduce_sum if flavor.sums_logs else tf.reduce_mean)(tf.stack(values), 0)


def _tensor(value):
    if isinstance(value, tf.experimental.Optional):
        # Keras 3 wraps None.
        return None
    kept = tf.distribute.DistributedValues | tf.RaggedTensor | tf.SparseTensor
    if value is None or isinstance(value, kept):
        return value
    return tf.convert_to_tensor(value)
