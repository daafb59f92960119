"""The Python code in a model folder is never run, whoever answers the question."""

import ast
import json
import pathlib

import bert_folder
import pytest

import keras_efficient as ke

ROOT = pathlib.Path(ke.__file__).parent.parent
CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({marker!r}).touch()
from transformers import PretrainedConfig, TFBertForSequenceClassification
class Config(PretrainedConfig):
    model_type = "evil"
class Model(TFBertForSequenceClassification):
    pass
"""

# The `auto_map` of each kind of class that transformers looks up, for types of models that it
# knows ("bert"), knows without a TensorFlow classifier ("blip") and does not know ("evil").
CASES = [
    ("evil", {"AutoConfig": "evil.Config"}),
    ("evil", {"AutoConfig": "someone/repository--evil.Config"}),
    ("blip", {"TFAutoModelForSequenceClassification": "evil.Model"}),
    ("bert", {"AutoConfig": "evil.Config", "TFAutoModelForSequenceClassification": "evil.Model"}),
]


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_folders_python_does_not_run_though_standard_input_says_yes(
    tmp_path, monkeypatch, library
):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    for number, (model_type, auto_map) in enumerate(CASES):
        folder = bert_folder.write(tmp_path / str(number))
        (folder / "evil.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
        config = bert_folder.config() | {"model_type": model_type, "auto_map": auto_map}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
        )
        if model_type == "bert":
            # The library has this architecture; the folder's code is not needed.
            model, _ = ke.models.load(folder, library=library)
            assert type(model).__module__.partition(".")[0] in ("keras_hub", "transformers")
        else:
            own = "code of a model is never run" if library == "tf_keras" else "that KerasHub can"
            with pytest.raises(ke.InputError, match=own):
                ke.models.load(folder, library=library)
        assert not (folder / "ran").exists()
    assert not asked
    assert not (tmp_path / "marker").exists()


def test_every_auto_class_is_told_not_to_trust_remote_code():
    """Also for models by name, which need the network and are not loaded here."""
    calls = []
    for path in [*ROOT.glob("keras_efficient/**/*.py"), *ROOT.glob("examples/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            function = node.func if isinstance(node, ast.Call) else None
            if not isinstance(function, ast.Attribute):
                continue
            owner = ast.unparse(function.value).rpartition(".")[2]
            if owner.startswith(("Auto", "TFAuto", "auto")) and function.attr.startswith("from_"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append((path.name, ast.unparse(function), given.get("trust_remote_code")))
    assert len(calls) >= 5
    assert {trusted for *_, trusted in calls} == {"False"}, calls
