"""`keras-efficient predict`: answers, and what of a model nobody should trust."""

import json
import os
import pickle
import subprocess

import pytest
import text_models
from command_line import keras_efficient

from keras_efficient._errors import InputError
from keras_efficient.exporters._warmup import _field
from keras_efficient.serving import _predict as predict_module
from keras_efficient.serving import _predict_script as predict_script
from keras_efficient.serving._predict import predict

TEXTS = ["a good film", "a dull one", "größer 🎬 good", ""]
EXPECTED = ["positive", "negative", "positive", "negative"]


@pytest.fixture
def version(tmp_path):
    return text_models.copy(tmp_path / "reviews" / "1")


@pytest.fixture
def no_child(monkeypatch):
    """What is refused here is refused before anything is loaded."""

    def run(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture
def here(monkeypatch):
    """Load and answer in this process; other tests start the real one, which takes seconds."""

    def ask(version, signature, texts, timeout):
        return json.loads(json.dumps(predict_script.answer(version, signature, texts)))

    monkeypatch.setattr(predict_module, "_ask", ask)


# --- answers -------------------------------------------------------------------------------------


def test_json(version, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["nowhere:1"]}}')
    outcome = keras_efficient(
        "predict", version.parent, *(w for t in TEXTS for w in ("--text", t)), "--json"
    )
    assert outcome.code == 0, outcome
    answers = json.loads(outcome.out)
    assert [answer["text"] for answer in answers] == TEXTS
    assert [answer["label"] for answer in answers] == EXPECTED
    for answer in answers:
        assert set(answer["probabilities"]) == set(text_models.LABELS)
        assert answer["probability"] == answer["probabilities"][answer["label"]] > 0.8
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_table_of_a_file(version, here, tmp_path):
    (tmp_path / "texts").write_bytes("\ufeffa [bold]good[/] film\r\n\n\na dull\u2028one\n".encode())
    outcome = keras_efficient("predict", version, "--file", tmp_path / "texts")
    assert outcome.code == 0, outcome
    rows = [line for line in outcome.out.splitlines() if "tive" in line]
    assert len(rows) == 2
    assert "a [bold]good[/] film" in rows[0] and "positive" in rows[0] and "0.8808" in rows[0]
    assert "a dull one" in rows[1] and "negative" in rows[1]


def test_more_texts_than_a_batch(version, here):
    answers = predict(version, TEXTS * 20)
    assert [answer["label"] for answer in answers] == EXPECTED * 20


@pytest.fixture
def answers(version, monkeypatch):
    """`answers(labels_file, text, probabilities)` of a model whose labels are in that file."""

    def read(name, text, probabilities):
        (version / "assets" / "labels.txt").unlink(missing_ok=True)
        (version / name).parent.mkdir(exist_ok=True)
        (version / name).write_text(text)
        text_models.sign(version)
        answer = {"labels": ["x"], "probabilities": [probabilities]}
        monkeypatch.setattr(predict_module, "_ask", lambda *args: answer)
        return predict(version, ["a"])[0]["probabilities"]

    return read


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("assets/labels.txt", "one\ntwo\nthree\n"),
        ("assets/labels.txt", "one\none\n"),
        ("assets.extra/labels.json", '{"one": 1, "two": 2}'),
        ("assets.extra/labels.json", "[1, 2]"),
        ("assets.extra/other", ""),
    ],
)
def test_classes_have_numbers_where_labels_do_not_fit(name, text, answers):
    assert answers(name, text, [0.25, 0.75]) == {"0": 0.25, "1": 0.75}


def test_labels_as_json(answers):
    found = answers("assets.extra/labels.json", '["no", "yes"]', [0.25, 0.75])
    assert found == {"no": 0.25, "yes": 0.75}


@pytest.mark.parametrize("text", ["[" * 100_000, "nonsense"])
def test_labels_that_are_no_json(text, answers):
    with pytest.raises(InputError, match="A model must give labels"):
        answers("assets.extra/labels.json", text, [0.25, 0.75])


def test_one_logit_is_two_classes(answers):
    found = answers("assets/labels.txt", "no\nyes\n", [0.25])
    assert found == {"no": 0.75, "yes": 0.25}


# --- signatures, texts and options ---------------------------------------------------------------


def test_no_signature_for_texts(here, tmp_path):
    version = text_models.save(tmp_path / "1", signatures=("tokens",))
    outcome = keras_efficient("predict", version, "--text", "x")
    outcome.refused("must have a signature 'text'", "tokens", "Export it with tokenizer=")


def test_a_signature_that_takes_no_texts(version, here):
    outcome = keras_efficient("predict", version, "--text", "x", "--signature", "tokens")
    outcome.refused("one input of strings", "'tokens'", "token_ids")


def test_no_text(version, no_child, tmp_path):
    keras_efficient("predict", version).refused("must be given a text")
    (tmp_path / "empty").write_text("\n \n")
    outcome = keras_efficient("predict", version, "--file", tmp_path / "empty")
    outcome.refused("must be given a text")
    for texts in ("a string", [], [1]):
        with pytest.raises(InputError, match="`texts` must be a list of strings"):
            predict(version, texts)


def test_bad_files_of_texts(version, no_child, tmp_path, monkeypatch):
    (tmp_path / "latin").write_bytes(b"gr\xf6\xdfer")
    for name, message in [("none", "no file"), (".", "a folder"), ("latin", "UTF-8")]:
        keras_efficient("predict", version, "--file", tmp_path / name).refused(message)
    monkeypatch.setattr("keras_efficient.cli._predict._MOST_BYTES", 3)
    keras_efficient("predict", version, "--file", tmp_path / "latin").refused("at most")


def test_no_model(tmp_path, no_child):
    keras_efficient("predict", tmp_path / "none", "--text", "x").refused("folder must exist")
    keras_efficient("predict", tmp_path, "--text", "x").refused("must hold versions")


# --- damaged and malicious folders: refused before anything is loaded -----------------------------


def add_a_pickle(version):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(version.parent / "executed"),)

    (version / "model.pkl").write_bytes(pickle.dumps(Evil()))


def link_a_variable(version):
    path = version / "variables" / "variables.index"
    path.rename(version.parent / "elsewhere")
    path.symlink_to(version.parent / "elsewhere")


def leave_the_folder(version):
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../../etc/passwd"] = manifest["files"]["saved_model.pb"]
    path.write_text(json.dumps(manifest))


def pipe(version):
    (version / "saved_model.pb").unlink()
    os.mkfifo(version / "saved_model.pb")


def huge(version):
    with open(version / "manifest.json", "ab") as file:
        file.truncate(20_000_000)


BEFORE = {
    "no variables": lambda v: (v / "variables/variables.index").unlink(),
    "flipped weights": lambda v: text_models.flip_a_byte(
        next((v / "variables").glob("variables.data*"))
    ),
    "flipped graph": lambda v: text_models.flip_a_byte(v / "saved_model.pb"),
    "cut off graph": lambda v: os.truncate(v / "saved_model.pb", 1000),
    "no manifest": lambda v: (v / "manifest.json").unlink(),
    "cut off manifest": lambda v: os.truncate(v / "manifest.json", 100),
    "huge manifest": huge,
    "nested manifest": lambda v: (v / "manifest.json").write_text('{"files":' * 100_000),
    "names that leave": leave_the_folder,
    "a link": link_a_variable,
    "a pickle": add_a_pickle,
    "a pipe": pipe,
}


@pytest.mark.parametrize("kind", BEFORE)
def test_refused_before_loading(kind, version, no_child):
    BEFORE[kind](version)
    outcome = keras_efficient("predict", version.parent, "--text", "x")
    outcome.refused("Error: A")
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (version.parent / "executed").exists()


# --- and those that a manifest agrees with, made by someone who can write one ---------------------


def garbage(version, tmp_path):
    (version / "saved_model.pb").write_bytes(b"\x80garbage" * 999)
    return "must be a SavedModel"


def no_variables(version, tmp_path):
    (version / "variables" / "variables.index").unlink()
    return "must load and run in TensorFlow"


def broken_variables(version, tmp_path):
    (version / "variables" / "variables.index").write_bytes(b"broken" * 20)
    return "must load and run in TensorFlow"


def no_asset(version, tmp_path):
    (version / "assets" / "labels.txt").unlink()
    return "must load and run in TensorFlow"


def another_format(version, tmp_path):
    (version / "saved_model.pb").rename(version / "model.pkl")
    return "its graph in saved_model.pb"


def rewritten(version, does):
    text_models.shutil.rmtree(version)
    text_models.save(version, does, signatures=("text",))


def write_file(version, tmp_path):
    rewritten(version, text_models.writes(tmp_path / "executed"))
    return "the op WriteFile"


def python(version, tmp_path):
    rewritten(version, text_models.calls_python(tmp_path / "executed"))
    return "the op PyFunc"


def nested_graph(version, tmp_path):
    """A function as an attribute of a function as an attribute of a function, and so on."""
    name_and_attributes = b""
    for _ in range(2000):
        value = _field(10, name_and_attributes)
        name_and_attributes = _field(2, _field(1, b"f") + _field(2, value))
    node = _field(5, _field(1, b"f") + _field(2, _field(10, name_and_attributes)))
    graph = _field(2, _field(2, _field(1, node)))
    (version / "saved_model.pb").write_bytes(graph)
    return "must be a SavedModel"


AFTER = [garbage, nested_graph, no_variables, no_asset, another_format, python]


def refused_in_spite_of_its_manifest(spoil, version, tmp_path):
    message = spoil(version, tmp_path)
    text_models.sign(version)
    outcome = keras_efficient("predict", version, "--text", "x")
    outcome.refused("Error: ", message)
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("spoil", AFTER)
def test_refused_in_spite_of_its_manifest(spoil, version, here, tmp_path):
    refused_in_spite_of_its_manifest(spoil, version, tmp_path)


@pytest.mark.parametrize("spoil", [write_file, broken_variables])
def test_refused_by_the_real_process(spoil, version, tmp_path):
    refused_in_spite_of_its_manifest(spoil, version, tmp_path)


def test_the_model_that_writes_a_file_does_so_where_it_is_trusted(version, tmp_path):
    """So the tests above refuse something."""
    write_file(version, tmp_path)
    serve = text_models.tf.saved_model.load(str(version)).signatures["text"]
    serve(text=text_models.tf.constant(["x"]))
    assert (tmp_path / "executed").exists()


def test_a_process_that_does_not_end(version, monkeypatch):
    def late(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(InputError, match="must answer within 7 seconds"):
        predict(version, ["x"], timeout=7)


def test_a_process_that_dies(version, monkeypatch):
    def died(command, **kwargs):
        return subprocess.CompletedProcess(command, -6, None, "Check failed\nAborted (core dumped)")

    monkeypatch.setattr(subprocess, "run", died)
    outcome = keras_efficient("predict", version, "--text", "x")
    outcome.refused("ended its process with code -6 (Aborted (core dumped))")


@pytest.mark.parametrize(
    "answer",
    [
        {"labels": ["a"], "probabilities": [[float("nan"), 1.0]]},
        {"labels": ["a"], "probabilities": [0.5]},
        {"labels": ["a"], "probabilities": [[]]},
        {"labels": [], "probabilities": []},
        {"labels": ["a"], "probabilities": [[["x"]]]},
    ],
    ids=str,
)
def test_answers_that_are_none(answer, version, monkeypatch):
    monkeypatch.setattr(predict_module, "_ask", lambda *args: answer)
    with pytest.raises(InputError, match="labels, and a probability for each class"):
        predict(version, ["x"])
