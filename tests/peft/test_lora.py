"""LoRA on the zoo: what trains, what stays, and that every way of computing it is the same."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import compiled, fit
from zoo import FEW, ZOO, full_except, keras_of

import keras_efficient as ke
from keras_efficient.architecture._heads import head_weights
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transforms
from keras_efficient.peft._lora import LoRADelta
from keras_efficient.peft._low_rank import FactoredProduct, compute_factored

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def outputs(model, x):
    found = model(x)
    return np.asarray(getattr(found, "logits", found))


def values(model):
    """`{path: value}` of the untransformed weights."""
    weights = all_weights(model)
    return {weight.path: weight.value.numpy() for weight in weights}


def shake(model, seed=0):
    """Make every delta nonzero."""
    rng = np.random.default_rng(seed)
    for delta in transforms(model, LoRADelta):
        delta.b.assign(rng.normal(0, 0.3, delta.b.shape).astype("float32"))


def compute_with_sums(model):
    """Make layers compute with the sums of weights and deltas."""
    for view in parametrized_layers(model):
        for part in [part for part in view.call_wrappers if isinstance(part, FactoredProduct)]:
            view.detach(part)


class Trained:
    """A specimen with LoRA after three steps of two microbatches, and what it was before."""

    def __init__(self, specimen):
        self.specimen, self.model = specimen, specimen.make()
        self.x, y = specimen.batch(12)
        self.classes = [type(layer) for layer in self.model._flatten_layers()]
        self.first = outputs(self.model, self.x)
        self.report = ke.lora(self.model, rank=2)
        self.attached = outputs(self.model, self.x)
        compiled(specimen.library, self.model)
        ke.accumulate(self.model, microbatches=2)
        self.before = values(self.model)
        self.factors = [d.a.numpy() for d in transforms(self.model, LoRADelta)]
        fit(self.model, self.x, y, batch_size=4)


@pytest.fixture(
    scope="module", params=full_except("keras-functional", "hugging-face-bert", among=FEW)
)
def trained(request):
    return Trained(request.param)


@sampled()
def test_at_first_it_is_the_base_model(trained):
    np.testing.assert_array_equal(trained.first, trained.attached)


@sampled()
def test_only_the_factors_and_the_head_train(trained):
    head = {weight.path for weight in head_weights(trained.model)}
    after = values(trained.model)
    assert head and set(after) == set(trained.before)
    for path, value in after.items():
        same = np.array_equal(value, trained.before[path])
        assert same is (path not in head), path
    deltas = transforms(trained.model, LoRADelta)
    assert all(np.abs(delta.b.numpy()).max() > 0 for delta in deltas)
    # A changes from the second step on, that of attention keys by less than float rounding.
    pairs = zip(trained.factors, deltas, strict=True)
    assert any(np.abs(a - delta.a.numpy()).max() > 0 for a, delta in pairs)


def test_the_report_counts_what_trains(trained):
    report = trained.report
    model = trained.model
    sizes = [np.prod(v.shape) for v in model.trainable_variables]
    assert report.trainable == sum(sizes)
    assert report.parameters == sum(value.size for value in trained.before.values())
    assert f"{report.trainable:,} parameters train" in str(report)
    assert str(report).startswith("lora: ")


@sampled()
def test_by_factors_is_by_deltas(trained):
    """Outputs and gradients."""
    specimen = trained.specimen
    model, (x, _) = specimen.make(), specimen.batch(3)
    ke.lora(model, rank=2)
    shake(model)
    flavor = ke.flavor.of(model)
    assert any(
        isinstance(part, FactoredProduct)
        for view in parametrized_layers(model)
        for part in view.call_wrappers
    )
    found = []
    for _ in range(2):
        variables = [flavor.value(v) for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            y = model(x)
            y = tf.cast(getattr(y, "logits", y), tf.float32)
            loss = tf.reduce_sum(y * tf.reshape(tf.range(tf.size(y), dtype=tf.float32), y.shape))
        found.append((y, tape.gradient(loss, variables)))
        compute_with_sums(model)
    (y, gradients), (other, others) = found
    np.testing.assert_allclose(y, other, rtol=0, atol=1e-6)
    for a, b in zip(gradients, others, strict=True):
        a, b = (tf.convert_to_tensor(g).numpy() for g in (a, b))
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@sampled()
def test_merged_is_unmerged_and_the_old_classes_are_back(trained):
    specimen = trained.specimen
    model, (x, _) = specimen.make(), specimen.batch(3)
    classes = [type(layer) for layer in model._flatten_layers()]
    names = [weight.path for weight in all_weights(model)]
    ke.lora(model, rank=2)
    shake(model)
    before = outputs(model, x)
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, x), before, rtol=0, atol=1e-6)
    assert [type(layer) for layer in model._flatten_layers()] == classes
    assert [weight.path for weight in all_weights(model)] == names
    assert len(model.trainable_variables) == len(specimen.make().trainable_variables)


@sampled()
def test_weights_files_bring_back_all_and_a_plain_model_reads_the_sum(trained, tmp_path):
    path = str(tmp_path / "w.weights.h5")
    trained.model.save_weights(path)
    other = trained.specimen.make()
    ke.lora(other, rank=2, seed=5)
    other.load_weights(path)
    assert np.array_equal(outputs(other, trained.x), outputs(trained.model, trained.x))
    for a, b in zip(trained.model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


EQUATIONS = {
    "abc,cd->abd": ((3, 4, 6), (None, 5), (6, 5)),
    "abc,cde->abde": ((3, 4, 6), (None, 2, 5), (6, 2, 5)),
    "abcd,cde->abe": ((3, 4, 2, 5), (None, 6), (2, 5, 6)),
    "...x,xy->...y": ((3, 4, 6), (5,), (6, 5)),
    "ab,bc->ac": ((3, 6), (5,), (6, 5)),
    "abc,dc->abd": ((3, 4, 6), (None, 5), (5, 6)),
    "abc,bcd->ad": ((3, 4, 6), (5,), (4, 6, 5)),
}


@pytest.mark.parametrize(
    "equation, library, by_last_axis", covering(EQUATIONS, ["keras", "tf_keras"], [False, True])
)
def test_every_product_of_einsum_dense(equation, library, by_last_axis):
    shape, output, kernel = EQUATIONS[equation]
    layers, rng = keras_of(library).layers, np.random.default_rng(0)
    inputs = layers.Input(shape[1:])
    layer = layers.EinsumDense(equation, output, activation="tanh", bias_axes=equation[-1])
    model = keras_of(library).Model(inputs, layer(inputs))
    x = rng.normal(size=shape).astype("float32")
    (weight,) = ke.parametrize.select(model, caller="a test")
    assert weight.shape == kernel
    delta = LoRADelta(2, 3.0, 0, "lora", by_last_axis)
    ke.parametrize.attach(model, [(weight, delta)])
    compute_factored(model, [weight])
    shake(model)
    # The definition of a delta.
    order = (*delta.matrix_form.inputs, *delta.matrix_form.outputs)
    added = np.reshape(1.5 * delta.a.numpy() @ delta.b.numpy(), [kernel[i] for i in order])
    changed = weight.value.numpy() + np.transpose(added, np.argsort(order))
    bias = rng.normal(size=layer.bias.shape).astype("float32")
    layer.bias.assign(bias)
    wanted = np.tanh(np.einsum(equation, x, changed) + bias)
    np.testing.assert_allclose(np.asarray(model(x)), wanted, rtol=0, atol=2e-6)


@libraries
def test_convolutions_and_layers_of_ones_own_compute_with_the_delta(library):
    keras = keras_of(library)

    class Squared(keras.layers.Dense):
        def call(self, inputs):
            return super().call(inputs) ** 2

    class Own(keras.layers.Dense):
        """Never calls its `activation`."""

        def call(self, inputs):
            return keras_of("tf_keras").backend.dot(inputs, self.kernel)

    layers = keras.layers
    for layer in (layers.Conv2D(4, 2), Squared(4), Own(4)):
        inputs = layers.Input((5, 5, 3))
        model = keras.Model(inputs, layer(inputs))
        ke.lora(model, rank=2, train=False)
        x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
        before = np.asarray(model(x))
        shake(model)
        changed = np.asarray(model(x))
        assert np.abs(changed - before).max() > 1e-3
        ke.merge(model)
        np.testing.assert_allclose(np.asarray(model(x)), changed, rtol=0, atol=1e-5)


def test_hugging_faces_conv1d():
    import transformers

    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.TFGPT2LMHeadModel(config)
    x = np.arange(6)[None]
    before = model(x).logits.numpy()
    report = ke.lora(model, rank=2, layers="c_attn|c_proj", train=False)
    assert len(report.weights) == 3
    assert (
        sum(
            isinstance(p, FactoredProduct)
            for view in parametrized_layers(model)
            for p in view.call_wrappers
        )
        == 3
    )
    np.testing.assert_array_equal(model(x).logits.numpy(), before)
    shake(model)
    changed = model(x).logits.numpy()
    compute_with_sums(model)
    np.testing.assert_allclose(model(x).logits.numpy(), changed, rtol=0, atol=1e-5)
    assert np.abs(changed - before).max() > 1e-3


# --- what is refused -------------------------------------------------------------------------


def small(library="keras"):
    return next(s for s in ZOO if s.name == f"{library}-functional").make()


def test_bad_arguments():
    model = small()
    for rank in (0, 9, 2.0, True, None):
        with pytest.raises(ValueError, match=r"`rank` must be an int from 1 .* here 8\. Received"):
            ke.lora(model, rank)
    for alpha in (0, -1.0, "8", float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="`alpha` must be a number above 0"):
            ke.lora(model, 2, alpha)
    for name in ("", "a/b", "a.b", "mask", "adalora", 3):
        with pytest.raises(ValueError, match="`name` must be a word"):
            ke.lora(model, 2, name=name)
    assert not parametrized_layers(model)


def test_a_second_one_of_the_same_name():
    model = small()
    ke.lora(model, 2)
    with pytest.raises(ValueError, match="one transform of each kind"):
        ke.lora(model, 2)


def test_what_trains_besides():
    model = small()
    with pytest.raises(ValueError, match="`train` must fit some weights"):
        ke.lora(model, 2, train="nothing")
    with pytest.raises(TypeError, match="`train` must be None"):
        ke.lora(model, 2, train=True)
    report = ke.lora(model, 2, train="layer_normalization.*gamma")
    assert len(model.trainable_variables) == 2 * len(report.weights) + 1
    bare = small()
    report = ke.lora(bare, 2, train=False)
    assert len(bare.trainable_variables) == 2 * len(report.weights)


def test_keras_own_lora_would_be_lost():
    model = small()
    dense = next(layer for layer in model.layers if layer.name.startswith("dense"))
    dense.enable_lora(2)
    with pytest.raises(ValueError, match="needs layers without Keras' own LoRA"):
        ke.lora(model, 2)


def test_trap_32_keras_own_leaves_others_trainable_and_ours_does_not():
    keras = keras_of("keras")
    layers = keras.layers
    parts = [layers.Input((4,)), layers.Dense(4), layers.LayerNormalization(), layers.Dense(2)]
    theirs = keras.Sequential(parts)
    ours = keras.models.clone_model(theirs)
    theirs.layers[0].enable_lora(2)
    names = [v.name for v in theirs.trainable_variables]
    # Upstream's: the bias of that layer and the norm still train.
    assert {"bias", "gamma", "beta"} <= set(names)
    ke.lora(ours, 2)
    left = [v.path.split("/")[-1] for v in ours.layers[0].trainable_variables]
    assert len(left) == 2 and "bias" not in left
    assert ours.layers[1].trainable_variables == []
