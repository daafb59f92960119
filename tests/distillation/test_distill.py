"""ke.distill in the training step: its equation, however a batch is split, and its refusals."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import SMALL, assert_same, batches, compiled, fit, mirrored, moved, sample_weights
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, fixed, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.distillation import soft_target_divergence
from keras_efficient.distillation._layer_mapping import map_layers
from keras_efficient.distillation._teacher import KerasTeacher, features_for

BY_NAME = {specimen.name: specimen for specimen in ZOO}
libraries = pytest.mark.parametrize("library", list(SMALL))
ALPHA, T = 0.3, 2.0


def scaled(specimen, factor=1.7):
    """Another model of the kind, with other weights."""
    model = specimen.make()
    model.set_weights([factor * w for w in model.get_weights()])
    return model


def cross_entropy(library, reduction=None):
    kwargs = {} if reduction is None else {"reduction": reduction}
    return keras_of(library).losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def by_hand(model, teacher, x, y, weights, rate, *, total=False, normalised=False):
    """The loss of one batch, and one step on it, written down."""
    values = list(map(flavors.of(model).value, model.trainable_variables))
    target = teacher(x)
    with tf.GradientTape() as tape:
        logits = model(x)
        labels = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        soft = soft_target_divergence(logits, target, temperature=T)
        loss = tf.reduce_sum(weights * (ALPHA * labels + (1 - ALPHA) * soft))
        loss = loss / (sum(weights) if normalised else 1 if total else len(y))
    for value, gradient in zip(values, tape.gradient(loss, values), strict=True):
        value.assign_sub(rate * tf.convert_to_tensor(gradient))
    return float(loss)


@sampled(2)
@pytest.mark.parametrize(
    "library, reduction, replicas",
    [
        *covering(["keras"], ["sum_over_batch_size", "sum", "mean_with_sample_weight"], (2, 1)),
        *covering(["tf_keras"], ["sum_over_batch_size", "sum"], (1, 2)),
    ],
)
def test_loss_and_step_are_the_equation(library, reduction, replicas):
    """With sample weights: 10 examples on one or two replicas, in microbatches of 2."""
    specimen, rate = SMALL[library], 0.05 if reduction == "sum" else 0.5
    x, y = specimen.batch(10)
    weights, teacher, expected = sample_weights(10), scaled(specimen), specimen.make()
    loss = by_hand(
        expected,
        teacher,
        x,
        y,
        weights,
        rate,
        total=reduction == "sum",
        normalised=reduction == "mean_with_sample_weight",
    )
    with mirrored(replicas).scope():
        optimizer = keras_of(library).optimizers.SGD(rate)
        model = compiled(
            library, specimen.make(), optimizer, loss=cross_entropy(library, reduction)
        )
    ke.accumulate(ke.distill(model, teacher, alpha=ALPHA, temperature=T), microbatch_size=2)
    data = batches(x, y, weights, batch_size=10)
    history = model.fit(data, verbose=0, shuffle=False).history
    assert_same(model, expected, 1e-6)
    if reduction != "sum" or replicas == 1:
        np.testing.assert_allclose(history["loss"], [loss], rtol=1e-5)


def test_trap_33_the_distiller_of_keras_ignores_sample_weights():
    """An example of weight 0 changes what it learns, and not what ours does."""
    keras = keras_of("keras")
    specimen = SMALL["keras"]
    x, y = specimen.batch(8)
    weights, changed = np.ones(8, "float32"), x.copy()
    weights[:4], changed[:4] = 0, (x[:4] + 1) % VOCABULARY

    def upstream(x):
        student, teacher = specimen.make(), scaled(specimen)
        loss = keras.distillation.LogitsDistillation(temperature=T)
        distiller = keras.distillation.Distiller(
            teacher, student, distillation_losses=loss, student_loss_weight=0.0
        )
        distiller.compile(keras.optimizers.SGD(0.5), cross_entropy("keras"))
        distiller.fit(x, y, sample_weight=weights, batch_size=8, shuffle=False, verbose=0)
        return student

    def ours(x):
        student = compiled("keras", specimen.make())
        ke.distill(student, scaled(specimen), alpha=0.0, temperature=T)
        fit(student, x, y, weights, batch_size=8)
        return student

    assert_same(ours(x), ours(changed), 0)
    before = upstream(x).get_weights()
    assert moved(before, upstream(changed)) > 1e-5


def tagger(library):
    """A model of a label per token, whose padding is masked."""
    keras = keras_of(library)
    ids = keras.layers.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 8, mask_zero=True)(ids)
    return fixed(keras.Model(ids, keras.layers.Dense(CLASSES)(x)))


@sampled()
@pytest.mark.parametrize("library, replicas", covering(SMALL, (2, 1), strength=1))
def test_masked_tokens_do_not_count(library, replicas):
    """k microbatches of sentences of any length are one batch; the last has no token at all."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 7, (8, 1))
    lengths[-1] = 0
    real = np.arange(LENGTH) < lengths
    x = (rng.integers(1, VOCABULARY, (8, LENGTH)) * real).astype("int32")
    y = rng.integers(0, CLASSES, (8, LENGTH)).astype("int32")

    def run(count, k, noise=0.0):
        padding = (~real[:, :, None] * noise).astype("float32")
        table = tf.constant(rng.normal(size=(8, LENGTH, CLASSES)).astype("float32") * padding)
        inner = tagger(library)
        inner.set_weights([2 * w for w in inner.get_weights()])
        everything = tf.constant(x)

        def teacher(ids):
            # The noise of the examples of this microbatch, at padding alone.
            same = tf.reduce_all(ids[:, None] == everything[None], -1)
            index = tf.argmax(tf.cast(same, tf.int32), 1)
            return inner(ids) + tf.gather(table, index)

        with mirrored(count).scope():
            model = tagger(library)
            model.compile(keras_of(library).optimizers.SGD(0.5), cross_entropy(library))
        ke.accumulate(ke.distill(model, teacher, alpha=ALPHA), k)
        history = model.fit(batches(x, y, batch_size=8), verbose=0, shuffle=False).history
        return model, history["loss"]

    (one, expected), (split, found), (noisy, _) = run(1, 1), run(replicas, 4), run(1, 1, 50.0)
    assert np.isfinite(expected).all()
    assert_same(one, split, 1e-6)
    assert_same(one, noisy, 1e-7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@sampled(2)
@pytest.mark.parametrize("specimen, k", covering(ZOO, (1, 3), strength=1))
def test_the_zoo_learns_from_teachers(specimen, k):
    """Trained on what the teacher says alone, the student comes nearer to it."""
    model, teacher = specimen.make(), scaled(specimen, 3.0)
    compiled(specimen.library, model, keras_of(specimen.library).optimizers.Adam(0.01))
    before, theirs = model.get_weights(), teacher.get_weights()
    ke.accumulate(ke.distill(model, teacher, alpha=0.0, temperature=1.0), k)
    x, y = specimen.batch(12)
    flavor = flavors.of(model)

    def distance():
        ours, wanted = (np.asarray(logits(flavor.call(m, x, False))) for m in (model, teacher))
        return float(np.mean(soft_target_divergence(ours, wanted)))

    first = distance()
    fit(model, x, y, epochs=8)
    assert distance() < 0.7 * first
    assert moved(before, model) > 0
    for weight, other in zip(theirs, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
    assert len(model.get_weights()) == len(before)


def logits(outputs):
    return getattr(outputs, "logits", outputs)


@sampled()
@pytest.mark.parametrize(
    "student, teacher",
    [
        ("kerashub-bert", "hugging-face-bert"),
        ("hugging-face-bert", "kerashub-bert"),
        ("keras-functional", "tf_keras-functional"),
        ("tf_keras-subclassed", "keras-subclassed"),
    ],
)
def test_a_teacher_of_the_other_library(student, teacher):
    """The step is that for the teacher's outputs as they are, computed by itself."""
    specimen, other = BY_NAME[student], BY_NAME[teacher]
    x, y = specimen.batch(6)
    theirs = scaled(other)
    flavor = flavors.of(theirs)
    target = tf.constant(logits(flavor.call(theirs, features_for(theirs, x), False)))

    def run(teacher):
        model = compiled(specimen.library, specimen.make())
        ke.distill(model, teacher, alpha=ALPHA)
        fit(model, x, y)
        return model

    assert_same(run(theirs), run(lambda _: {"logits": target}), 1e-6)


@sampled()
@libraries
def test_several_teachers_are_averaged_as_probabilities(library):
    specimen = SMALL[library]
    x, y = specimen.batch(6)
    teachers = [scaled(specimen, factor) for factor in (0.5, 2.0, -1.0)]

    def run(teacher):
        model = compiled(library, specimen.make())
        ke.distill(model, teacher, alpha=ALPHA, temperature=T)
        fit(model, x, y)
        return model

    def mean(x):
        p = [tf.nn.softmax(teacher(x) / T) for teacher in teachers]
        return {"logits": T * tf.math.log(tf.add_n(p) / 3)}

    assert_same(run(teachers), run(mean), 1e-6)
    assert moved(run(teachers).get_weights(), run(teachers[0])) > 1e-4


@libraries
def test_numbers_of_a_regression_are_not_probabilities(library):
    """The student learns the teacher's numbers, and divergences of probabilities are refused."""
    keras = keras_of(library)
    x, _ = SMALL[library].batch(6)
    y = np.random.default_rng(0).normal(0, 1, 6).astype("float32")

    def made(factor=1.0):
        ids = keras.layers.Input((LENGTH,), dtype="int32")
        z = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(VOCABULARY, 8)(ids))
        model = fixed(keras.Model(ids, keras.layers.Dense(1)(z)))
        model.set_weights([factor * w for w in model.get_weights()])
        task = ke.tasks.get("regression")
        model.compile(keras.optimizers.SGD(0.1), task.loss(keras), jit_compile=False)
        return model

    student, teacher = made(), made(-2.0)
    ours, theirs = (np.asarray(model(x))[:, 0] for model in (student, teacher))
    expected = np.mean(ALPHA * (y - ours) ** 2 + (1 - ALPHA) * (theirs - ours) ** 2)
    ke.distill(student, teacher, alpha=ALPHA, divergence="mse")
    assert fit(student, x, y, batch_size=6)["loss"] == [pytest.approx(expected, rel=1e-5)]
    refused = made()
    ke.distill(refused, teacher)
    with pytest.raises(ValueError, match="numbers and no probabilities"):
        fit(refused, x, y, batch_size=6)


@sampled()
@libraries
def test_a_teacher_without_a_loss_does_not_know_whether_it_returns_logits(library):
    """KerasHub compiles its tasks; one without a loss was taken for one of probabilities."""
    teacher = SMALL[library].make()
    teacher.compile(optimizer="sgd")
    assert KerasTeacher(teacher).from_logits(None) is None
    compiled(library, teacher)
    assert KerasTeacher(teacher).from_logits(None) is True


@libraries
def test_outputs_may_be_probabilities_and_labels_independent(library):
    """A student with sigmoids learns each label from a teacher's, also by logits."""
    keras = keras_of(library)
    x, _ = SMALL[library].batch(6)
    y = np.random.default_rng(0).integers(0, 2, (6, CLASSES)).astype("float32")

    def made(activation, factor=1.0):
        ids = keras.layers.Input((LENGTH,), dtype="int32")
        z = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(VOCABULARY, 8)(ids))
        model = fixed(keras.Model(ids, keras.layers.Dense(CLASSES, activation=activation)(z)))
        model.set_weights([factor * w for w in model.get_weights()])
        loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
        model.compile(keras.optimizers.SGD(0.5), loss)
        return model

    def run(activation, teacher):
        model = made(activation)
        ke.distill(model, teacher, alpha=ALPHA, temperature=1.0)
        return model, fit(model, x, y, batch_size=6)["loss"]

    models, losses = zip(
        *(
            run(ours, made(theirs, 3.0))
            for ours in (None, "sigmoid")
            for theirs in (None, "sigmoid")
        ),
        strict=True,
    )
    student, teacher = (tf.sigmoid(made(None, factor)(x)) for factor in (1.0, 3.0))
    kl = teacher * tf.math.log(teacher / student)
    kl += (1 - teacher) * tf.math.log((1 - teacher) / (1 - student))
    cross = -(y * tf.math.log(student) + (1 - y) * tf.math.log(1 - student))
    expected = np.mean(ALPHA * cross + (1 - ALPHA) * kl)
    for model, loss in zip(models, losses, strict=True):
        np.testing.assert_allclose(loss, [expected], rtol=1e-4)
        assert_same(model, models[0], 1e-5)


@sampled()
@libraries
def test_data_without_labels(library):
    specimen = SMALL[library]
    x, y = specimen.batch(12)
    teacher = scaled(specimen)

    def run(data, **kwargs):
        model = specimen.make()
        model.compile(keras_of(library).optimizers.SGD(0.5), **kwargs)
        ke.accumulate(ke.distill(model, teacher, alpha=0.0, from_logits=True), 2)
        return model, model.fit(data.batch(6), verbose=0, shuffle=False).history["loss"]

    with_labels, expected = run(
        tf.data.Dataset.from_tensor_slices((x, y)), loss=cross_entropy(library)
    )
    without, found = run(tf.data.Dataset.from_tensor_slices(x))
    assert_same(with_labels, without, 1e-7)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@sampled()
@libraries
def test_with_rdrop(library):
    """Without dropout R-Drop adds nothing, and both terms see each example twice."""
    specimen = SMALL[library]
    x, y = specimen.batch(12)
    weights, teacher = sample_weights(12), scaled(specimen)

    def run(rdrop):
        model = compiled(library, specimen.make())
        ke.accumulate(ke.distill(model, teacher, alpha=ALPHA), 3)
        if rdrop:
            ke.adversarial(model, "rdrop")
        return model, fit(model, x, y, weights)["loss"]

    (one, expected), (both, found) = run(False), run(True)
    assert_same(one, both, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@sampled()
@libraries
def test_none_removes_the_teacher(library):
    specimen = SMALL[library]
    model, plain = (compiled(library, specimen.make()) for _ in range(2))
    ke.distill(ke.distill(model, scaled(specimen)), None)
    assert "train_step" not in vars(model)
    for each in (model, plain):
        fit(each, *specimen.batch(6))
    assert_same(model, plain, 0)


@sampled()
@libraries
def test_a_student_is_saved_without_its_teacher(library, tmp_path):
    specimen, sizes = SMALL[library], []
    for teacher in (None, scaled(specimen)):
        model = compiled(library, specimen.make())
        ke.distill(model, teacher)
        fit(model, *specimen.batch(6))
        model.save(tmp_path / "model.keras")
        sizes.append((tmp_path / "model.keras").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 200
    loaded = keras_of(library).models.load_model(tmp_path / "model.keras")
    assert_same(loaded, model, 0)


@pytest.mark.full
def test_language_models_are_compared_where_their_labels_count():
    """A decoder of Hugging Face shifts its labels: its last token and padding do not count."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCABULARY, (6, LENGTH)).astype("int32")
    counted = np.arange(LENGTH) < rng.integers(2, LENGTH, (6, 1))
    labels = np.where(counted, ids, -100).astype("int32")
    noise = (
        np.ones((6, LENGTH, 1))
        * ~np.concatenate([counted[:, 1:], np.zeros((6, 1), bool)], 1)[:, :, None]
    )

    def run(k, scale):
        model = transformers.TFGPT2LMHeadModel(config)
        model(ids)
        fixed(model)
        model.compile(keras_of("tf_keras").optimizers.SGD(0.1))
        target = rng.normal(size=(6, LENGTH, VOCABULARY)) * scale * noise
        target = tf.constant(
            target + np.random.default_rng(5).normal(size=target.shape), tf.float32
        )

        def teacher(x):
            same = tf.reduce_all(x["input_ids"][:, None] == ids[None], -1)
            return {"logits": tf.gather(target, tf.argmax(tf.cast(same, tf.int32), 1))}

        ke.accumulate(ke.distill(model, teacher, alpha=0.5), k)
        data = tf.data.Dataset.from_tensor_slices(({"input_ids": ids, "labels": labels},))
        model.fit(data.batch(6), verbose=0, shuffle=False)
        return model

    one = run(1, 0.0)
    assert_same(one, run(3, 0.0), 1e-6)
    assert_same(one, run(1, 30.0), 1e-7)


@pytest.mark.parametrize(
    "layers, student, teacher, pairs",
    [
        ("uniform", 3, 6, [(0, 1), (1, 3), (2, 5)]),
        ("uniform", 2, 2, [(0, 0), (1, 1)]),
        ("uniform", 2, 5, [(0, 2), (1, 4)]),
        ("last", 3, 6, [(2, 5)]),
        ({0: 2, -1: -1}, 2, 4, [(0, 2), (1, 3)]),
    ],
)
def test_which_blocks_learn_from_which(layers, student, teacher, pairs):
    assert map_layers(layers, student, teacher) == pairs


def other_size(**sizes):
    """A BERT classifier of KerasHub with other sizes than the zoo's."""
    import keras_hub

    settings = {
        "vocabulary_size": VOCABULARY, "num_layers": 1, "num_heads": 2, "hidden_dim": 8,
        "intermediate_dim": 16, "max_sequence_length": 16, **sizes,
    }  # fmt: skip
    backbone = keras_hub.models.BertBackbone(**settings)
    return keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES)


REFUSED = {
    "alpha": ({"alpha": 1.5}, "`alpha`, the weight of the loss of the labels, must be"),
    "temperature": ({"temperature": 0}, "`temperature` must be a number > 0"),
    "divergence": ({"divergence": "l2"}, "`divergence` must be one of"),
    "nothing": ({"divergence": None}, "A teacher must teach something.*divergence=None"),
    "labels alone": ({"alpha": 1}, "A teacher must teach something.*alpha=1.*alpha < 1"),
    "layers": ({"layers": "first"}, "`layers` must be 'uniform', 'last', or a dict"),
    "index": ({"hidden": 1.0, "layers": {0: 7}}, "block 7 of the teacher, which has 1"),
    "hidden": ({"hidden": "mse"}, "`hidden` must be a number, ke.distillation.HiddenStates"),
    "negative": ({"attention": -1.0}, "`attention` must be a weight >= 0"),
    "heads": (
        {"attention": ke.distillation.Relations(heads=3)},
        "3 heads for widths of 8 and 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_are_refused(name):
    kwargs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ke.distill(other_size(), other_size(), **kwargs)


def test_models_that_do_not_fit_are_refused():
    student, keras = other_size(), keras_of("keras")
    with pytest.raises(ValueError, match="another model than the student"):
        ke.distill(student, student)
    with pytest.raises(ValueError, match=r"vocabularies of 50 tokens .* and 60"):
        ke.distill(student, other_size(vocabulary_size=60))
    with pytest.raises(ValueError, match=r"widths of 8 \(student\) and 16.*Relations"):
        hidden = ke.distillation.HiddenStates(projection=False)
        ke.distill(student, other_size(hidden_dim=16), hidden=hidden)
    with pytest.raises(ValueError, match=r"2 heads \(student\) and 4.*Relations"):
        ke.distill(student, other_size(num_heads=4), attention=1.0)
    with pytest.raises(ValueError, match="2 blocks in the student and 1"):
        ke.distill(other_size(num_layers=2), student, hidden=1.0)
    with pytest.raises(ValueError, match="needs a built model"):
        ke.distill(student, keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(TypeError, match="A teacher must be a Keras model"):
        ke.distill(student, 3)
    with pytest.raises(ValueError, match="at least one teacher"):
        ke.distill(student, [])
    with pytest.raises(ValueError, match=r"those of one Keras model\. Received as teacher"):
        ke.distill(student, lambda x: x, hidden=1.0)
    plain = SMALL["keras"].make()
    with pytest.raises(ValueError, match="whose Transformer blocks are known"):
        ke.distill(plain, scaled(SMALL["keras"]), hidden=1.0)
    assert "train_step" not in vars(student)


@sampled()
@libraries
def test_other_labels_are_refused_before_the_first_step(library):
    specimen = SMALL[library]
    model = compiled(library, specimen.make())
    before = model.get_weights()
    ke.distill(model, lambda x: tf.zeros([tf.shape(x)[0], CLASSES + 1]))
    with pytest.raises(ValueError, match="the same outputs: labels, or the vocabulary"):
        fit(model, *specimen.batch(6))
    assert moved(before, model) == 0
