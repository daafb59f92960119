"""The weights of a model, their matrices, and how they are selected."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from zoo import ZOO, hf_config, keras_of

import keras_efficient as ke
from keras_efficient.architecture._heads import head_layers, head_weights, without_head
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._select import select

models = pytest.mark.parametrize("specimen", ZOO, ids=str)


@functools.cache
def model_of(specimen):
    """A model of the zoo, once for all tests here: none changes it."""
    return specimen.make()


libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


@sampled(2)
@models
def test_every_weight_once_under_a_path_of_its_own(specimen):
    model = model_of(specimen)
    weights = all_weights(model)
    assert len({w.path for w in weights}) == len(weights)
    variables = {id(w.value) for w in weights}
    flavor = weights[0].flavor
    trainable = {id(flavor.value(v)) for v in model.trainable_variables}
    assert trainable <= variables
    assert sum(w.size for w in weights if id(w.value) in trainable) == sum(
        int(np.prod(v.shape)) for v in model.trainable_variables
    )


@models
def test_a_matrix_and_back(specimen):
    for weight in select(model_of(specimen), kinds=("kernel", "embedding"), caller="the test"):
        value = weight.value.numpy()
        matrix = weight.matrix(tf.constant(value))
        assert tuple(matrix.shape) == weight.matrix_shape
        np.testing.assert_array_equal(weight.unmatrix(matrix), value)


@libraries
def test_a_column_of_a_convolutions_matrix_makes_one_output_channel(library):
    """Keras 3's DepthwiseConv2D was taken for a plain kernel, tf_keras' for none."""
    layers = keras_of(library).layers
    cases = [
        (layers.Conv2D(4, 2), (6, 6, 3), {"kernel": (12, 4)}),
        (layers.Conv2D(4, 2, groups=2), (6, 6, 4), {"kernel": (8, 4)}),
        (layers.DepthwiseConv2D(2, depth_multiplier=2), (6, 6, 3), {"kernel": (4, 6)}),
        (layers.DepthwiseConv1D(2), (6, 3), {"kernel": (2, 3)}),
        (layers.Conv2DTranspose(4, 2), (6, 6, 3), {"kernel": (12, 4)}),
        (layers.SeparableConv2D(4, 2), (6, 6, 3), {"depthwise": (4, 3), "pointwise": (3, 4)}),
    ]
    for layer, shape, matrices in cases:
        model = keras_of(library).Sequential([layers.Input(shape), layer])
        weights = select(model, caller="the test")
        assert [w.matrix_shape for w in weights] == list(matrices.values()), layer.name
        x, weight = tf.random.stateless_normal((1, *shape), (0, 1)), weights[-1]
        before = np.asarray(model(x))
        mask = np.ones(weight.matrix_shape, "float32")
        mask[:, 1] = 0
        weight.value.assign(weight.value * weight.unmatrix(tf.constant(mask)))
        after = np.asarray(model(x))
        assert not after[..., 1].any()
        np.testing.assert_array_equal(np.delete(after, 1, -1), np.delete(before, 1, -1))


@libraries
@pytest.mark.parametrize(
    "equation, shape, x, inputs",
    [
        ("abc,cde->abde", (6, 2, 3), (4, 5, 6), (0,)),
        ("abcd,cde->abe", (2, 3, 6), (4, 5, 2, 3), (0, 1)),
        ("ab,cb->ac", (7, 6), (4, 6), (1,)),
        ("...x,xy->...y", (6, 7), (4, 5, 6), (0,)),
    ],
)
def test_the_matrix_of_an_einsum_layer_multiplies_its_inputs(library, equation, shape, x, inputs):
    layers = keras_of(library).layers
    output = {"abc,cde->abde": (None, 2, 3), "abcd,cde->abe": (None, 6), "ab,cb->ac": 7}
    layer = layers.EinsumDense(equation, output.get(equation, 7))
    rng = np.random.default_rng(0)
    array = rng.normal(size=x).astype("float32")
    model = keras_of(library).Sequential([layers.Input(x[1:]), layer])
    weight = select(model, caller="the test")[0]
    assert weight.inputs == inputs
    assert weight.shape == shape
    matrix = weight.matrix(tf.convert_to_tensor(weight.value)).numpy()
    flat = array.reshape(-1, matrix.shape[0])
    np.testing.assert_allclose(
        np.asarray(model(array)).reshape(len(flat), -1), flat @ matrix, atol=1e-5
    )


@models
def test_kernels_are_those_of_dense_and_attention_layers(specimen):
    weights = select(model_of(specimen), caller="the test")
    expected = {"keras-sequential": 1, "keras-subclassed": 5, "tf_keras-subclassed": 5}
    functional = {"keras-functional": 6, "tf_keras-functional": 6}
    # A block: query, key, value, output, two of the feed-forward; pooler and head.
    number = (expected | functional).get(specimen.name, 8)
    assert len(weights) == number
    assert all(len(w.shape) > 1 for w in weights)


@models
def test_the_head_is_the_last_layer(specimen):
    model = model_of(specimen)
    last = head_weights(model)
    assert [w.shape[-1] for w in last] == [3, 3]
    kernels = select(model, caller="the test")
    rest = without_head(model, kernels)
    if len(kernels) > 1:
        assert len(rest) == len(kernels) - 1
        assert last[0].path not in [w.path for w in rest]


def _two_heads(library, kind):
    """A model with the heads `first` and `cls`, in an order in which the last layer is neither."""
    keras = keras_of(library)
    layers = keras.layers
    first, cls, body = layers.Dense(3, name="first"), layers.Dense(2, name="cls"), layers.Dense(4)
    if kind == "functional":
        x = layers.Input((4,))
        hidden = body(x)
        return keras.Model(x, {"a": first(hidden), "b": layers.Softmax()(cls(hidden))})
    if kind == "nested":
        x = layers.Input((4,))
        hidden = body(x)
        inner = keras.Model(x, [first(hidden), cls(hidden)])
        return keras.Model(x, inner(x))
    if kind == "one of several parts":
        x = layers.Input((4,))
        hidden = body(x)
        # The second head computes with the outputs of the first one.
        one = first(hidden)
        return keras.Model(x, [one, cls(layers.Concatenate()([hidden, one]))])

    class TwoHeads(keras.Model):
        def __init__(self):
            super().__init__()
            self.heads, self.body = [first, cls], body

        def call(self, inputs):
            hidden = self.body(inputs["x"])
            return {head.name: tf.nn.softmax(head(hidden)) for head in self.heads}

    model = TwoHeads()
    model({"x": np.ones((1, 4), "float32")})
    return model


@sampled(2)
@libraries
@pytest.mark.parametrize("kind", ["functional", "nested", "one of several parts", "subclassed"])
def test_the_last_layer_of_every_output_is_a_head(library, kind):
    """`cls/kernel` was pruned, and frozen under LoRA with its bias."""
    model = _two_heads(library, kind)
    assert {layer.name for layer in head_layers(model)} == {"first", "cls"}
    assert len(select(model, caller="the test", head=False)) == 1
    report = ke.lora(model, rank=1)
    assert len(report.weights) == 1
    assert report.trainable == 2 * 4 + sum(w.size for w in head_weights(model))
    # They are the same with transforms.
    assert len(head_weights(model)) == 4


@sampled()
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("TFBertForPreTraining", ["dense", "seq_relationship"]),
        ("TFBertForTokenClassification", ["classifier"]),
        ("TFBertModel", ["dense"]),
    ],
)
def test_heads_of_hugging_face(name, heads):
    import transformers

    model = getattr(transformers, name)(hf_config(output_hidden_states=True))
    model(model.dummy_inputs)
    assert sorted(layer.name for layer in head_layers(model)) == heads
    assert all("encoder" not in w.path for w in head_weights(model))


def test_heads_of_a_model_with_a_cache_of_keys_are_not_in_its_blocks():
    import transformers

    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2, num_labels=3, pad_token_id=0
    )
    model = transformers.TFGPT2ForSequenceClassification(config)
    model(model.dummy_inputs)
    assert [layer.name for layer in head_layers(model)] == ["score"]


@libraries
def test_the_head_of_a_model_that_cannot_be_traced_is_its_last_layer(library):
    keras = keras_of(library)

    class Eager(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = keras.layers.Dense(4), keras.layers.Dense(2)

        def call(self, x):
            assert tf.executing_eagerly()
            return self.head(self.body(x))

    model = Eager()
    model(tf.ones((1, 4)))
    assert head_layers(model) == [model.head]


@models
def test_embeddings_are_tables_of_rows(specimen):
    tables = select(model_of(specimen), kinds=("embedding",), caller="the test")
    words = next(w for w in tables if 50 in w.shape)
    assert words.matrix_shape == (8, 50)


@libraries
def test_ways_to_choose(library):
    specimen = next(s for s in ZOO if s.name == f"{library}-functional")
    model, layers = model_of(specimen), keras_of(library).layers
    paths = lambda chosen: [w.path for w in select(model, chosen, caller="the test")]  # noqa: E731
    everything = paths(None)
    attention = [p for p in everything if "attention" in p]
    assert len(attention) == 4
    assert paths("attention") == attention
    assert paths(layers.MultiHeadAttention) == attention
    assert paths((layers.MultiHeadAttention, layers.Embedding)) == attention
    assert paths(lambda layer: isinstance(layer, layers.MultiHeadAttention)) == attention
    chosen = [layer for layer in model.layers if isinstance(layer, layers.MultiHeadAttention)]
    assert paths(chosen) == attention
    assert paths(layers.Dense) == [p for p in everything if p not in attention]


@libraries
def test_what_cannot_be_chosen(library):
    specimen = next(s for s in ZOO if s.name == f"{library}-functional")
    model, keras = model_of(specimen), keras_of(library)
    with pytest.raises(ValueError, match=r"ke.prune needs at least one weight.*fits none in"):
        select(model, "no such layer", caller="ke.prune")
    with pytest.raises(ValueError, match="which is not inside"):
        select(model, [keras.layers.Dense(3)], caller="ke.prune")
    with pytest.raises(TypeError, match="Put a single layer in a list"):
        select(model, model.layers[-1], caller="ke.prune")
    with pytest.raises(ValueError, match=r"ke.prune needs a built model"):
        select(keras.Sequential([keras.layers.Dense(3)]), caller="ke.prune")
    with pytest.raises(TypeError, match="Expected a Keras object"):
        select(object(), caller="ke.prune")
