"""Losses that Hugging Face models compute themselves, weighed by what they divide by.

transformers#13046, transformers#6968.
"""

import types

import numpy as np
import pytest
import tensorflow as tf
import zoo
from covering import sampled
from fit_helpers import assert_same, fit, mirrored, moved
from zoo import LENGTH, VOCABULARY, hf_config, keras_of

import keras_efficient as ke
from keras_efficient.flavor._hugging_face_loss import HuggingFaceLoss

TEXTS = 8
PAD = 1
#: Labels per text; the third microbatch of four has none.
COUNTS = np.array([6, 1, 2, 5, 0, 0, 3, 1])


def labels(classes, padding=-100):
    values = np.random.default_rng(4).integers(2, classes, (TEXTS, LENGTH)).astype("int32")
    return np.where(np.arange(LENGTH) < COUNTS[:, None], values, padding).astype("int32")


def halves(nest):
    """Parts of the examples, of unequal size and weight."""
    return [tf.nest.map_structure(lambda t, s=s: t[s], nest) for s in (slice(3), slice(3, None))]


def library_class(name):
    import transformers
    from transformers.models.albert import modeling_tf_albert
    from transformers.models.bert import modeling_tf_bert
    from transformers.models.mobilebert import modeling_tf_mobilebert

    modules = transformers.modeling_tf_utils, modeling_tf_bert, modeling_tf_albert
    for module in (*modules, modeling_tf_mobilebert, transformers):
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(name)


def only_the_loss(base, **config):
    """An object with the loss function of a class of transformers and nothing else."""
    model = object.__new__(types.new_class("Model", (base,)))
    settings = {"tf_legacy_loss": False, "pad_token_id": PAD, "semantic_loss_ignore_index": 8}
    vars(model)["config"] = types.SimpleNamespace(**settings, **config)
    return model


def reduced(loss):
    """Reduce what `hf_compute_loss` returns as a model that is compiled without a loss does."""
    from transformers.modeling_tf_utils import dummy_loss

    cls = type("Dummy", (keras_of("tf_keras").losses.Loss,), {})
    cls.call = lambda self, y_true, y_pred: dummy_loss(y_true, y_pred)
    return cls()(loss, loss)


def weighted_mean(model, parts):
    """Return the mean of the losses of parts, weighed by their divisors."""
    own, total, weights = HuggingFaceLoss(model), 0.0, 0.0
    for y, logits in parts:
        with own.recorded((None, y)) as of_loss:
            loss = reduced(model.hf_compute_loss(labels=y, logits=logits))
        examples = len(tf.nest.flatten(y)[0])
        weight = float(examples if own.per_example else of_loss().divisor)
        total, weights = total + weight * float(loss), weights + weight
    return total / weights


def logits(*shape):
    return np.random.default_rng(5).normal(size=(TEXTS, *shape)).astype("float32")


def classes(n=TEXTS):
    return np.array([2, 0, 1, 1, 2, 0, 0, 1], "int32")[:n]


def sentence_labels():
    return np.array([0, 1, -100, 1, -100, 0, 1, 1], "int32")


LOSSES = {
    "TFCausalLanguageModelingLoss": (labels(9), logits(LENGTH, 9)),
    "TFMaskedLanguageModelingLoss": (labels(9), logits(LENGTH, 9)),
    "TFTokenClassificationLoss": (labels(9, -1), logits(LENGTH, 9)),
    "TFLEDForConditionalGeneration": (labels(9, PAD), logits(LENGTH, 9)),
    "TFSegformerForSemanticSegmentation": (
        np.stack([labels(8, 8)] * 4, 1),
        logits(2, LENGTH, 9),
    ),
    "TFMobileViTForSemanticSegmentation": (
        np.stack([labels(8, 8)] * 4, 1),
        logits(2, LENGTH, 9),
    ),
    "TFSequenceClassificationLoss": (classes(), logits(3)),
    "TFMultipleChoiceLoss": (classes(), logits(3)),
    "TFNextSentencePredictionLoss": (sentence_labels(), logits(2)),
    "TFQuestionAnsweringLoss": (
        {"start_position": classes(), "end_position": classes()[::-1].copy()},
        (logits(LENGTH), logits(LENGTH)[::-1].copy()),
    ),
}
LEGACY = [
    "TFCausalLanguageModelingLoss",
    "TFLEDForConditionalGeneration",
    "TFNextSentencePredictionLoss",
]


def test_every_loss_is_weighed_by_its_own_divisor():
    for name, legacy in [*((n, False) for n in LOSSES), *((n, True) for n in LEGACY)]:
        model = only_the_loss(library_class(name))
        model.config.tf_legacy_loss = legacy
        data = tf.nest.map_structure(tf.constant, LOSSES[name])
        whole = float(reduced(model.hf_compute_loss(labels=data[0], logits=data[1])))
        assert whole > 0
        np.testing.assert_allclose(
            weighted_mean(model, halves(data)), whole, rtol=1e-5, err_msg=f"{name}, {legacy}"
        )
        assert HuggingFaceLoss(model).known != (legacy and name in LEGACY), name


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("TFBertPreTrainingLoss", "next_sentence_label"),
        ("TFMobileBertPreTrainingLoss", "next_sentence_label"),
        ("TFAlbertPreTrainingLoss", "sentence_order_label"),
    ],
)
def test_a_loss_of_two_means_is_divided_by_both_counts(name, other):
    model = only_the_loss(library_class(name))
    model.get_label_to_output_name_mapping = dict
    data = {"labels": labels(9), other: sentence_labels()}, (logits(LENGTH, 9), logits(2))
    whole = float(model.hf_compute_loss(*data)[0])
    own, total = HuggingFaceLoss(model), 0.0
    counts = own.counts((None, data[0]))
    assert list(map(int, counts)) == [(labels(9) >= 0).sum(), 6]
    # One text of the second half has no label at all.
    for y, scores in [tf.nest.map_structure(lambda t, i=i: t[[i]], data) for i in range(TEXTS)]:
        with own.divided_by(counts, TEXTS):
            total += float(model.hf_compute_loss(labels=y, logits=scores)[0]) / TEXTS
    np.testing.assert_allclose(total, whole, rtol=1e-5)


SMALL = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 16,
    "pad_token_id": PAD,
    "decoder_start_token_id": 2,
    "eos_token_id": 2,
}


def sequence_to_sequence(name):
    import transformers

    config = getattr(transformers, f"{name}Config")
    suffix = "MTModel" if name == "Marian" else "ForConditionalGeneration"
    return getattr(transformers, f"TF{name}{suffix}")(config(**SMALL))


def decoder(name):
    import transformers

    if name == "XGLM":
        sizes = {"d_model": 8, "num_layers": 1, "attention_heads": 2, "ffn_dim": 8}
        config = transformers.XGLMConfig(VOCABULARY, max_position_embeddings=16, **sizes)
        return transformers.TFXGLMForCausalLM(config)
    config = transformers.GPT2Config(VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    return transformers.TFGPT2LMHeadModel(config)


@sampled(4)
@pytest.mark.parametrize(
    ("make", "name", "padding"),
    [
        *((sequence_to_sequence, n, PAD) for n in ("Bart", "Marian", "Pegasus")),
        *((sequence_to_sequence, n, PAD) for n in ("Blenderbot", "LED")),
        (decoder, "GPT2", -100),
        (decoder, "XGLM", -100),
    ],
)
def test_the_labels_that_reach_the_loss_are_counted(make, name, padding):
    """The model shifts labels, or replaces those that are padding, in its call."""
    model = make(name)
    ids = np.random.default_rng(1).integers(2, VOCABULARY, (TEXTS, LENGTH)).astype("int32")
    features = {"input_ids": ids, "labels": labels(VOCABULARY, padding)}
    whole = float(model(features).loss[0])
    own, total, weights = HuggingFaceLoss(model), 0.0, 0.0
    for part in halves(features):
        with own.recorded(part) as of_loss:
            loss = float(model(part).loss[0])
        divisor = float(of_loss().divisor)
        total, weights = total + divisor * loss, weights + divisor
    np.testing.assert_allclose(total / weights, whole, rtol=1e-5)


def pretraining(name):
    import transformers

    config = hf_config()
    if name == "Albert":
        sizes = {"embedding_size": 8, "classifier_dropout_prob": 0.0, "num_labels": 2}
        labelled = ("id2label", "label2id")
        same = {k: v for k, v in config.to_dict().items() if k not in labelled}
        config = transformers.AlbertConfig(**{**same, **sizes})
    if name == "MobileBert":
        sizes = {"embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}
        config = transformers.MobileBertConfig(**{**config.to_dict(), **sizes})
    return fixed(getattr(transformers, f"TF{name}ForPreTraining")(config))


def fixed(model):
    model(model.dummy_inputs)
    return zoo.fixed(model)


def check(make, features, *, k=4, replicas=1, rate=0.3, y=None, history=True):
    """Assert that k microbatches on some replicas train as one batch of one device does."""

    with mirrored(replicas).scope():
        model = make()
        before = model.get_weights()
        model.compile(keras_of("tf_keras").optimizers.SGD(rate))
    found = fit(ke.accumulate(model, k), features, y, batch_size=TEXTS, epochs=2)
    assert moved(before, model) > 1e-3
    plain, expected = make(), []
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(plain({**features, **(y or {})}, training=True).loss)
        expected.append(float(loss))
        variables = plain.trainable_variables
        for gradient, variable in zip(tape.gradient(loss, variables), variables, strict=True):
            if gradient is not None:
                variable.assign_sub(rate * tf.convert_to_tensor(gradient))
    assert_same(model, plain)
    if history:
        np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    ("name", "k", "replicas"),
    [("Bert", 4, 1), ("Albert", 2, 2), ("MobileBert", 4, 1), ("Bert", 1, 2), ("Albert", 4, 1)],
)
def test_13046_pre_training_with_texts_without_labels(name, k, replicas):
    ids = np.random.default_rng(1).integers(2, VOCABULARY, (TEXTS, LENGTH)).astype("int32")
    other = "sentence_order_label" if name == "Albert" else "next_sentence_label"
    y = {"labels": labels(VOCABULARY), other: classes() % 2}
    features = {"input_ids": ids, "attention_mask": np.ones_like(ids), **y}
    check(lambda: pretraining(name), features, k=k, replicas=replicas, history=replicas == 1)


@sampled()
@pytest.mark.parametrize("case", ["next sentence", "legacy", "labels apart"])
def test_6968_losses_with_ignored_labels(case):
    import transformers

    ids = np.random.default_rng(1).integers(2, VOCABULARY, (TEXTS, LENGTH)).astype("int32")
    features, y = {"input_ids": ids, "attention_mask": np.ones_like(ids)}, None
    if case == "next sentence":
        features["next_sentence_label"] = sentence_labels()
        check(lambda: fixed(transformers.TFBertForNextSentencePrediction(hf_config())), features)
        return
    if case == "labels apart":
        y = {"labels": labels(VOCABULARY), "next_sentence_label": sentence_labels()}
        check(lambda: pretraining("Bert"), features, y=y)
        return
    features["labels"] = labels(VOCABULARY)
    config = hf_config(tf_legacy_loss=True)
    check(lambda: fixed(transformers.TFBertForMaskedLM(config)), features, k=2)


def test_a_loss_whose_divisor_is_unknown_is_refused():
    base = library_class("TFCausalLanguageModelingLoss")

    def own(function, **config):
        cls = type("Mine", (base,), {"hf_compute_loss": function})
        return only_the_loss(cls, **config)

    def scalar(self, labels, logits):
        return tf.reshape(tf.reduce_mean(logits), (1,))

    data = LOSSES["TFCausalLanguageModelingLoss"]
    with pytest.raises(ValueError, match=r"(?s)what a loss is divided by.*Model.*weight="):
        weighted_mean(own(scalar), halves(data))

    def per_example(self, labels, logits):
        return tf.reduce_mean(logits, (1, 2))

    model = own(per_example)
    whole = float(reduced(model.hf_compute_loss(*data)))
    np.testing.assert_allclose(weighted_mean(model, halves(data)), whole, rtol=1e-5)
    # A function without a rule is refused wherever it is defined.
    albert = only_the_loss(library_class("TFAlbertPreTrainingLoss"))
    albert.config.tf_legacy_loss = True
    assert not HuggingFaceLoss(albert).known


def test_sample_weights_of_a_mean_over_labels_are_refused():
    model = only_the_loss(library_class("TFCausalLanguageModelingLoss"))
    y, scores = LOSSES["TFCausalLanguageModelingLoss"]
    own = HuggingFaceLoss(model)
    with own.recorded((None, y, np.ones(TEXTS))) as of_loss:
        model.hf_compute_loss(y, scores)
    with pytest.raises(ValueError, match="Sample weights need a loss per example"):
        of_loss()
    pretraining = only_the_loss(library_class("TFBertPreTrainingLoss"))
    with pytest.raises(ValueError, match="Sample weights need a loss per example"):
        HuggingFaceLoss(pretraining).counts(({}, {"labels": y}, np.ones(TEXTS)))


def test_pre_training_needs_both_labels():
    model = only_the_loss(library_class("TFBertPreTrainingLoss"))
    model.get_label_to_output_name_mapping = dict
    with pytest.raises(ValueError, match=r"next_sentence_label.*Received: \['labels'\]"):
        HuggingFaceLoss(model).counts({"labels": labels(9)})


def test_pre_training_over_several_batches_is_refused():
    model = pretraining("Bert")
    model.compile("sgd")
    schedule = ke.callbacks.BatchSizeSchedule({0: 2})
    features = {"input_ids": np.ones((4, LENGTH), "int32"), "labels": labels(9)[:4]}
    features["next_sentence_label"] = classes(4) % 2
    with pytest.raises(ValueError, match="a loss with one divisor"):
        fit(model, features, batch_size=2, callbacks=[schedule])


def test_an_unknown_loss_is_refused_before_training_unless_its_weight_is_given():
    import transformers

    class Mine(transformers.TFBertForMaskedLM):
        def hf_compute_loss(self, labels, logits):
            return super().hf_compute_loss(labels, logits) + tf.reduce_mean(logits)

    ids = np.random.default_rng(1).integers(2, VOCABULARY, (4, LENGTH)).astype("int32")
    features = {"input_ids": ids, "labels": labels(VOCABULARY)[:4]}
    model = fixed(Mine(hf_config()))
    before = model.get_weights()
    model.compile("sgd")
    ke.accumulate(model, 2)
    with pytest.raises(ValueError, match="what a loss is divided by"):
        fit(model, features, batch_size=4)
    assert moved(before, model) == 0
    ke.accumulate(model, 2, weight="tokens")
    fit(model, features, batch_size=4)
    assert moved(before, model) > 0
