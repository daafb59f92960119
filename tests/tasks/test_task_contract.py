"""Every task trains with every method, in both libraries, as its loss says.

The expected loss, metrics and weights are written down in `task_models`: plain steps of SGD on
whole batches. What `fit` gets has random ids in place of padding, which must have no influence.
"""

import numpy as np
import pytest
import task_models
import tensorflow as tf
from fit_helpers import mirrored
from task_models import LIBRARIES, TASKS, batches, by_hand, compiled, logits, new_model
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.architecture._heads import head_weights
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression._activation_quantization import ActivationQuantizer
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers
from keras_efficient.compression._masks import Mask
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transforms

RATE = 0.1
#: Keras' own shuffling is for arrays.
IN_ORDER = {"shuffle": False}
#: Options of `ke.unpad` for tasks whose models have outputs at padding, without which it refuses
#: them. It knows the blocks of all models here: BERT, GPT-2 and the encoder of BART.
UNPAD = {
    name: {"ignore_padding_outputs": True}
    for name in ("token_classification", "causal_lm", "seq2seq")
}
#: Models whose outputs at padding stay as they are: only the encoder of a BART is unpadded, and
#: KerasHub's decoder does not read its padding.
COMPUTE_PADDING = {("seq2seq", "keras")}
#: For methods whose graphs the tests of their own compile: tracing a graph takes three times as
#: long as some steps without one.
EAGER = {"eager": True}


def sgd(name, library, **options):
    return compiled(name, library, keras_of(library).optimizers.SGD(RATE), **options)


def fit(model, data):
    history = model.fit(data, verbose=0, **IN_ORDER).history
    return {key: values[-1] for key, values in history.items()}


def assert_loss_falls(model, name, tokenizer):
    data = batches(name, tokenizer, noise=1, batch_size=len(task_models.TEXTS))
    losses = model.fit(data, epochs=2, verbose=0, **IN_ORDER).history["loss"]
    assert losses[-1] < losses[0]


def assert_trained(model, logs, wanted):
    for a, b in zip(model.get_weights(), wanted.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for key, value in wanted.logs.items():
        np.testing.assert_allclose(logs[key], value, rtol=1e-4, err_msg=key)


def outputs(model, tokenizer, name):
    """Return the logits of all examples."""
    ((features, _),) = batches(name, tokenizer, batch_size=len(task_models.TEXTS))
    return logits(model, features).numpy()


# --- methods --------------------------------------------------------------------------------------


def accumulate(name, library, folder):
    """Three microbatches are one batch."""
    model, tokenizer = sgd(name, library, **EAGER)
    ke.accumulate(model, microbatches=3)
    logs = fit(model, batches(name, tokenizer, noise=1))
    assert_trained(model, logs, by_hand(name, library, RATE))


def replicas(name, library, folder):
    """Two replicas, with two and one of three examples, are one."""
    with mirrored(2).scope():
        model, tokenizer = sgd(name, library, **EAGER)
    ke.accumulate(model, microbatches=1)
    logs = fit(model, batches(name, tokenizer, noise=1))
    assert_trained(model, logs, by_hand(name, library, RATE))


def unpad(name, library, folder):
    """Without padding training is the same."""
    model, tokenizer = sgd(name, library)
    options = UNPAD.get(name, {})
    if options and (name, library) not in COMPUTE_PADDING:
        with pytest.raises(ValueError, match="pass ignore_padding_outputs=True"):
            ke.unpad(model)
    report = ke.unpad(model, **options)
    assert report.masked and len(report.blocks) == 1
    logs = fit(model, batches(name, tokenizer, noise=1))
    assert_trained(model, logs, by_hand(name, library, RATE))


def distill(name, library, folder):
    """Half of the loss comes from a teacher, at the positions that count, in microbatches."""
    model, tokenizer = sgd(name, library)
    teacher, _ = new_model(name, library)
    before = model.get_weights()
    divergence = "mse" if name == "regression" else "forward_kl"
    ke.distill(
        model, teacher, alpha=0.5, temperature=task_models.TEMPERATURE, divergence=divergence
    )
    ke.accumulate(model, microbatches=3)
    data = batches(name, tokenizer, noise=1)
    # A teacher that says what the student does adds nothing.
    ((features, labels),) = batches(name, tokenizer).take(1)
    values, counts = task_models.losses(name, labels, logits(model, features))
    logs = fit(model, data.take(1))
    loss = tf.reduce_sum(values * counts) / tf.reduce_sum(counts)
    np.testing.assert_allclose(logs["loss"], 0.5 * loss, rtol=1e-5)
    model.set_weights(before)
    teacher.set_weights([1.3 * weight for weight in before])
    wanted = by_hand(name, library, RATE, teacher=teacher)
    assert_trained(model, fit(model, data), wanted)
    np.testing.assert_array_equal(teacher.get_weights()[0], 1.3 * before[0])


def lora(name, library, folder):
    """Adapters and the head train, nothing else; merged weights give the same outputs."""
    model, tokenizer = compiled(name, library, keras_of(library).optimizers.Adam(0.01), **EAGER)
    ke.lora(model, rank=2)
    heads = {weight.path for weight in head_weights(model)}
    before = {weight.path: weight.value.numpy() for weight in all_weights(model)}
    deltas = [(delta, delta.a.numpy()) for delta in transforms(model)]
    assert_loss_falls(model, name, tokenizer)
    assert deltas
    for delta, a in deltas:
        assert (delta.a.numpy() != a).any() and delta.b.numpy().any(), delta.weight.path
    for weight in all_weights(model):
        if weight.path not in heads:
            np.testing.assert_array_equal(weight.value.numpy(), before[weight.path])
    seen = outputs(model, tokenizer, name)
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, tokenizer, name), seen, atol=2e-5)


def prune(name, library, folder):
    """After updates two of each four inputs of an output are zero."""
    model, tokenizer = compiled(name, library, keras_of(library).optimizers.Adam(0.01), **EAGER)
    ke.prune(model, pattern="2:4")
    assert_loss_falls(model, name, tokenizer)
    pruned = transforms(model, Mask)
    assert pruned
    for mask in pruned:
        weight = mask.weight
        matrix = np.asarray(weight.matrix(weight.value.numpy()))
        zeros = (matrix == 0).reshape(-1, 4, matrix.shape[1]).sum(1)
        assert (zeros == 2).all(), weight.path
    assert np.isfinite(outputs(model, tokenizer, name)).all()


def quantize_aware(name, library, folder):
    """Rounded weights train; merged they give the same outputs, as do those of integers."""
    model, tokenizer = compiled(name, library, keras_of(library).optimizers.Adam(0.01), **EAGER)
    ke.quantize_aware(model)
    assert_loss_falls(model, name, tokenizer)
    wrappers = [w for layer in parametrized_layers(model) for w in layer.call_wrappers]
    ranges = [w.range for w in wrappers if isinstance(w, ActivationQuantizer)]
    assert ranges and all(low <= 0 < high for low, high, _ in map(tf.unstack, ranges))
    with_ranges = outputs(model, tokenizer, name)
    # Without known ranges inputs are not rounded, as after merging.
    for values in ranges:
        values.assign([0, 0, 0])
    seen = outputs(model, tokenizer, name)
    # Without those of tokens that are no answers.
    real = np.abs(seen) < 50
    difference = np.abs(with_ranges - seen)[real].max()
    assert 0 < difference < 0.3 * np.abs(seen[real]).max()
    rounded = {
        t.weight.path: from_integers(*t.integers()[:2]) for t in transforms(model, FakeQuant)
    }
    ke.merge(model)
    for weight in all_weights(model):
        if weight.path in rounded:
            matrix = np.asarray(weight.matrix(weight.value.numpy()))
            np.testing.assert_allclose(matrix, rounded[weight.path], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(outputs(model, tokenizer, name), seen, atol=2e-5)


def resume(name, library, folder):
    """One epoch, and another one in a new model, are two, to the last bit, with dropout."""

    def run(directory, epochs):
        keras_of(library).utils.set_random_seed(1)
        optimizer = ke.optimizers.AdamW(0.01, library=library)
        model, tokenizer = compiled(name, library, optimizer, dropout=0.2, **EAGER)
        options = {"training": True, "shuffle": True, "batch_size": len(task_models.TEXTS)}
        data = batches(name, tokenizer, **options)
        resumed = ke.callbacks.Resume(folder / directory)
        history = model.fit(data, epochs=epochs, verbose=0, callbacks=[resumed], **IN_ORDER)
        return model, history.history["loss"]

    whole, losses = run("whole", 2)
    _, first = run("stopped", 1)
    again, second = run("stopped", 2)
    assert losses == [*first, *second[-1:]] and len(set(losses)) == 2
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


METHODS = (accumulate, replicas, unpad, distill, lora, prune, quantize_aware, resume)
#: These tasks have the same model, so methods that change its weights or save it take turns.
ONE_MODEL = ("classification", "multi_label", "regression")
TURNS = {lora: 0, prune: 1, quantize_aware: 2, resume: 0}
#: Replicas weigh examples, words or tokens of targets, as microbatches do.
ON_REPLICAS = ("multi_label", "token_classification", "seq2seq")


def cases():
    """Every task with every method; libraries and some tasks take turns, `full` has the others."""
    for i, name in enumerate(TASKS):
        for j, method in enumerate(METHODS):
            for k, library in enumerate(LIBRARIES):
                turn = TURNS.get(method) if name in ONE_MODEL else None
                later = (i + j + k) % 2 == 1 or turn not in (None, i)
                later |= method is replicas and name not in ON_REPLICAS
                marks = [pytest.mark.full] if later else []
                names = f"{name}-{method.__name__}-{library}"
                yield pytest.param(name, method, library, marks=marks, id=names)


@pytest.mark.parametrize("name, method, library", cases())
def test_a_task_trains_with_a_method(name, method, library, tmp_path):
    method(name, library, tmp_path)
