"""Communication of replicas: one all-reduce per update, with sparse rows of embeddings."""

import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import SMALL, batches, compiled, mirrored, sample_weights

import keras_efficient as ke

both = pytest.mark.parametrize("specimen", SMALL.values(), ids=repr)


@pytest.fixture
def reductions(monkeypatch):
    """The values of every all-reduce that a replica asks for, as it is traced."""
    calls = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def spy(context, op, value, options=None):
        calls.append((tf.get_static_value(context.replica_id_in_sync_group), op, value))
        return all_reduce(context, op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", spy)
    return calls


def trained(specimen, replicas, k, **kwargs):
    with mirrored(replicas).scope():
        model = compiled(specimen.library, specimen.make(), **kwargs)
    ke.accumulate(model, k)
    data = batches(*specimen.batch(16), sample_weights(16), batch_size=8)
    model.fit(data, shuffle=False, verbose=0)
    return model


@sampled()
@pytest.mark.parametrize("specimen, k", covering(SMALL.values(), [4, 1], strength=1))
def test_one_all_reduce_per_update(specimen, k, reductions):
    model = trained(specimen, 2, k)
    assert int(model.optimizer.iterations.numpy()) == 2
    # Both batches run the one graph, which each replica traces as often.
    per_replica = [[call for call in reductions if call[0] == index] for index in range(2)]
    assert [len(calls) for calls in per_replica] == [1, 1]
    for _, op, values in reductions:
        assert op == tf.distribute.ReduceOp.SUM
        gradients = values[: len(model.trainable_variables)]
        sparse = [isinstance(gradient, tf.IndexedSlices) for gradient in gradients]
        # The table comes first.
        assert sparse == [True] + [False] * (len(sparse) - 1)
        # Σ of weights and of losses, and the counts of examples and microbatches.
        totals = values[len(gradients) :]
        assert [total.shape.rank for total in totals] == [0, 0, 0, 0]


def test_no_all_reduce_on_one_device(reductions):
    # tf_keras itself asks for one, which does nothing.
    trained(SMALL["keras"], 1, 4)
    assert reductions == []


@sampled()
@both
def test_replicas_hold_the_same_weights(specimen):
    model = trained(specimen, 2, 2)
    for variable in model.trainable_variables:
        value = ke.flavor.of(model).value(variable)
        first, second = mirrored(2).experimental_local_results(value)
        assert first.device != second.device
        tf.debugging.assert_equal(first, second)
