"""`keras-efficient predict`: predictions, and damaged or malicious models."""

import json
import os
import pickle
import subprocess

import pytest
import text_models
from command_line import keras_efficient
from covering import sampled

from keras_efficient._errors import InputError
from keras_efficient.exporters._warmup import _field
from keras_efficient.exporters.inference_ops import cpu_check
from keras_efficient.serving import _predict as predict_module, _predict_script as predict_script
from keras_efficient.serving._predict import predict

TEXTS = ["a good film", "a dull one", "größer 🎬 good", ""]
EXPECTED = ["positive", "negative", "positive", "negative"]


@pytest.fixture
def version(tmp_path):
    return text_models.copy(tmp_path / "reviews" / "1")


@pytest.fixture
def no_child(monkeypatch):
    """Fail if a process is started, that is, if the model is not refused before it is loaded."""

    def run(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture
def here(monkeypatch):
    """Load and run the model in this process, without the seconds that a real process takes."""

    def run(version, signature, texts, serves, timeout):
        return json.loads(json.dumps(predict_script.predict(version, signature, texts, serves)))

    monkeypatch.setattr(predict_module, "_run", run)


# --- predictions ---------------------------------------------------------------------------------


def test_json(version, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["nowhere:1"]}}')
    outcome = keras_efficient(
        "predict", version.parent, *(w for t in TEXTS for w in ("--text", t)), "--json"
    )
    assert outcome.code == 0, outcome
    rows = json.loads(outcome.out)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == EXPECTED
    for row in rows:
        assert set(row["probabilities"]) == set(text_models.LABELS)
        assert row["probability"] == row["probabilities"][row["label"]] > 0.8
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_table_for_a_file(version, here, tmp_path):
    (tmp_path / "texts").write_bytes("\ufeffa [bold]good[/] film\r\n\n\na dull\u2028one\n".encode())
    outcome = keras_efficient("predict", version, "--file", tmp_path / "texts")
    assert outcome.code == 0, outcome
    rows = [line for line in outcome.out.splitlines() if "tive" in line]
    assert len(rows) == 2
    assert "a [bold]good[/] film" in rows[0] and "positive" in rows[0] and "0.8808" in rows[0]
    assert "a dull one" in rows[1] and "negative" in rows[1]


def test_labels_that_control_the_terminal(version, monkeypatch):
    """Clear the screen, set a title, by C1 codes, hide text, reverse it, and forge a row."""
    labels = ["\x1b[2Jgood", "\x1b]0;owned\x07", "\x9b31mred", "a\rb\x08c", "\u202egood", "a\nb"]
    labels += ["half \ud83d", "x" * 10_000, "größer 🎬"]
    rows = [
        {"text": f"\x1b[8m{label}", "label": label, "probability": 0.5, "probabilities": {label: 1}}
        for label in labels
    ]
    monkeypatch.setattr("keras_efficient.serving.predict", lambda *args, **kwargs: rows)
    for options in ((), ("--json",)):
        outcome = keras_efficient("predict", version, "--text", "x", *options)
        assert outcome.code == 0, outcome
        assert not set("\x1b\x07\x9b\r\x08\u202e\ud83d") & set(outcome.out)
        assert "größer 🎬" in outcome.out
    assert json.loads(outcome.out) == rows
    table = keras_efficient("predict", version, "--text", "x").out
    assert "\\u001b[2Jgood" in table and "\\u009b31mred" in table and "a b" in table
    assert len(table) < 10_000

    def refuse(*args, **kwargs):
        raise InputError("Received: \x1b[2J[bold]\x9b1m")

    monkeypatch.setattr("keras_efficient.serving.predict", refuse)
    outcome = keras_efficient("predict", version, "--text", "x")
    assert "Received: \\u001b[2J[bold]\\u009b1m" in outcome.err
    assert "\x9b" not in outcome.err


def test_a_pipe_of_texts_is_not_waited_for(version, no_child, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        keras_efficient("predict", version, "--file", path).refused("is a pipe or a device")


def test_more_texts_than_a_batch(version, here):
    rows = predict(version, TEXTS * 20)
    assert [row["label"] for row in rows] == EXPECTED * 20


@pytest.fixture
def probabilities_by_label(version, monkeypatch):
    """Return a function of (name and text of the labels file, probabilities of one example)."""

    def read(name, text, probabilities):
        (version / "assets" / "labels.txt").unlink(missing_ok=True)
        (version / name).parent.mkdir(exist_ok=True)
        (version / name).write_text(text)
        text_models.sign(version)
        result = {"outputs": {"label": ["x"], "probabilities": [probabilities]}}
        monkeypatch.setattr(predict_module, "_run", lambda *args: result)
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
def test_classes_are_numbered_where_labels_do_not_fit(name, text, probabilities_by_label):
    assert probabilities_by_label(name, text, [0.25, 0.75]) == {"0": 0.25, "1": 0.75}


def test_labels_as_json(probabilities_by_label):
    found = probabilities_by_label("assets.extra/labels.json", '["no", "yes"]', [0.25, 0.75])
    assert found == {"no": 0.25, "yes": 0.75}


@pytest.mark.parametrize("text", ["[" * 100_000, "nonsense"])
def test_labels_that_are_not_json(text, probabilities_by_label):
    with pytest.raises(InputError, match="A model must give the answers"):
        probabilities_by_label("assets.extra/labels.json", text, [0.25, 0.75])


def test_one_logit_is_two_classes(probabilities_by_label):
    found = probabilities_by_label("assets/labels.txt", "no\nyes\n", [0.25])
    assert found == {"no": 0.75, "yes": 0.25}


# --- signatures, texts and options ---------------------------------------------------------------


def test_a_model_without_a_text_signature(here, tmp_path):
    version = text_models.save(tmp_path / "1", signatures=("tokens",))
    outcome = keras_efficient("predict", version, "--text", "x")
    outcome.refused("must have a signature 'text'", "tokens", "Export it with tokenizer=")


def test_a_signature_without_a_text_input(version, here):
    outcome = keras_efficient("predict", version, "--text", "x", "--signature", "tokens")
    outcome.refused("one input of strings", "'tokens'", "token_ids")


def test_a_model_for_other_cpus(tmp_path, monkeypatch, here):
    """Simulated on any machine: the saved check expects another number than it gets."""
    monkeypatch.setattr(cpu_check, "PROBE", 9.0)
    version = text_models.save(tmp_path / "1", cpu_check=cpu_check.CpuCheck())
    outcome = keras_efficient("predict", version, "--text", "x")
    outcome.refused("exported for CPUs that add products of 8", "again with target avx2", version)


def test_no_text(version, no_child, tmp_path):
    keras_efficient("predict", version).refused("needs at least one text")
    (tmp_path / "empty").write_text("\n \n")
    outcome = keras_efficient("predict", version, "--file", tmp_path / "empty")
    outcome.refused("needs at least one text")
    for texts in ("a string", [], [1]):
        with pytest.raises(InputError, match="`texts` must be a list of strings"):
            predict(version, texts)


def test_bad_files_of_texts(version, no_child, tmp_path, monkeypatch):
    (tmp_path / "latin").write_bytes(b"gr\xf6\xdfer")
    for name, message in [("none", "not exist"), (".", "a folder"), ("latin", "UTF-8")]:
        keras_efficient("predict", version, "--file", tmp_path / name).refused(message)
    monkeypatch.setattr("keras_efficient.cli._predict._MAX_BYTES", 3)
    keras_efficient("predict", version, "--file", tmp_path / "latin").refused("at most")


def test_no_model(tmp_path, no_child):
    keras_efficient("predict", tmp_path / "none", "--text", "x").refused("folder must exist")
    keras_efficient("predict", tmp_path, "--text", "x").refused("must hold versions")


# --- damaged and malicious folders, refused before anything is loaded -----------------------------


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


DAMAGES = {
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


@pytest.mark.parametrize("kind", DAMAGES)
def test_refused_before_loading(kind, version, no_child):
    DAMAGES[kind](version)
    outcome = keras_efficient("predict", version.parent, "--text", "x")
    outcome.refused("Error: A")
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (version.parent / "executed").exists()


# --- damaged and malicious folders whose manifest was forged to match -----------------------------


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


def save_again(version, does):
    text_models.shutil.rmtree(version)
    text_models.save(version, does, signatures=("text",))


def write_file(version, tmp_path):
    save_again(version, text_models.writes(tmp_path / "executed"))
    return "the op WriteFile"


def python(version, tmp_path):
    save_again(version, text_models.calls_python(tmp_path / "executed"))
    return "the op PyFunc"


def nested_graph(version, tmp_path):
    """Nest functions 2,000 times as attributes of functions."""
    name_and_attributes = b""
    for _ in range(2000):
        value = _field(10, name_and_attributes)
        name_and_attributes = _field(2, _field(1, b"f") + _field(2, value))
    node = _field(5, _field(1, b"f") + _field(2, _field(10, name_and_attributes)))
    graph = _field(2, _field(2, _field(1, node)))
    (version / "saved_model.pb").write_bytes(graph)
    return "must be a SavedModel"


FORGERIES = [garbage, nested_graph, no_variables, no_asset, another_format, python]


def refused_despite_its_manifest(forge, version, tmp_path):
    message = forge(version, tmp_path)
    text_models.sign(version)
    outcome = keras_efficient("predict", version, "--text", "x")
    outcome.refused("Error: ", message)
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_refused_despite_its_manifest(forge, version, here, tmp_path):
    refused_despite_its_manifest(forge, version, tmp_path)


@sampled()
@pytest.mark.parametrize("forge", [write_file, broken_variables])
def test_refused_by_the_real_process(forge, version, tmp_path):
    refused_despite_its_manifest(forge, version, tmp_path)


def test_the_model_that_writes_a_file_does_so_if_loaded_unchecked(version, tmp_path):
    """The control of the tests above: the model they refuse is harmful."""
    write_file(version, tmp_path)
    serve = text_models.tf.saved_model.load(str(version)).signatures["text"]
    serve(text=text_models.tf.constant(["x"]))
    assert (tmp_path / "executed").exists()


def test_a_process_that_takes_too_long(version, monkeypatch):
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
    "result",
    [
        {"label": ["a"], "probabilities": [[float("nan"), 1.0]]},
        {"label": ["a"], "probabilities": [0.5]},
        {"label": ["a"], "probabilities": [[]]},
        {"label": [], "probabilities": []},
        {"label": ["a"], "probabilities": [[["x"]]]},
    ],
    ids=str,
)
def test_malformed_results(result, version, monkeypatch):
    monkeypatch.setattr(predict_module, "_run", lambda *args: {"outputs": result})
    with pytest.raises(InputError, match="must give the answers of its task"):
        predict(version, ["x"])
