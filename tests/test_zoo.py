"""The zoo itself: models of a library that is not installed skip their tests."""

import re
from pathlib import Path

import pytest
import zoo


def test_without_model_garden_its_cases_skip(monkeypatch):
    """tf-models-official exists for TensorFlow 2.20 only; with 2.21 they failed."""
    monkeypatch.setattr(zoo, "GARDEN", False)
    (specimen,) = [specimen for specimen in zoo.ZOO if specimen.name == "model-garden-bert"]
    with pytest.raises(pytest.skip.Exception, match="needs Model Garden, for TensorFlow"):
        specimen.make()


def test_model_garden_is_imported_where_its_absence_skips():
    imports = re.compile(r"^\s*(?:from|import) official\b", re.M)
    tests = Path(__file__).parent
    found = [path.name for path in tests.rglob("*.py") if imports.search(path.read_text())]
    assert found == ["zoo.py"]
