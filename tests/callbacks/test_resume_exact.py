"""A run that was stopped and started again is the uninterrupted run, to the last bit."""

import numpy as np
import padded_models
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import SMALL
from plain_block_models import one_block
from resumed_runs import IDS, Case, assert_goes_on, dataset, held_out, model_of, plain
from zoo import LENGTH

import keras_efficient as ke


def accumulated(model):
    return ke.accumulate(model, microbatches=3)


def sam(model):
    return ke.sam(model, 0.05)


def rdrop(model):
    return ke.adversarial(model, "rdrop")


def distilled(model):
    teacher = SMALL[ke.flavor.of(model).name].make()
    return ke.accumulate(ke.distill(model, teacher), 2)


def encoder(library, width=8):
    return one_block(library, width, LENGTH, masked=False)


def projected(model):
    hidden = ke.distillation.HiddenStates(learning_rate=0.05)
    teacher = encoder(ke.flavor.of(model).name, 12)
    return ke.accumulate(ke.distill(model, teacher, hidden=hidden), 2)


def float16(library):
    """A model made under mixed_float16; the policy is restored."""
    ke.mixed_precision("mixed_float16", library=library)
    try:
        return model_of(library)
    finally:
        ke.mixed_precision("float32", library=library)


def scaling():
    return ke.callbacks.EMA(0.8), ke.callbacks.LossScale()


def window():
    return ke.callbacks.BatchSizeSchedule({0: 2, 1: 4, 3: 3}), ke.callbacks.GradientNorm()


def endless():
    return dataset().repeat()


def unseen():
    """With an unknown number of batches."""
    return dataset().filter(lambda *batch: True)


def arrays():
    x, y = IDS.batch(23)
    return {"x": x, "y": y, "batch_size": 4, "shuffle": True}


def generated():
    def batches():
        while True:
            yield tuple(map(tf.constant, IDS.batch(4, seed=int(np.random.randint(1000)))))

    return batches()


LIBRARIES = ("keras", "tf_keras")
CASES = {
    "plain step": {"validation": held_out, "epochs": 3},
    "xla": {"compile": {"jit_compile": True}},
    "accumulate": {"step": accumulated},
    "sam": {"step": sam},
    "rdrop": {"step": rdrop},
    "distill": {"step": distilled},
    "projection": {"step": projected, "model": encoder},
    "float16": {"model": float16, "callbacks": scaling, "validation": held_out},
    "window": {"callbacks": window, "validation": held_out},
    "two replicas, window": {"replicas": 2, "callbacks": window, "validation": held_out},
    "two replicas, float16": {"replicas": 2, "model": float16, "callbacks": scaling},
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
#: Several of these at once; each occurs, and most with both libraries.
COMBINED = [
    ("keras", ("accumulate", "xla", "unknown size")),
    ("keras", ("two replicas, window",)),
    ("keras", ("sam", "endless, several per call")),
    ("keras", ("rdrop", "float16", "eager", "generator")),
    ("tf_keras", ("rdrop", "xla", "arrays")),
    ("tf_keras", ("two replicas, float16",)),
    # tf_keras refuses several steps per call for data of unknown size.
    ("tf_keras", ("accumulate", "several per call")),
    ("tf_keras", ("sam", "unknown size")),
    ("keras", ("distill", "unknown size")),
    ("tf_keras", ("distill", "float16")),
    ("tf_keras", ("projection", "arrays")),
]
ALONE = [
    pytest.param(library, (name,), marks=pytest.mark.full)
    for library in LIBRARIES
    for name in CASES
]


@sampled(2)
@pytest.mark.parametrize("library, names", [*COMBINED, *ALONE], ids=str)
def test_goes_on_to_the_last_bit(library, names, tmp_path):
    settings = {"compile": {}}
    for name in names:
        compile = settings["compile"] | CASES[name].get("compile", {})
        settings |= CASES[name] | {"compile": compile}
    case = Case(library, settings.pop("step", plain), **settings)
    whole = case.whole(tmp_path / "whole")
    # After a save within the last epoch.
    assert_goes_on(case, tmp_path / "stopped", sorted(whole.watch.losses)[-2], whole)


@pytest.mark.full
@pytest.mark.parametrize("name", ["kerashub", "distilbert"])
def test_without_padding_it_goes_on_to_the_last_bit(name, tmp_path):
    """The dropout masks of `ke.unpad` come from the library's generators, which are saved."""
    library, make, _ = padded_models.MODELS[name]

    def data():
        x, y = padded_models.batch(name, lengths=[9, 1, 4, 6, 2, 7] * 4)
        return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(24, seed=1).batch(4)

    def step(model):
        assert ke.unpad(model).first_token_only

    case = Case(library, step, data=data, model=lambda library: make(dropout=0.3))
    whole = case.whole(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "stopped", sorted(whole.watch.losses)[-2], whole)


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_goes_on_after_any_step(library, tmp_path):
    """Stopped for real: within the last epoch after its first save, and before it."""
    case = Case(library, validation=held_out, epochs=3, compile={"run_eagerly": True})
    whole = case.start(tmp_path / "whole")
    steps = sorted(whole.watch.losses)
    for index in (-3, -5) if library == "keras" else (-5,):
        assert_goes_on(case, tmp_path / str(index), steps[index], whole)


def bert(library):
    """Hugging Face's BERT, with dropout."""
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
    """A `ke.data.text` dataset of texts of many lengths."""
    from data.conftest import word_piece

    from keras_efficient.data import HUGGING_FACE, Tokenizer

    rng = np.random.default_rng(0)
    words = [" ".join(f"w{i}" for i in rng.integers(0, 200, n)) for n in rng.integers(1, 9, 40)]
    records = ke.data.Records.of(words, np.arange(40) % 3)
    tokenizer = Tokenizer(word_piece(), inputs=HUGGING_FACE, max_length=128)
    return ke.data.text(records, tokenizer, batch_size=8, seed=1)


@pytest.mark.full
def test_a_hugging_face_model_on_texts(tmp_path):
    case = Case("tf_keras", model=bert, data=texts)
    whole = case.start(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "a", sorted(whole.watch.losses)[-2], whole)
