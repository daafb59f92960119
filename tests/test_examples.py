"""The scripts in examples/ run, on a tiny model."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from test_docs import MODEL, here, quick_export, tiny  # noqa: F401 (fixtures)

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_ran(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 80
    header = path.read_text().split('"""')[1]
    for part in (f"python examples/{path.name}", "Ran on", "Not run"):
        assert part in header


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
