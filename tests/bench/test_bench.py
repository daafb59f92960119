"""`bench` times exported models against each other, in separate processes."""

import json
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from covering import sampled
from rich.console import Console

from keras_efficient._errors import InputError
from keras_efficient.bench import _bench as bench_module
from keras_efficient.bench._bench import bench
from keras_efficient.bench._bench_report import BenchReport
from keras_efficient.bench._cpu import cpu_name
from keras_efficient.bench._inputs import load_examples, resolve_shapes, synthetic_inputs
from keras_efficient.runtime import (
    _model_process as process_module,
    _runner_script as runner_script,
    _time_in_turns as time_in_turns,
)
from keras_efficient.runtime._model_process import ModelProcess, ModelProcessError
from tests.bench.bench_models import (
    VOCABULARY,
    Classifier,
    write_onnx,
    write_openvino,
    write_saved_model,
    write_tflite,
)

QUICK = {"batches": [1, 2], "lengths": [4], "seconds": 0.05, "vocabulary": VOCABULARY}
CASES = ["batch 1, length 4", "batch 2, length 4"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same classifier in three formats."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "saved": write_saved_model(folder / "reviews" / "1"),
        "litert": write_tflite(folder / "reviews.tflite"),
        "onnx": write_onnx(folder / "reviews.onnx"),
        "openvino": write_openvino(folder / "reviews.xml", folder / "reviews.onnx"),
    }


@pytest.fixture(scope="module")
def report(models):
    return bench(models, data=Classifier().labelled(), **QUICK)


# --- in real processes ---------------------------------------------------------------------------


@pytest.mark.full
def test_every_kind_is_timed(report, models):
    assert list(report.targets) == ["saved", "litert", "onnx", "openvino"]
    kinds = [target["kind"] for target in report.targets.values()]
    assert kinds == ["saved_model", "litert", "onnx", "openvino"]
    for target in report.targets.values():
        assert list(target["cases"]) == CASES
        for batch, figures in zip((1, 2), target["cases"].values(), strict=True):
            assert 0 < figures["median_ms"] <= figures["p95_ms"]
            assert figures["calls"] >= time_in_turns._ROUNDS
            expected = 1e3 * batch / figures["median_ms"]
            assert figures["examples_per_second"] == pytest.approx(expected)


def test_accuracy_compares_with_the_labels(report):
    for target in report.targets.values():
        assert target["accuracy"] == target["evaluation"]["accuracy"] == 0.75
        assert target["evaluation"]["examples"] == len(Classifier().labelled()["labels"])


def test_bytes_are_those_of_the_files_a_server_loads(report, models):
    assert report.targets["onnx"]["bytes"] == models["onnx"].stat().st_size
    file = models["openvino"]
    both = file.stat().st_size + file.with_suffix(".bin").stat().st_size
    assert report.targets["openvino"]["bytes"] == both
    folder = models["saved"]
    files = [folder / "saved_model.pb", *(folder / "variables").iterdir()]
    assert report.targets["saved"]["bytes"] == sum(file.stat().st_size for file in files)


@sampled()
@pytest.mark.parametrize("kind", ["saved_model", "litert", "onnx", "openvino"])
def test_a_process_answers_requests(kind, models, tmp_path):
    path = dict(zip(("saved_model", "litert", "onnx", "openvino"), models.values(), strict=True))
    path = path[kind]
    data = Classifier().labelled()
    # Inputs of another integer dtype are converted.
    np.savez(tmp_path / "in.npz", ids=data["ids"].astype("int64"), mask=data["mask"])
    with ModelProcess(path, kind) as process:
        expected = {"dtype": "int32", "shape": [None, None]}
        assert process.inputs == {"ids": expected, "mask": expected}
        assert process.outputs == ["logits"]
        process.ask(run=str(tmp_path / "in.npz"), to=str(process.folder / "out.npz"))
        outputs = dict(np.load(process.folder / "out.npz"))
        # After a request that fails the process is still usable.
        with pytest.raises(ModelProcessError, match=r"FileNotFoundError: .*nowhere"):
            process.ask(run=str(tmp_path / "nowhere.npz"), to="")
        if kind == "saved_model":
            np.savez(tmp_path / "beyond.npz", ids=data["ids"] + 1000, mask=data["mask"])
            with pytest.raises(ModelProcessError, match=r"^InvalidArgumentError: Graph .*indices"):
                process.ask(run=str(tmp_path / "beyond.npz"), to="")
        answer = process.ask(time=str(tmp_path / "in.npz"), calls=3, seconds=60.0)
    assert len(answer["times"]) == 3
    expected = Classifier().serve(data["ids"], data["mask"])["logits"]
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-6)


def test_a_process_that_dies_is_reported(models):
    with ModelProcess(models["litert"], "litert") as process:
        process._process.send_signal(signal.SIGKILL)
        with pytest.raises(ModelProcessError, match=r"the process ended with code -9"):
            for _ in range(2):
                process.ask(time="", calls=1, seconds=1.0)


def test_a_process_that_hangs_is_killed(models):
    with ModelProcess(models["litert"], "litert") as process:
        process._process.send_signal(signal.SIGSTOP)
        process._timeout = 0.1
        with pytest.raises(ModelProcessError, match=r"no answer within 0.1 seconds"):
            process.ask(time="", calls=1, seconds=1.0)
        assert process._process.poll() == -signal.SIGKILL


# --- interleaving --------------------------------------------------------------------------------


@pytest.fixture
def turns(monkeypatch):
    """Replace processes by objects that log requests and answer with a number of their own."""
    log = []

    class Fake:
        def __init__(self, path, kind, threads):
            self.path = path
            self.inputs = {"ids": {"dtype": "int32", "shape": [None, None]}}
            log.append(("load", path.stem, threads))

        def ask(self, **request):
            log.append((self.path.stem, dict(np.load(request["time"]))["ids"].shape))
            length = float(len(self.path.stem))
            return {"times": [length] * 2, "processor": [2 * length] * 2}

    @contextmanager
    def fake(path, kind, threads):
        yield Fake(path, kind, threads)

    monkeypatch.setattr(bench_module, "ModelProcess", fake)
    return log


def test_targets_take_turns(turns, tmp_path):
    paths = [tmp_path / f"{name}.onnx" for name in ("a", "bb", "ccc")]
    for path in paths:
        path.write_bytes(b"")
    report = bench(paths, batches=[1, 2], lengths=[3], threads=2)
    assert turns[:3] == [("load", name, 2) for name in ("a", "bb", "ccc")]
    turns = turns[3:]
    # Each group of three runs every target once on the same inputs; the first one rotates.
    for number, start in enumerate(range(0, len(turns), 3)):
        names, shapes = zip(*turns[start : start + 3], strict=True)
        first = number // 2 % 3
        order = ("a", "bb", "ccc")
        assert names == order[first:] + order[:first]
        assert set(shapes) == {(1 + number % 2, 3)}
    assert len(turns) == time_in_turns._ROUNDS * 2 * 3
    assert report.targets[str(paths[2])]["cases"]["batch 2, length 3"] == {
        "median_ms": 3.0,
        "p95_ms": 3.0,
        "processor_ms": 6.0,
        "examples_per_second": 2000 / 3,
        "calls": 2 * time_in_turns._ROUNDS,
    }


def test_inputs_may_be_given(turns, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    bench(
        tmp_path / "a.onnx",
        batches=[2],
        lengths=[3],
        inputs=lambda batch, length: {"ids": np.zeros((batch + 5, length + 5))},
    )
    assert {shape for _, shape in turns[1:]} == {(7, 8)}


def test_calls_stop_after_the_given_seconds():
    class Model:
        prepare = staticmethod(lambda values: values)

        def __init__(self):
            self.calls = 0

        def call(self, inputs):
            self.calls += 1

    model = Model()
    request = {"time": "a", "calls": 5, "seconds": 1e3}
    answer = runner_script.time_case(model, {"a": {}}, request)
    assert len(answer["times"]) == len(answer["processor"]) == 5
    # One call more, which is not timed.
    assert model.calls == 6
    assert len(runner_script.time_case(model, {"a": {}}, {**request, "seconds": 0})["times"]) == 1


# --- inputs --------------------------------------------------------------------------------------


def test_synthetic_inputs():
    spec = {"dtype": "int32", "shape": [None, None]}
    names = ("token_ids", "padding_mask", "segment_ids", "attention_mask", "token_type_ids")
    inputs = {**dict.fromkeys(names, spec), "image": {"dtype": "float32", "shape": [None, 4, 3]}}
    shapes = resolve_shapes(inputs, 2, 300, "m")
    arrays = synthetic_inputs(shapes, vocabulary=7)
    assert {n: a.shape for n, a in arrays.items()} == {
        **dict.fromkeys(names, (2, 300)),
        "image": (2, 4, 3),
    }
    assert {n: str(a.dtype) for n, a in arrays.items()} == {
        **dict.fromkeys(names, "int32"),
        "image": "float32",
    }
    assert set(np.unique(arrays["token_ids"])) == set(range(1, 7))
    assert all((arrays[n] == 1).all() for n in ("padding_mask", "attention_mask"))
    assert all((arrays[n] == 0).all() for n in ("segment_ids", "token_type_ids"))
    again = synthetic_inputs(shapes, 7)
    np.testing.assert_array_equal(arrays["token_ids"], again["token_ids"])


def test_synthetic_inputs_of_unequal_lengths():
    shapes = {"token_ids": ("int32", (64, 40)), "padding_mask": ("int32", (64, 40))}
    equal, mixed = (synthetic_inputs(shapes, 7, unequal) for unequal in (False, True))
    np.testing.assert_array_equal(equal["token_ids"], mixed["token_ids"])
    lengths = mixed["padding_mask"].sum(1)
    # Padding is at the end; the longest example is the first.
    np.testing.assert_array_equal(mixed["padding_mask"], np.arange(40)[None] < lengths[:, None])
    assert lengths[0] == 40 and lengths.min() >= 10 and 22 < lengths.mean() < 28


def test_inputs_that_cannot_be_synthesized():
    with pytest.raises(InputError, match=r"length it is timed at. Received: m, .* Time it at 6"):
        resolve_shapes({"ids": {"dtype": "int32", "shape": [None, 6]}}, 1, 8, "m")
    message = r"Inputs must be numeric. Received: m, .*'text' is string"
    with pytest.raises(InputError, match=message):
        resolve_shapes({"text": {"dtype": "string", "shape": [None]}}, 1, 8, "m")


def test_labelled_examples(tmp_path):
    data = Classifier().labelled()
    np.savez(tmp_path / "d.npz", **data)
    assert set(load_examples(tmp_path / "d.npz")) == set(data) == set(load_examples(data))
    bad = [
        {"ids": data["ids"]},
        {"labels": data["labels"]},
        {**data, "labels": data["labels"].astype(float)},
        {**data, "ids": data["ids"][:3]},
        {"ids": data["ids"][:0], "labels": data["labels"][:0]},
    ]
    for arrays in bad:
        with pytest.raises(InputError, match=r"Labelled examples must be arrays named like"):
            load_examples(arrays)
    with pytest.raises(InputError, match=r"`data` must be the path .* Received: 3\."):
        load_examples(3)
    whole = (tmp_path / "d.npz").read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"npz file of arrays, made with np.savez. Received"):
            load_examples(tmp_path / "bad.npz")
    with pytest.raises(InputError, match=r"npz file of arrays.* Received.*nowhere"):
        load_examples(tmp_path / "nowhere.npz")


# --- bad input -----------------------------------------------------------------------------------


def test_arguments(models):
    cases = [
        ({"batches": []}, r"`batches` must be different positive integers.* Received: \[\]"),
        ({"batches": [0]}, r"`batches` must be .* Received: \[0\]"),
        ({"lengths": [8, 8]}, r"`lengths` must be different .* Received: \[8, 8\]"),
        ({"threads": 0}, "`threads` must be an integer from 1 to 4096. Received: 0"),
        ({"seconds": 0.0}, "`seconds` must be positive and finite. Received: 0.0"),
        ({"seconds": float("nan")}, "`seconds` must be positive and finite. Received: nan"),
        ({"vocabulary": 1}, "`vocabulary` must be an integer above 1. Received: 1"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            bench(models, **options)


def test_targets(tmp_path, models):
    with pytest.raises(InputError, match=r"at least one model. Received: none"):
        bench([])
    with pytest.raises(InputError, match=r"Targets must differ. Received"):
        bench([models["onnx"], str(models["onnx"])])
    with pytest.raises(InputError, match=r"A .onnx file must exist. Received: .*nowhere.onnx"):
        bench(tmp_path / "nowhere.onnx")
    with pytest.raises(InputError, match=r"folder must exist"):
        bench(tmp_path / "nowhere")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"must hold saved_model.pb, model.tflite or mo"):
        bench(tmp_path / "empty")


def test_a_damaged_version_is_not_loaded(tmp_path, models, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").write_text("{}")
    write_tflite(tmp_path / "1" / "model.tflite")
    monkeypatch.setattr(bench_module, "ModelProcess", None)
    with pytest.raises(InputError, match=r"manifest"):
        bench(tmp_path)


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_a_broken_file_is_one_line(name, tmp_path, models):
    source = models["litert" if name.endswith("tflite") else "onnx"].read_bytes()
    (tmp_path / name).write_bytes(source[: len(source) // 2])
    with pytest.raises(InputError, match=rf"must load and run .* Received: .*{name}, whose") as e:
        bench(tmp_path / name, **QUICK)
    assert "\n" not in str(e.value)


@pytest.mark.full
def test_a_saved_model_without_its_weights_is_one_line(tmp_path):
    folder = write_saved_model(tmp_path / "1")
    (folder / "variables" / "variables.index").unlink()
    with pytest.raises(InputError, match="must load and run in a process without Keras") as e:
        bench(tmp_path, **QUICK)
    assert "\n" not in str(e.value)


@pytest.mark.full
def test_ids_beyond_the_vocabulary_are_one_line(models):
    with pytest.raises(
        InputError, match=r"whose process said: InvalidArgumentError: Graph .*indices"
    ):
        bench(models["saved"], **{**QUICK, "vocabulary": 1000})


def test_data_without_an_input(models):
    data = Classifier().labelled()
    del data["mask"]
    with pytest.raises(InputError, match=r"no array for the inputs \['mask'\]; there are \['ids'"):
        bench(models["litert"], data=data, **QUICK)


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_runtimes_are_extras(kind, models, monkeypatch):
    monkeypatch.setattr(process_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"not installed. .*'keras_efficient\[{kind}\]'"):
        bench(models[kind], **QUICK)


# --- the report ----------------------------------------------------------------------------------


def figures(median):
    return {
        "median_ms": median,
        "p95_ms": median,
        "processor_ms": median**2,
        "examples_per_second": 1.0,
        "calls": 5,
    }


def two_targets(accuracy=None):
    facts = {"path": "p", "kind": "onnx", "bytes": 2_000_000, "accuracy": accuracy}
    return BenchReport(
        1,
        {
            "[b]slow": {**facts, "cases": dict(zip(CASES, map(figures, (4.0, 9.0)), strict=True))},
            "quick": {**facts, "cases": dict(zip(CASES, map(figures, (2.0, 3.0)), strict=True))},
        },
    )


def test_speedup():
    assert two_targets().speedup("[b]slow") == {
        "[b]slow": dict.fromkeys(CASES, 1.0),
        "quick": {CASES[0]: 2.0, CASES[1]: 3.0},
    }
    assert two_targets().speedup("[b]slow", "processor_ms")["quick"] == {
        CASES[0]: 4.0,
        CASES[1]: 9.0,
    }
    with pytest.raises(InputError, match=r"`baseline` must be one of \[b\]slow, quick. Received"):
        two_targets().speedup("fast")
    with pytest.raises(InputError, match=r"`figure` must be one of median_ms, .* Received: 'cpu'"):
        two_targets().speedup("quick", "cpu")


def test_json():
    written = json.loads(two_targets(0.5).to_json())
    assert written == {"threads": 1, "targets": two_targets(0.5).targets, "cpu": ""}


def test_the_cpu_is_named(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni avx_vnni\n")
    assert cpu_name(file) == f"Some CPU, {os.cpu_count()} cores, AVX2, VNNI"
    assert cpu_name(tmp_path / "nowhere").endswith("cores")


def test_table(capsys):
    Console(width=120).print(two_targets(0.5).table())
    out = capsys.readouterr().out
    for part in ("[b]slow", *CASES, "9.00", "3.00x", "2.00", "50.00%", "1 thread"):
        assert part in out


def test_table_is_readable_at_80_columns(capsys):
    """It wrapped into nonsense: paths and figures were broken in the middle."""
    from keras_efficient.metrics import classification_report

    folder = "saved_models/some/deeper/folder"
    evaluation = classification_report([0, 0, 0, 1], [0, 0, 0, 0]).to_dict()
    facts = {"path": "p", "kind": "onnx", "bytes": 2_000_000, "accuracy": 0.75}
    facts |= {
        "evaluation": evaluation,
        "cases": {"batch 32, length 128": figures(123456.7) | {"processor_ms": 98765.4}},
    }
    names = [f"{folder}/movie_reviews/1", f"{folder}/movie_reviews_int8_weights/1"]
    Console(width=80).print(BenchReport(1, dict.fromkeys(names, facts)).table())
    out = capsys.readouterr().out
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80 and folder not in out
    (row,) = [line for line in lines if "movie_reviews/1" in line and "123,457" in line]
    assert row.endswith("1.00x")
    for part in ("batch 32, length 128", "75.00%", "Majority baseline on the 4 examples: 75.00%"):
        assert part in out
    assert "movie_reviews/1: The model predicts one class only" in " ".join(out.split())


def test_logits_are_enough_beside_probabilities(tmp_path):
    """`bench(data=...)` refused both outputs, although its message said that logits are enough."""

    class Process:
        folder = tmp_path

        def ask(self, run, to):
            with np.load(run) as inputs:
                logits = Classifier().serve(inputs["ids"], inputs["mask"])["logits"].numpy()
            # Probabilities in another order, so that taking them shows.
            np.savez(to, probabilities=-logits, logits=logits, label=[b"?"] * len(logits))

    data = Classifier().labelled()
    report = bench_module._evaluation(Process(), data, tmp_path)
    assert report.accuracy == 0.75 and report.majority_baseline <= 0.75


def test_plot(tmp_path):
    two_targets().plot(tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("nowhere/bench.png", "bench.txt"):
        with pytest.raises(InputError, match=r"A plot must go into an image file"):
            two_targets().plot(tmp_path / name)
