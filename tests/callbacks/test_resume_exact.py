"""A run that was stopped and started again is the uninterrupted run, to the last bit."""

import numpy as np
import pytest
import tensorflow as tf
from resumed_runs import IDS, Case, assert_goes_on, dataset, held_out, model_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def three(model):
    return ke.accumulate(model, microbatches=3)


def divergent(model):
    return ke.adversarial(model, "rdrop")


def float16(library):
    """A model under mixed_float16; the policy is put back."""
    ke.mixed_precision("mixed_float16", library=library)
    try:
        return model_of(library)
    finally:
        ke.mixed_precision("float32", library=library)


def averaging():
    return ke.callbacks.EMA(0.8), ke.callbacks.LossScale()


def growing():
    return ke.callbacks.BatchSizeSchedule({0: 2, 1: 4, 3: 3}), ke.callbacks.GradientNorm()


def endless():
    return dataset().repeat()


def unseen():
    """Of an unknown number of batches."""
    return dataset().filter(lambda *batch: True)


def arrays():
    x, y = IDS.batch(23)
    return {"x": x, "y": y, "batch_size": 4, "shuffle": True}


def generated():
    def batches():
        while True:
            yield tuple(map(tf.constant, IDS.batch(4, seed=int(np.random.randint(1000)))))

    return batches()


CASES = {
    "plain step": {"validation": held_out, "epochs": 3},
    "xla": {"compile": {"jit_compile": True}},
    "accumulate": {"caller": three},
    "sam": {"caller": lambda model: ke.sam(model, 0.05)},
    "rdrop": {"caller": divergent},
    "float16": {"model": float16, "callbacks": averaging, "validation": held_out},
    "window": {"callbacks": growing, "validation": held_out},
    "two replicas, window": {"replicas": 2, "callbacks": growing, "validation": held_out},
    "two replicas, float16": {"replicas": 2, "model": float16, "callbacks": averaging},
    "several per call": {"compile": {"steps_per_execution": 3}},
    "endless, several per call": {
        "data": endless,
        "steps_per_epoch": 5,
        "compile": {"steps_per_execution": 2},
    },
    "unknown size": {"data": unseen, "validation": held_out},
    "arrays": {"data": arrays},
    "generator": {"data": generated, "steps_per_epoch": 5},
    "eager": {"compile": {"run_eagerly": True}},
}


@libraries
@pytest.mark.parametrize("name", CASES)
def test_goes_on_to_the_last_bit(name, library, tmp_path):
    case = Case(library, **CASES[name])
    whole = case.start(tmp_path / "whole")
    steps = sorted(whole.watch.losses)
    # Past a save within the last epoch; or before one.
    for index in (-3, -5) if name == "plain step" else (-2,):
        assert_goes_on(case, tmp_path / str(index), steps[index], whole)


def bert(library):
    """Hugging Face's, with its dropout on."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=204,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    model = transformers.TFBertForSequenceClassification(config)
    model(model.dummy_inputs)
    return model


def texts():
    """`ke.data.text` of texts of many lengths."""
    from data.conftest import word_piece

    from keras_efficient.data import HUGGING_FACE, Tokenizer

    rng = np.random.default_rng(0)
    words = [" ".join(f"w{i}" for i in rng.integers(0, 200, n)) for n in rng.integers(1, 9, 40)]
    records = ke.data.Records.of(words, np.arange(40) % 3)
    tokenizer = Tokenizer(word_piece(), inputs=HUGGING_FACE, max_length=128)
    return ke.data.text(records, tokenizer, batch_size=8, seed=1)


def test_a_hugging_face_model_on_texts(tmp_path):
    case = Case("tf_keras", model=bert, data=texts)
    whole = case.start(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "a", sorted(whole.watch.losses)[-2], whole)
