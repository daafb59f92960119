"""The scripts in examples/ run, on a tiny model."""

import ast
import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from covering import sampled
from safetensors.numpy import load_file, save_file
from test_docs import MODEL, here, quick_export, tiny  # noqa: F401 (fixtures)

import keras_efficient as ke

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_ran(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 150
    header = path.read_text().split('"""')[1]
    for part in (f" examples/{path.name}", "Ran ", "Not run"):
        assert part in header


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_finetune(library, here, quick_export, monkeypatch, capsys):  # noqa: F811
    options = {"data": "reviews.csv", "model": MODEL, "library": library, "limit": 50}
    options |= {"batch-size": 16, "microbatch-size": 8, "output": "out"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
    runpy.run_path(str(EXAMPLES[0].with_name("finetune.py")), run_name="__main__")
    report = json.loads((here / "out/1/report.json").read_text())
    assert 0 <= report["accuracy"] <= 1
    assert report["signature"]["outputs"]["logits"]["shape"] == [None, 2]
    assert "45 texts in 3 batches of 16" in capsys.readouterr().out


def script(name, monkeypatch, **options):
    """Run an example with these options, in this process."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES[0].with_name(name)), run_name="__main__")


#: By example: header and fields of a few rows, and what its export answers with.
TASKS = {
    "regression": (("text", "rating"), [("good", "2.5"), ("bad", "-1")], {"value"}),
    "multi_label": (
        ("text", "label"),
        [("good", "a|b"), ("bad", "b")],
        {"labels", "probabilities"},
    ),
    "text_pairs": (
        ("first", "second", "label"),
        [("good", "fine", "same"), ("bad", "fine", "different")],
        {"label"},
    ),
}


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_questions(library, here, quick_export, monkeypatch, capsys):  # noqa: F811
    answer = {"text": ["good"], "answer_start": [11]}
    row = {"question": "the film", "context": "a film and good actors", "answers": answer}
    rows = [row | {"context": f"a film and good {word}"} for word in "abcdefghij"]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(ke.serving, "predict", lambda directory, pairs: list(pairs))
    options = {"data": "data.jsonl", "model": MODEL, "library": library, "epochs": 1}
    options |= {"max-length": 24, "stride": 8, "output": "out"}
    script("question_answering.py", monkeypatch, **options)
    assert "Answer F1" in capsys.readouterr().out
    signature = tf.saved_model.load(str(here / "out/1")).signatures["text"]
    assert {"answer", "score"} <= set(signature.structured_outputs)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("name", TASKS)
def test_a_task(name, library, here, quick_export, monkeypatch):  # noqa: F811
    header, rows, outputs = TASKS[name]
    with open("data.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows * 16])
    script(f"{name}.py", monkeypatch, data="data.csv", model=MODEL, library=library, output="out")
    signature = tf.saved_model.load(str(here / "out/1")).signatures["text"]
    assert outputs <= set(signature.structured_outputs)


@pytest.mark.full
@pytest.mark.parametrize(
    "library, method", [("keras", "multiple_negatives"), ("tf_keras", "simcse")]
)
def test_sentence_embeddings(library, method, here, quick_export, monkeypatch, capsys):  # noqa: F811
    rows = [(f"a {word} film", f"the plot was {word}") for word in ("good", "bad") * 20]
    with open("pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("first", "second"), *rows])
    options = {"data": "pairs.csv", "model": MODEL, "library": library, "method": method}
    options |= {"batch-size": 8, "microbatch-size": 4, "output": "out"}
    script("sentence_embeddings.py", monkeypatch, **options)
    assert capsys.readouterr().out.count("Recall at 10") == 2
    signature = tf.saved_model.load(str(here / "out/1")).signatures["text"]
    assert "embedding" in signature.structured_outputs


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_masked_lm(library, here, quick_export, monkeypatch, capsys):  # noqa: F811
    Path("texts.txt").write_text("a good film\n\nnot a bad plot\n" * 20)
    options = {"data": "texts.txt", "model": MODEL, "library": library, "epochs": 1}
    with pytest.warns(UserWarning, match="starts from new weights"):
        script("masked_lm.py", monkeypatch, output="out", adapted="adapted", **options)
    signature = tf.saved_model.load(str(here / "out/1")).signatures["text"]
    assert {"words", "probabilities"} <= set(signature.structured_outputs)
    assert "text_classifier" in (shown := capsys.readouterr().out) or "sequence_classif" in shown


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_causal_lm(library, here, quick_export, monkeypatch, capsys):  # noqa: F811
    rows = [{"prompt": f"a {word}", "completion": " film"} for word in ("good", "bad")]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    options = {"data": "data.jsonl", "library": library, "epochs": 1, "max-length": 16}
    options |= {"output": "out", "vocabulary-size": 270}
    answer = {"generated_text": "was good"}
    monkeypatch.setattr(ke.serving, "predict", lambda _, texts: [answer | {"text": texts[0]}])
    arguments = [word for k, v in options.items() for word in (f"--{k}", str(v))]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--prompts"])
    runpy.run_path(str(EXAMPLES[0].with_name("causal_lm.py")), run_name="__main__")
    shown = capsys.readouterr().out
    assert "Perplexity" in shown and "The film was good" in shown
    assert "text" in tf.saved_model.load(str(here / "out/1")).signatures


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_smaller_model(library, here, monkeypatch, capsys):  # noqa: F811
    options = {"data": "reviews.csv", "model": MODEL, "library": library, "limit": 32}
    script("shrink.py", monkeypatch, layers=1, output="out", **options)
    out = capsys.readouterr().out
    assert "parameters (1.0 times fewer)" in out
    for name in ("whole", "1-layers", "1-layers-half-neurons"):
        assert (here / "out" / name).is_dir() and out.count(name) >= 2


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_several_workers_and_then_again(library, here, monkeypatch, capsys):  # noqa: F811
    """In one process; tests/distribute has the workers."""
    options = {"data": "reviews.csv", "model": MODEL, "library": library, "batch-size": 16}
    script("multi_worker.py", monkeypatch, **options)
    assert {path.name for path in (here / "runs/multi_worker").iterdir()} == {
        "board",
        "final.weights.h5",
        "saves",
    }
    script("multi_worker.py", monkeypatch, **options)
    assert "nothing to train" in capsys.readouterr().out


def test_the_rehearsal_differs_from_the_tpu_in_the_strategy_alone():
    """Its precision and `jit_compile` were others, so it did not rehearse what the TPU runs."""
    uses = [
        node.lineno
        for node in ast.walk(ast.parse(EXAMPLES[0].with_name("tpu.py").read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "rehearse"
    ]
    assert len(uses) == 1


@pytest.mark.full
def test_what_a_tpu_would_run(here, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(sys, "argv", ["tpu.py", "--rehearse"])
    words = ["--data", "reviews.csv", "--model", MODEL, "--batch-size", "8", "--length", "16"]
    sys.argv += [*words, "--steps-per-execution", "3", "--microbatch-size", "4"]
    runpy.run_path(str(EXAMPLES[0].with_name("tpu.py")), run_name="__main__")
    out = capsys.readouterr().out
    assert "every batch: {TensorShape([8, 16])}, 3 steps per call" in out


def parameters(model):
    """Stand for the latency of a model."""
    return model.count_params()


def two_layers():
    """The tiny model with a second layer, equal to the first."""
    folder = Path(shutil.copytree(MODEL, "two_layers"))
    arrays = load_file(folder / "model.safetensors")
    arrays |= {name.replace("layer.0.", "layer.1."): value for name, value in arrays.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    return folder


@pytest.mark.full
def test_compress(here, quick_export, monkeypatch, capsys):  # noqa: F811
    """With times that follow from the number of parameters."""
    monkeypatch.setattr(ke.bench, "ExportLatency", lambda **settings: parameters)
    options = {"data": "reviews.csv", "model": two_layers(), "limit": 32, "epochs": 1}
    script("compress.py", monkeypatch, speedup=1.3, output="out", **options)
    out = capsys.readouterr().out
    assert "shrink: " in out and "student: " in out and "teacher: " in out
    for name in ("keras", "teacher", "student"):
        assert out.count(name) >= 2
    assert len(EXAMPLES[0].with_name("compress.py").read_text().splitlines()) <= 60


@pytest.mark.full
def test_distill(here, monkeypatch, capsys):  # noqa: F811
    folder = two_layers()
    options = {"data": "reviews.csv", "model": folder, "limit": 30, "epochs": 1, "copies": 1}
    script("distill.py", monkeypatch, **options)
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert [line.rsplit(None, 1)[0] for line in lines] == [
        "teacher",
        "student, labels alone",
        "student, with the teacher",
        "student, teacher alone, longer",
        "student, teacher alone, copies",
    ]
    assert all(0 <= float(line.rsplit(None, 1)[1]) <= 1 for line in lines)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_images(library, here, quick_export, monkeypatch, capsys):  # noqa: F811
    options = {"library": library, "limit": 64, "epochs": 1, "output": "out"}
    script("image_classification.py", monkeypatch, **options)
    out = capsys.readouterr().out
    assert "24 weights, 50.0% zeros, 2:4" in out and out.count("when served") == 4
    assert {path.name for path in (here / "out").iterdir()} == {"float", "int8", "2:4", "2:4-int8"}


#: Writes a tone per word in place of speech, as `espeak-ng` is called.
TONES = """#!{python}
import sys, wave
import numpy as np
file, word = sys.argv[sys.argv.index("-w") + 1], sys.argv[-1]
samples = 9000 * np.sin(np.arange(8000) * sum(map(ord, word)) / 2000)
with wave.open(file, "wb") as sound:
    sound.setparams((1, 2, 22050, 0, "NONE", "NONE"))
    sound.writeframes(samples.astype("<i2").tobytes())
"""


@pytest.mark.full
def test_audio(here, quick_export, monkeypatch, capsys):  # noqa: F811
    program = here / "tones"
    program.write_text(TONES.format(python=sys.executable))
    program.chmod(0o755)
    options = {"limit": 60, "epochs": 1, "output": "out"}
    script("audio_classification.py", monkeypatch, espeak=program, **options)
    out = capsys.readouterr().out
    assert "18 weights, 50.0% zeros, 2:4" in out and "bytes of weights" in out


def test_audio_needs_a_program_that_speaks(here, monkeypatch):  # noqa: F811
    with pytest.raises(SystemExit, match="no program 'mute': apt-get install espeak-ng"):
        script("audio_classification.py", monkeypatch, espeak="mute")


@pytest.mark.full
def test_text_and_numbers(here, quick_export, monkeypatch, capsys):  # noqa: F811
    with open("rated.csv", "w", newline="") as file:
        rows = [("good", "2.5"), ("not a bad film", "-1")]
        csv.writer(file).writerows([("text", "rating"), *rows * 8])
    monkeypatch.setattr(ke.data, "demo_ratings", lambda source: "rated.csv")
    options = {"model": MODEL, "epochs": 1, "length": 8, "output": "out"}
    script("text_and_numbers.py", monkeypatch, **options)
    assert "2:4, int8: " in capsys.readouterr().out
    signature = tf.saved_model.load(str(here / "out/1")).signatures["tokens"]
    assert signature.structured_input_signature[1]["numbers"].shape.as_list() == [None, 2]
