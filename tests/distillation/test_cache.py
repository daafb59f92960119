"""Cached teacher outputs: each example gets its own, whole or not at all, resumed after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import SMALL, assert_same, batches, compiled, fit, mirrored
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.distillation import TeacherCache, _cache as files
from keras_efficient.distillation._example_keys import example_keys, named_features
from keras_efficient.models._span_logits import MASKED

BY_NAME = {specimen.name: specimen for specimen in ZOO}
libraries = pytest.mark.parametrize("library", list(SMALL))


def scaled(specimen, factor=1.7):
    model = specimen.make()
    model.set_weights([factor * w for w in model.get_weights()])
    return model


def numbers(x):
    """A teacher whose outputs tell examples apart: three sums of their ids."""
    ids = tf.cast(x["token_ids"] if isinstance(x, dict) else x, tf.float32)
    return tf.stack([tf.reduce_sum(ids, 1), tf.reduce_sum(ids**2, 1), ids[:, 0]], 1)


def texts(n=10, seed=0):
    return np.random.default_rng(seed).integers(1, VOCABULARY, (n, LENGTH)).astype("int32")


@sampled()
@pytest.mark.parametrize("library, replicas, k", [("keras", 1, 2), ("tf_keras", 2, 1)])
def test_training_with_a_cache_is_training_with_the_teacher(library, replicas, k, tmp_path):
    """In another order, in other batches, and in a process that has no teacher."""
    specimen = SMALL[library]
    x, y = specimen.batch(12)
    teacher = scaled(specimen)
    ke.distillation.cache(teacher, batches(x, y, batch_size=5), tmp_path / "cache")
    order = np.random.default_rng(1).permutation(12)

    def run(teacher):
        with mirrored(replicas).scope():
            model = compiled(library, specimen.make())
        ke.accumulate(ke.distill(model, teacher, alpha=0.2), k)
        data = batches(x[order], y[order], batch_size=6)
        model.fit(data, verbose=0, shuffle=False, epochs=2)
        return model

    assert_same(run(teacher), run(str(tmp_path / "cache")), 1e-6)


def test_each_example_gets_its_outputs_however_it_is_padded(tmp_path):
    """For all names of features, on either side of the text, and with other ids for padding."""
    lengths = np.array([5, 1, 3, 6])
    real = np.arange(LENGTH) < lengths[:, None]
    ids = texts(4) * real
    cache = ke.distillation.cache(
        numbers,
        [{"token_ids": ids, "padding_mask": real, "segment_ids": 0 * ids}],
        tmp_path / "cache",
    )
    expected = numbers(ids).numpy()
    np.testing.assert_array_equal(
        cache.outputs({"input_ids": ids, "attention_mask": real}), expected
    )
    wide = np.pad(ids, [[0, 0], [0, 4]], constant_values=7)
    mask = np.pad(real, [[0, 0], [0, 4]])
    named = {"input_word_ids": wide[::-1], "input_mask": mask[::-1].astype("int64")}
    np.testing.assert_array_equal(cache.outputs(named), expected[::-1])
    left = np.stack([np.roll(row, LENGTH - n) for row, n in zip(ids, lengths, strict=True)])
    mask = np.arange(LENGTH) >= LENGTH - lengths[:, None]
    found = cache.outputs({"input_ids": left, "attention_mask": mask})
    np.testing.assert_array_equal(found, expected)
    # Without a mask, a text ends at its last id that is not 0.
    plain = ke.distillation.cache(numbers, [ids], tmp_path / "plain")
    np.testing.assert_array_equal(plain.outputs(np.pad(ids, [[0, 0], [0, 2]])), expected)


def test_keys_differ_with_any_feature():
    ids = texts(2)
    features = {"token_ids": ids, "segment_ids": np.zeros_like(ids), "score": np.ones((2, 1))}
    keys = example_keys(named_features(features))
    assert len(set(keys)) == 2
    assert keys == example_keys(
        named_features({k: v for k, v in features.items() if k != "segment_ids"})
    )
    for name, change in (("token_ids", 1), ("segment_ids", 1), ("score", 0.5)):
        other = {**features, name: features[name] + change}
        assert not set(keys) & set(example_keys(named_features(other)))


def test_outputs_for_tokens_are_kept_for_real_tokens(tmp_path):
    real = np.arange(LENGTH) < np.array([[4], [6], [2]])
    ids = texts(3) * real

    def teacher(x):
        return tf.one_hot(x["token_ids"], VOCABULARY)

    data = [{"token_ids": ids, "padding_mask": real}]
    cache = ke.distillation.cache(teacher, data, tmp_path / "cache", dtype="float16")
    rows = sum((p["bytes"] for p in cache.manifest["parts"]), 0)
    assert rows < real.sum() * VOCABULARY * 2 + 2000
    wide = {
        "token_ids": np.pad(ids, [[0, 0], [0, 3]]),
        "padding_mask": np.pad(real, [[0, 0], [0, 3]]),
    }
    expected = np.eye(VOCABULARY)[wide["token_ids"]] * wide["padding_mask"][:, :, None]
    np.testing.assert_array_equal(cache.outputs(wide), expected)


def test_logits_over_tokens_are_kept_for_real_tokens(tmp_path):
    """As those of the first and the last token of an answer; padding has no probability."""
    real = np.arange(LENGTH) < np.array([[4], [6], [3]])
    ids = texts(3) * real

    def teacher(x):
        values = tf.cast(x["token_ids"], tf.float32)
        return tf.where(x["padding_mask"][:, None], tf.stack([values, -values], 1), MASKED)

    cache = ke.distillation.cache(
        teacher, [{"token_ids": ids, "padding_mask": real}], tmp_path / "cache"
    )
    wide = {
        "token_ids": np.pad(ids, [[0, 0], [0, 3]]),
        "padding_mask": np.pad(real, [[0, 0], [0, 3]]),
    }
    found = cache.outputs(wide)
    assert found.shape == (3, 2, LENGTH + 3)
    np.testing.assert_array_equal(found, teacher(wide).numpy())
    traced = tf.function(lambda x: cache(x))(wide)
    assert traced.shape == (3, 2, LENGTH + 3)


def test_what_is_there_is_not_computed_again(tmp_path):
    asked = []

    def teacher(x):
        tf.py_function(lambda ids: asked.append(len(ids)), [x], [])
        return numbers(x)

    x = texts(10)
    first = ke.distillation.cache(teacher, batches(x, x, batch_size=5), tmp_path)
    more = np.concatenate([x[3:], texts(4, seed=1), x[:2]])
    cache = ke.distillation.cache(teacher, batches(more, more, batch_size=5), tmp_path)
    assert (len(first), len(cache)) == (10, 14)
    # The first batch of the second call was known.
    assert asked == [5, 5, 5, 3]
    np.testing.assert_array_equal(cache.outputs(more), numbers(more))


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
import keras_efficient as ke
from keras_efficient.distillation import _cache as files
from test_cache import numbers, texts
from fit_helpers import batches
files._PART_EXAMPLES, write, done = 5, files.write_arrays, []
def dying(path, *args):
    done.append(write(path, *args))
    if len(done) == 3:
        os.kill(os.getpid(), 9)
    return done[-1]
files.write_arrays = dying
x = texts(40)
ke.distillation.cache(numbers, batches(x, x, batch_size=5), {folder!r})
"""


def test_a_killed_process_is_continued(tmp_path):
    here = str(Path(__file__).parent)
    script = KILLED.format(tests=here, folder=str(tmp_path))
    paths = os.pathsep.join([here, str(Path(here).parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths})
    assert killed.returncode == -9
    assert len(TeacherCache(tmp_path)) == 10
    assert list(tmp_path.glob(".part*.partial"))
    x = texts(40)
    cache = ke.distillation.cache(numbers, batches(x, x, batch_size=5), tmp_path)
    np.testing.assert_array_equal(cache.outputs(x), numbers(x))
    manifest = json.loads((tmp_path / "teacher_cache.json").read_text())
    assert sum(part["examples"] for part in manifest["parts"]) == 40 and manifest["data"]


@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing", "manifest"])
def test_damaged_files_are_refused(damage, tmp_path):
    x = texts(10)
    ke.distillation.cache(numbers, batches(x, x, batch_size=5), tmp_path)
    (part,) = tmp_path.glob("part-*")
    content = bytearray(part.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
        part.write_bytes(content)
    elif damage == "shorter":
        part.write_bytes(content[:-1])
    elif damage == "missing":
        part.unlink()
    else:
        (tmp_path / "teacher_cache.json").write_text("{")
    for use in (TeacherCache, lambda path: ke.distillation.cache(numbers, [x], path)):
        with pytest.raises(InputError, match=r"as they were written|teacher_cache\.json that can"):
            use(tmp_path)


def test_bad_input_is_refused(tmp_path, monkeypatch):
    x = texts(4)
    cache = ke.distillation.cache(numbers, [x], tmp_path / "cache")
    with pytest.raises(InputError, match=r"example 1 of a batch, which the cache .* 4 examples"):
        cache.outputs(np.concatenate([x[:1], texts(3, seed=9)]))
    with pytest.raises(InputError, match="outputs of one teacher, with the weights that it had"):
        ke.distillation.cache(scaled(SMALL["keras"]), [x], tmp_path / "cache")
    with pytest.raises(InputError, match="made from a teacher"):
        ke.distillation.cache(cache, [x], tmp_path / "other")
    with pytest.raises(InputError, match="at least one batch"):
        ke.distillation.cache(numbers, [], tmp_path / "other")
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        ke.distillation.cache(numbers, [x], tmp_path / "other", dtype="int8")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"folder of its own. Received: .* holds 'notes\.txt'"):
        ke.distillation.cache(numbers, [x], tmp_path / "notes")
    with pytest.raises(InputError, match="A cache is a folder"):
        ke.distillation.cache(numbers, [x], tmp_path / "notes" / "notes.txt")
    with pytest.raises(InputError, match="A cache holds one output"):
        ke.distillation.cache(lambda x: [numbers(x), numbers(x)], [x], tmp_path / "two")
    with pytest.raises(InputError, match="belong to the token ids or the mask"):
        ke.distillation.cache(lambda x: x[:, :, None], [x.astype("float32")], tmp_path / "floats")
    free = files.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=r"takes about .* MB free\. Choose another"):
        ke.distillation.cache(numbers, batches(x, x, batch_size=2), tmp_path / "full")


@sampled()
@libraries
def test_xla_is_refused(library, tmp_path):
    specimen = SMALL[library]
    x, y = specimen.batch(6)
    cache = ke.distillation.cache(scaled(specimen), batches(x, y, batch_size=6), tmp_path)
    model = compiled(library, specimen.make(), jit_compile=True)
    ke.distill(model, cache)
    with pytest.raises(ValueError, match="XLA cannot compile this teacher"):
        fit(model, x, y)


@sampled()
@pytest.mark.parametrize("name", ["hugging-face-bert", "kerashub-bert"])
@pytest.mark.parametrize("format", ["saved_model", "litert"])
def test_an_exported_model_is_a_teacher(name, format, tmp_path):
    """For a student of the other library, whose features it renames."""
    if format == "litert":
        pytest.importorskip("ai_edge_litert")
    specimen = BY_NAME[name]
    other = BY_NAME[{"hugging-face-bert": "kerashub-bert"}.get(name, "hugging-face-bert")]
    teacher = scaled(specimen)
    x, y = other.batch(6)
    sample = specimen.batch(6)[0]
    report = ke.export(teacher, tmp_path / "teacher", sample=sample, format=format)
    exported = ke.distillation.ExportedTeacher(tmp_path / "teacher")
    expected = getattr(teacher(sample), "logits", None)
    expected = teacher(sample) if expected is None else expected
    (found,) = ke.distillation._teacher.chosen_outputs(exported(x))
    assert report is not None and found.shape == (6, CLASSES)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    model = compiled(other.library, other.make())
    ke.distill(model, tmp_path / "teacher", alpha=0.0)
    same = compiled(other.library, other.make())
    ke.distill(same, teacher, alpha=0.0)
    for each in (model, same):
        fit(each, x, y)
    assert_same(model, same, 1e-4)


def test_a_path_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be that of a SavedModel, a \.tflite or"):
        ke.distill(SMALL["keras"].make(), tmp_path)
