"""Packed rows: the same outputs, losses, metrics and steps as those of single texts."""

import numpy as np
import pytest
import task_models
import tensorflow as tf
from covering import covering
from fit_helpers import mirrored
from task_models import LIBRARIES, TASKS, new_model, records
from zoo import ZOO, keras_of

import keras_efficient as ke

PACKED = ("classification", "multi_label", "regression", "token_classification", "causal_lm")
PER_TOKEN = ("token_classification", "causal_lm")
RATE, ROW, TEXTS = 0.1, 32, 4
BY_NAME = {specimen.name: specimen for specimen in ZOO}


def data(name, tokenizer, *, batch_size=4, shuffle=False):
    options = {"next_token": True} if name == "causal_lm" else {}
    return ke.data.pack(
        records(name),
        tokenizer,
        batch_size=batch_size,
        row_length=ROW,
        texts_per_row=TEXTS,
        shuffle=shuffle,
        **options,
    )


def with_loss(name, library, optimizer, rate, jit_compile=False):
    """Return a new model, compiled with the loss of its task alone; and its tokenizer."""
    model, tokenizer = new_model(name, library)
    keras = keras_of(library)
    optimizer = getattr(keras.optimizers, optimizer)(rate)
    # Without the accuracy that KerasHub adds.
    model.compile(optimizer, TASKS[name].loss(keras), metrics=[], jit_compile=jit_compile)
    return model, tokenizer


def plain_batch(name, tokenizer):
    (batch,) = task_models.batches(name, tokenizer, batch_size=len(task_models.TEXTS))
    return batch


def step_by_hand(name, library):
    """One step of SGD on all texts, one per row."""
    model, tokenizer = new_model(name, library)
    features, labels = plain_batch(name, tokenizer)
    flavor = ke.flavor.of(model)
    variables = list(map(flavor.value, model.trainable_variables))
    with tf.GradientTape() as tape:
        scores = task_models.logits(model, features)
        values, counted = task_models.losses(name, labels, scores)
        loss = tf.reduce_sum(values * counted) / tf.reduce_sum(counted)
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        if gradient is not None:
            variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
    return model, float(loss)


@pytest.mark.parametrize(
    "name, library, form",
    covering(PACKED, LIBRARIES, ("plain", "microbatches", "replicas", "xla"), strength=1),
)
def test_a_step_is_that_of_the_texts_alone(name, library, form):
    expected, loss = step_by_hand(name, library)
    with mirrored(2 if form == "replicas" else 1).scope():
        model, tokenizer = with_loss(name, library, "SGD", RATE, jit_compile=form == "xla")
        ke.pack(model, TEXTS)
    if form in ("microbatches", "replicas"):
        # Keras' own step would take the mean over the replicas, which differ in their tokens.
        ke.accumulate(model, microbatches=2 if form == "microbatches" else 1)
    batches = data(name, tokenizer)
    assert batches.stats.batches == 1 and batches.stats.examples == len(task_models.TEXTS)
    history = model.fit(batches, verbose=0, shuffle=False).history
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(history["loss"][0], loss, rtol=1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_weighted_metrics_are_those_of_the_texts(library):
    model, tokenizer = new_model("classification", library)
    keras = keras_of(library)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def accuracy():
        return keras.metrics.SparseCategoricalAccuracy("weighted")

    model.compile("sgd", loss, metrics=[], weighted_metrics=[accuracy()], jit_compile=False)
    features, labels = plain_batch("classification", tokenizer)
    alone = model.evaluate(features, labels, verbose=0, return_dict=True)
    report = ke.pack(model, TEXTS)
    packed = model.evaluate(data("classification", tokenizer), verbose=0, return_dict=True)
    assert packed.keys() == alone.keys()
    for key, value in alone.items():
        np.testing.assert_allclose(packed[key], value, rtol=1e-5)
    assert 0 < alone["weighted"] < 1
    report.remove()
    again = model.evaluate(features, labels, verbose=0, return_dict=True)
    assert again == alone


@pytest.mark.parametrize(
    "name, library", covering(("classification", *PER_TOKEN), LIBRARIES, strength=2)
)
def test_other_texts_in_a_row_have_no_effect(name, library):
    model, tokenizer = new_model(name, library)
    ke.pack(model, TEXTS)
    features = next(iter(data(name, tokenizer)))[0]
    ids, mask = (features[tokenizer.inputs[key]].numpy() for key in ("ids", "mask"))
    row = int(np.argmax(mask.max(1)))
    # Some rows may have no text.
    there = mask.max(1) > 0
    assert mask[row].max() > 1
    before = task_models.logits(model, features).numpy()
    rng = np.random.default_rng(0)
    noise = np.where(mask == 1, ids, rng.integers(5, len(task_models.VOCABULARY), ids.shape))
    changed = {**features, tokenizer.inputs["ids"]: tf.constant(noise, tf.int32)}
    after = task_models.logits(model, changed).numpy()
    if name in PER_TOKEN:
        np.testing.assert_allclose(after[mask == 1], before[mask == 1], atol=1e-5)
        assert np.abs(after[mask == 2] - before[mask == 2]).max() > 1e-2
    else:
        np.testing.assert_allclose(after[there, 0], before[there, 0], atol=1e-5)
        assert np.abs(after[row, 1] - before[row, 1]).max() > 1e-2


@pytest.mark.parametrize("library", LIBRARIES)
def test_lora_and_pruning_train_on_packed_rows(library):
    model, tokenizer = with_loss("classification", library, "Adam", 0.01)
    ke.lora(model, rank=2)
    ke.pack(model, TEXTS)
    ke.prune(model, final_sparsity=0.5, end_step=2)
    history = model.fit(
        data("classification", tokenizer, shuffle=True), epochs=6, verbose=0, shuffle=False
    )
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_unpad_and_pack_replace_each_other():
    model, tokenizer = new_model("classification", "keras")
    features, _ = plain_batch("classification", tokenizer)
    alone = model(features).numpy()
    ke.unpad(model)
    ke.pack(model, TEXTS)
    packed = next(iter(data("classification", tokenizer)))[0]
    assert model(packed).shape == (4, TEXTS, alone.shape[1])
    ke.unpad(model)
    np.testing.assert_allclose(model(features), alone, atol=1e-5)


@pytest.mark.parametrize("name", ["model-garden-bert", "kerashub-bert", "hugging-face-bert"])
def test_models_of_the_zoo(name):
    model = BY_NAME[name].make()
    try:
        report = ke.pack(model, 3)
    except ValueError as error:
        # Its features are a list, or what it returns is none of a text.
        assert name == "model-garden-bert" and "ke.pack" in str(error)
        return
    assert report.texts_per_row == 3 and "outputs per" in str(report)


def test_what_cannot_be_packed():
    model, _ = new_model("classification", "keras")
    for number in (0, 2.0, True):
        with pytest.raises(ValueError, match="`texts_per_row` must be an int above 0"):
            ke.pack(model, number)
    with pytest.raises(ValueError, match="Transformer blocks of a known kind, which are layers"):
        ke.pack(BY_NAME["keras-sequential"].make())
    with pytest.raises(ValueError, match="whose tokens are masked cannot be packed"):
        ke.pack(new_model("masked_lm", "keras")[0])
    ke.pack(model, TEXTS)
    with pytest.raises(ValueError, match="takes a dict of packed features"):
        model.call(tf.zeros([2, 5], tf.int32))


def test_heads_that_read_more_than_first_tokens():
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16
    )
    mean = keras.layers.GlobalAveragePooling1D()(
        backbone.output["sequence_output"], mask=backbone.input["padding_mask"] > 0
    )
    model = keras.Model(backbone.input, keras.layers.Dense(2)(mean))
    with pytest.raises(ValueError, match="must not change what a model computes"):
        ke.pack(model)
    features = {k: np.ones((2, 4), "int32") for k in ("token_ids", "segment_ids", "padding_mask")}
    assert model(features).shape == (2, 2)
