"""LoRA in training: compiled before and after, precision, XLA, replicas, remat, files, `Resume`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from covering import contract, sampled
from fit_helpers import assert_same, compiled, fit, mirrored
from zoo import FEW, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.parametrize._parametrized_layer import transforms

sys.path.append(str(Path(__file__).parents[1] / "callbacks"))

#: Cases of `remat` that `make test` runs, in either order and one of each library.
QUICK = {("kerashub-bert", "remat"), ("hugging-face-bert", "lora")}
libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def specimen_of(library):
    return next(s for s in ZOO if s.name == f"{library}-functional")


def outputs(model, x):
    return np.asarray(model(x))


def adamw(library):
    return keras_of(library).optimizers.AdamW(0.01)


@pytest.mark.full
@sampled()
@libraries
def test_before_and_after_compile_and_after_a_first_fit(library):
    specimen = specimen_of(library)
    x, y = specimen.batch(12)
    models = []
    for when in ("before", "after", "between"):
        model = specimen.make()
        if when == "before":
            ke.lora(model, 2)
        compiled(library, model, adamw(library))
        if when == "after":
            ke.lora(model, 2)
        if when == "between":
            # A fit of which only the optimizer's state is kept.
            values = model.get_weights()
            fit(model, x, y, batch_size=4)
            model.set_weights(values)
            ke.lora(model, 2)
            assert int(model.optimizer.iterations.numpy()) == 3
            model.optimizer.iterations.assign(0)
        fit(model, x, y, batch_size=4)
        models.append(model)
    for other in models[1:]:
        assert_same(models[0], other, atol=1e-6)


@contract("microbatches", "replicas", "xla")
@sampled()
@libraries
def test_microbatches_replicas_and_xla_are_one_batch(library):
    specimen = specimen_of(library)
    x, y = specimen.batch(12)
    models = []
    for replicas, microbatches, jit in ((1, 1, False), (1, 2, True), (2, 1, False)):
        with mirrored(replicas).scope():
            model = specimen.make()
            ke.lora(model, 2)
            compiled(library, model, jit_compile=jit)
            ke.accumulate(model, microbatches=microbatches)
        fit(model, x, y, batch_size=4, epochs=2)
        models.append(model)
    for other in models[1:]:
        assert_same(models[0], other)


@contract("mixed_precision")
@sampled()
@libraries
def test_in_bfloat16_the_factors_are_float32(library):
    specimen = specimen_of(library)
    x, y = specimen.batch(12)
    found = []
    for policy in ("float32", "mixed_bfloat16"):
        ke.mixed_precision(policy, library=library)
        model = specimen.make()
        ke.mixed_precision("float32", library=library)
        ke.lora(model, 2)
        compiled(library, model)
        fit(model, x, y, batch_size=4, epochs=2)
        assert {v.dtype for t in transforms(model) for v in (t.a, t.b)} == {tf.float32}
        found.append(model)
    np.testing.assert_allclose(outputs(found[1], x), outputs(found[0], x), rtol=0, atol=0.03)
    ke.merge(found[1])
    assert outputs(found[1], x).dtype == np.asarray(found[1](x)).dtype


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    "specimen, first",
    [
        pytest.param(
            specimen,
            first,
            id=f"{specimen}-{first}",
            marks=[] if (specimen.name, first) in QUICK else [pytest.mark.full],
        )
        for specimen in FEW
        for first in ("remat", "lora")
    ],
)
def test_with_remat_in_either_order(specimen, first):
    if "subclassed" in specimen.name or "functional" in specimen.name:
        chosen = "attention|attend"
    else:
        chosen = None
    x, y = specimen.batch(8)
    models = []
    for remat in (False, True):
        model = specimen.make()
        if remat and first == "remat":
            ke.remat(model, chosen)
        ke.lora(model, 2)
        if remat and first == "lora":
            ke.remat(model, chosen)
        compiled(specimen.library, model)
        fit(model, x, y, batch_size=4)
        models.append(model)
    assert_same(*models, atol=1e-6)


@sampled()
@libraries
def test_a_model_file_is_the_plain_model_with_the_sum(library, tmp_path):
    specimen, keras = specimen_of(library), keras_of(library)
    model, (x, y) = specimen.make(), specimen.batch(8)
    ke.lora(model, 2)
    compiled(library, model)
    fit(model, x, y, batch_size=4)
    path = str(tmp_path / "m.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_allclose(outputs(loaded, x), outputs(model, x), rtol=0, atol=1e-6)
    assert type(loaded.layers[-1]) is keras.layers.Dense
    assert loaded.count_params() == specimen.make().count_params()


@contract("resume")
@pytest.mark.parametrize("library", ["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def test_resumes_to_the_last_bit(library, tmp_path):
    from resumed_runs import Case, assert_goes_on

    def caller(model):
        ke.lora(model, 2, layers="dense")
        ke.accumulate(model, microbatches=2)

    def model_of(library):
        layers = keras_of(library).layers
        parts = [
            layers.Input((6,), dtype="int32"),
            layers.Embedding(50, 8),
            layers.Dropout(0.3),
            layers.Dense(8, activation="relu", name="dense_a"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, name="head"),
        ]
        return keras_of(library).Sequential(parts)

    case = Case(library, caller=caller, model=model_of)
    whole = case.start(tmp_path / "whole")
    assert_goes_on(case, tmp_path / "a", sorted(whole.watch.losses)[-4], whole)


@sampled()
@libraries
def test_factors_start_the_same_whatever_else_a_process_has_made(library):
    values = []
    for _ in range(2):
        model = specimen_of(library).make()
        ke.lora(model, 2, seed=3)
        values.append([delta.a.numpy() for delta in transforms(model)])
    for a, b in zip(*values, strict=True):
        np.testing.assert_array_equal(a, b)
    other = specimen_of(library).make()
    ke.lora(other, 2, seed=4)
    assert np.abs(transforms(other)[0].a.numpy() - values[0][0]).max() > 0
