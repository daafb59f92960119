"""Adapter files: small, written atomically, and loaded only into a base model that they fit."""

import json
import os

import numpy as np
import pytest
from covering import sampled
from fit_helpers import compiled, fit
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from zoo import FEW, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._parametrized_layer import transforms

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def specimen_of(library):
    return next(s for s in ZOO if s.name == f"{library}-functional")


def outputs(model, x):
    found = model(x)
    return np.asarray(getattr(found, "logits", found))


def shake(model, head=False):
    """Change everything that trains."""
    rng, flavor = np.random.default_rng(0), ke.flavor.of(model)
    for variable in model.trainable_variables:
        value = flavor.value(variable)
        value.assign(value + rng.normal(0, 0.2, value.shape).astype("float32"))


def frozen(model):
    """The number of trainable parameters, and the untransformed weights."""
    weights = all_weights(model)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return count, [weight.value.numpy() for weight in weights]


def assert_untouched(model, before):
    assert frozen(model)[0] == before[0]
    assert not transforms(model)
    for a, b in zip(before[1], frozen(model)[1], strict=True):
        np.testing.assert_array_equal(a, b)


METHODS = {
    "lora": lambda model: ke.lora(model, 2, 3.0),
    "named": lambda model: ke.lora(model, 2, name="french"),
    "two": lambda model: (ke.lora(model, 2, name="a"), ke.lora(model, 3, name="b")),
    "adalora": lambda model: ke.adalora(model, 2, begin_step=3, end_step=7, orthogonality=0.1),
    "embeddings too": lambda model: ke.lora(model, 2, layers="dense", train="norm"),
}


@sampled()
@pytest.mark.parametrize("specimen", FEW, ids=repr)
def test_onto_a_fresh_base_it_computes_and_trains_the_same(specimen, tmp_path):
    model, (x, _) = specimen.make(), specimen.batch(3)
    ke.lora(model, 2)
    shake(model)
    path = tmp_path / "new" / "a.safetensors"
    saved = ke.save_adapters(model, path)
    assert saved.parameters == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert saved.bytes == path.stat().st_size
    other = specimen.make()
    report = ke.load_adapters(other, str(path))
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))
    assert frozen(other)[0] == frozen(model)[0] == report.trainable
    # Again, onto one that has it.
    shake(other)
    assert np.abs(outputs(other, x) - outputs(model, x)).max() > 0
    ke.load_adapters(other, path)
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))


@sampled(2)
@libraries
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_delta(library, name, tmp_path):
    specimen = specimen_of(library)
    model, (x, _) = specimen.make(), specimen.batch(3)
    METHODS[name](model)
    shake(model)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    other = specimen.make()
    ke.load_adapters(other, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))
    assert frozen(other)[0] == frozen(model)[0]
    described = [[t.describe() for t in transforms(m)] for m in (model, other)]
    assert described[0] == described[1]
    settings = [[t.settings() for t in transforms(m)] for m in (model, other)]
    assert settings[0] == settings[1]


@pytest.mark.full
@sampled()
@libraries
def test_adalora_goes_on_within_its_budget(library, tmp_path):
    specimen = specimen_of(library)
    model, (x, y) = specimen.make(), specimen.batch(12)
    ke.adalora(model, 2, begin_step=0, end_step=4)
    compiled(library, model)
    fit(model, x, y, batch_size=4)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    other = specimen.make()
    ke.load_adapters(other, tmp_path / "a.safetensors")
    fit(compiled(library, other), x, y, batch_size=4)
    allocator = transforms(other)[0].updater
    assert int(allocator.updates.numpy()) == 6
    assert sum(int(np.count_nonzero(t.lambda_.numpy())) for t in transforms(other)) == 10


@sampled()
@libraries
def test_other_ways_of_tuning_are_applied_first(library, tmp_path):
    specimen = specimen_of(library)
    model, (x, _) = specimen.make(), specimen.batch(3)
    ke.adapters(model, 2)
    ke.lora(model, 2)
    shake(model)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    other = specimen.make()
    before = frozen(other)
    with pytest.raises(ValueError, match=r"must be attached before.* Apply ke\.adapters with"):
        ke.load_adapters(other, tmp_path / "a.safetensors")
    assert_untouched(other, before)
    ke.adapters(other, 2)
    ke.load_adapters(other, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))


@sampled()
@libraries
def test_biases_that_train_are_in_it(library, tmp_path):
    specimen = specimen_of(library)
    model, (x, _) = specimen.make(), specimen.batch(3)
    ke.bitfit(model)
    shake(model)
    saved = ke.save_adapters(model, tmp_path / "a.safetensors")
    assert saved.parameters == frozen(model)[0]
    other = specimen.make()
    ke.load_adapters(other, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))


@sampled()
@libraries
def test_averages_of_normalisation_are_in_it(library, tmp_path):
    keras = keras_of(library)
    layers = keras.layers

    def make():
        keras.utils.set_random_seed(0)
        parts = [layers.Input((4,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(2)]
        return keras.Sequential(parts)

    model, x = make(), np.random.default_rng(0).normal(2, 3, (8, 4)).astype("float32")
    ke.lora(model, 2)
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], verbose=0)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    other = make()
    ke.load_adapters(other, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(other(x)))


@sampled()
@libraries
def test_one_of_two_under_another_name_and_without_the_head(library, tmp_path):
    specimen = specimen_of(library)
    model, (x, _) = specimen.make(), specimen.batch(3)
    ke.lora(model, 2, name="french", train=False)
    ke.lora(model, 2, name="german", train=False)
    shake(model)
    for name in ("french", "german"):
        saved = ke.save_adapters(model, tmp_path / f"{name}.safetensors", name=name, head=False)
        assert saved.adapters == (name,)
    other = specimen.make()
    ke.load_adapters(other, tmp_path / "french.safetensors", name="first")
    ke.load_adapters(other, tmp_path / "german.safetensors")
    for theirs, ours in (("french", "first"), ("german", "german")):
        ke.switch_adapters(model, theirs)
        ke.switch_adapters(other, ours)
        np.testing.assert_array_equal(outputs(other, x), outputs(model, x))
    # The head was in no file: it is the base's, and trains.
    assert len(other.trainable_variables) == len(transforms(other)) + 2


def test_the_file_is_small(tmp_path):
    """Against what trains, and against the model."""
    keras = keras_of("keras")
    parts = [keras.layers.Input((256,)), keras.layers.Dense(256), keras.layers.Dense(256)]
    model = keras.Sequential([*parts, keras.layers.Dense(2)])
    ke.lora(model, 8)
    saved = ke.save_adapters(model, tmp_path / "a.safetensors")
    trains = 4 * frozen(model)[0]
    assert trains < saved.bytes < 1.2 * trains
    assert saved.bytes < 4 * model.count_params() / 5
    assert str(saved).endswith("0.04 MB")


def test_what_a_process_has_made_before_changes_no_name(tmp_path):
    first = specimen_of("keras").make()
    specimen_of("keras").make()
    second = specimen_of("keras").make()
    assert [layer.name for layer in first.layers] != [layer.name for layer in second.layers]
    ke.lora(first, 2)
    ke.save_adapters(first, tmp_path / "a.safetensors")
    keys = load_file(tmp_path / "a.safetensors").keys()
    assert {"multi_head_attention/query/kernel.lora.a", "dense_0/kernel.lora.b"} <= keys
    ke.load_adapters(second, tmp_path / "a.safetensors")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    model = specimen_of("keras").make()
    ke.lora(model, 2)
    path = tmp_path / "a.safetensors"
    ke.save_adapters(model, path)
    before = path.read_bytes()

    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        ke.save_adapters(model, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


# --- what is refused -------------------------------------------------------------------------


def test_nothing_to_write(tmp_path):
    model = specimen_of("keras").make()
    with pytest.raises(ValueError, match="of which nothing was tuned"):
        ke.save_adapters(model, tmp_path / "a.safetensors")
    ke.lora(model, 2)
    with pytest.raises(ValueError, match="End its name in"):
        ke.save_adapters(model, tmp_path / "a.h5")
    with pytest.raises(ValueError, match="Received: 'french'; there is lora"):
        ke.save_adapters(model, tmp_path / "a.safetensors", name="french")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    model = specimen_of("keras").make()
    ke.lora(model, 2)
    path = tmp_path_factory.mktemp("good") / "a.safetensors"
    ke.save_adapters(model, path)
    return path


def edited(good, path, change):
    """The file with other tensors or metadata."""
    with safe_open(good, framework="numpy") as file:
        facts = json.loads(file.metadata()["keras_efficient"])
    tensors = load_file(good)
    change(facts, tensors)
    save_file(tensors, path, {"keras_efficient": json.dumps(facts)})
    return path


KEY = "dense_0/kernel.lora.a"


def renamed(facts, tensors):
    facts["adapters"][0]["name"] = "../x"


def setting(name, value):
    return lambda facts, tensors: facts["adapters"][0]["settings"].update({name: value})


def twice(facts, tensors):
    facts["adapters"] *= 2


def under_two_settings(facts, tensors):
    """The same name, with other settings and on one weight only."""
    first = facts["adapters"][0]
    settings = first["settings"] | {"alpha": 7.0}
    facts["adapters"].append({**first, "settings": settings, "weights": first["weights"][:1]})


def filled(value, dtype=None):
    return lambda facts, tensors: tensors.update(
        {KEY: np.full(tensors[KEY].shape, value, dtype or tensors[KEY].dtype)}
    )


EDITS = {
    "one LoRA twice": (twice, "names the LoRA 'lora' twice"),
    "one LoRA twice, otherwise": (under_two_settings, "names the LoRA 'lora' twice"),
    "a weight twice": (lambda f, t: f.update(weights=f["weights"] * 2), "names 'dense.*' twice"),
    "I64": (filled(3, "int64"), r"'dense_0/kernel.lora.a' of I64 \[8, 2\], not of .* float32"),
    "U8": (filled(3, "uint8"), r"of U8 \[8, 2\], not of \[8, 2\] and float32"),
    "I8": (filled(3, "int8"), r"of I8 \[8, 2\], not of \[8, 2\] and float32"),
    "NaN": (filled(np.nan), "'dense_0/kernel.lora.a' with values that are NaN"),
    "infinity": (filled(-np.inf), "values that are NaN or infinite as float32"),
    "overflow": (filled(1e300, "float64"), "values that are NaN or infinite as float32"),
    "a head of NaN": (
        lambda f, t: t.update({f["weights"][0]: t[f["weights"][0]] * np.nan}),
        "with values that are NaN",
    ),
    "version": (lambda f, t: f.update(version=2), "version 2, not 1"),
    "no version": (lambda f, t: f.pop("version"), "without the metadata"),
    "form": (lambda f, t: f.update(others=[1]), "metadata of another form"),
    "list": (lambda f, t: f.update(adapters={}), "metadata of another form"),
    "base": (lambda f, t: f.update(base="0"), "other weights' names or shapes"),
    "missing": (lambda f, t: t.pop(KEY), "without the tensor 'dense_0/kernel.lora.a'"),
    "shape": (lambda f, t: t.update({KEY: t[KEY][:-1]}), r"of F32 \[7, 2\], not of \[8, 2\]"),
    "dtype": (lambda f, t: t.update({KEY: t[KEY] > 0}), "of BOOL"),
    "stray": (lambda f, t: t.update(x=t[KEY]), "'x' that its metadata do not name"),
    "weight": (lambda f, t: f["weights"].append("no/kernel"), "that the model does not have"),
    "method": (lambda f, t: f["adapters"][0].update(method="x"), "invalid metadata"),
    "name": (renamed, "invalid metadata of a LoRA .*`name` must be a word"),
    "no rank": (
        lambda f, t: f["adapters"][0]["settings"].pop("rank"),
        "invalid metadata of a LoRA",
    ),
    "rank": (setting("rank", -1), "`rank` is not a positive int"),
    "huge rank": (setting("rank", 10**12), r"not of \[8, 1000000000000\]"),
    "alpha": (setting("alpha", "x"), "`alpha` must be a number"),
    "flag": (setting("by_last_axis", 3), "`by_last_axis` is not a bool"),
    "no paths": (lambda f, t: f["adapters"][0].update(weights=[]), "it names no weights"),
    "wrong path": (lambda f, t: f["adapters"][0].update(weights=["x"]), "the model has no 'x'"),
    "a bias": (
        lambda f, t: f["adapters"][0].update(weights=["dense_0/bias"]),
        "one of its weights is not a matrix",
    ),
    "no name": (lambda f, t: f["adapters"][0].update(name=3), "its name is not a string"),
}


def test_a_file_that_was_tampered_with_changes_nothing(good, tmp_path):
    model = specimen_of("keras").make()
    before = frozen(model)
    for change, message in EDITS.values():
        with pytest.raises(ke.InputError, match=message):
            ke.load_adapters(model, edited(good, tmp_path / "b.safetensors", change))
        assert_untouched(model, before)


def test_a_file_that_names_one_lora_twice_changes_nothing_in_tf_keras(tmp_path):
    model = specimen_of("tf_keras").make()
    ke.lora(model, 2)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    other = specimen_of("tf_keras").make()
    before = frozen(other)
    for change in (twice, under_two_settings):
        path = edited(tmp_path / "a.safetensors", tmp_path / "b.safetensors", change)
        with pytest.raises(ke.InputError, match="names the LoRA 'lora' twice"):
            ke.load_adapters(other, path)
        assert_untouched(other, before)


def test_the_state_of_adalora_is_checked(tmp_path):
    model = specimen_of("keras").make()
    ke.adalora(model, 2, end_step=4)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    mask = "dense_0/kernel.adalora.mask"
    first = next(k for k in load_file(tmp_path / "a.safetensors") if k.endswith("updates"))

    def changed(key, change):
        return lambda facts, tensors: tensors.update({key: change(tensors[key])})

    edits = {
        "I64 for U8": (changed(mask, lambda x: x.astype("int64")), "of I64 .* and uint8"),
        "F32 for U8": (changed(mask, lambda x: x.astype("float32")), "of F32 .* and uint8"),
        "mask": (changed(mask, lambda x: x + np.uint8(1)), "that AdaLoRA cannot have"),
        "updates": (changed(first, lambda x: np.array(-1)), "that AdaLoRA cannot have"),
        "twice": (twice, "names the LoRA 'adalora' twice"),
        "endless": (setting("end_step", 10**30), "`begin_step` and `end_step` must be ints"),
    }
    model = specimen_of("keras").make()
    before = frozen(model)
    for change, message in edits.values():
        path = edited(tmp_path / "a.safetensors", tmp_path / "b.safetensors", change)
        with pytest.raises(ke.InputError, match=message):
            ke.load_adapters(model, path)
        assert_untouched(model, before)


def test_float16_and_float64_convert(good, tmp_path):
    model = specimen_of("keras").make()
    for dtype in ("float16", "float64"):
        path = edited(good, tmp_path / "b.safetensors", filled(0.5, dtype))
        ke.load_adapters(model, path)
        first = next(t for t in transforms(model) if t.weight.path.startswith("dense"))
        np.testing.assert_array_equal(first.a.numpy(), np.full((8, 2), 0.5, "float32"))


def test_a_truncated_file(good, tmp_path):
    path, model = tmp_path / "b.safetensors", specimen_of("keras").make()
    for size in (0, 7, 100, -5):
        path.write_bytes(good.read_bytes()[:size])
        with pytest.raises(ke.InputError, match="one that cannot be read"):
            ke.load_adapters(model, path)


def test_files_of_others(tmp_path):
    model = specimen_of("keras").make()
    save_file({"x": np.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(ke.InputError, match="without the metadata"):
        ke.load_adapters(model, tmp_path / "b.safetensors")
    with pytest.raises(ke.InputError, match="must exist"):
        ke.load_adapters(model, tmp_path / "none.safetensors")


def test_a_base_model_of_another_shape(good):
    other = next(s for s in ZOO if s.name == "keras-sequential").make()
    with pytest.raises(ke.InputError, match="other weights' names or shapes"):
        ke.load_adapters(other, good)


def test_a_lora_that_is_there_must_be_the_same(good):
    model = specimen_of("keras").make()
    ke.lora(model, 3)
    with pytest.raises(ValueError, match=r"as the file's. Received: 'lora', on other"):
        ke.load_adapters(model, good)
    ke.load_adapters(model, good, name="second")
    with pytest.raises(ValueError, match="`name` must be a word"):
        ke.load_adapters(model, good, name="a.b")


def test_only_one_lora_is_renamed(tmp_path):
    model = specimen_of("keras").make()
    METHODS["two"](model)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="`name` renames the one LoRA of a file"):
        ke.load_adapters(specimen_of("keras").make(), tmp_path / "a.safetensors", name="c")
    model = specimen_of("keras").make()
    ke.adalora(model, 2, end_step=4)
    ke.save_adapters(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="and a file of AdaLoRA"):
        ke.load_adapters(specimen_of("keras").make(), tmp_path / "a.safetensors", name="c")
