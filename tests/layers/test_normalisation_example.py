"""examples/normalisation.py runs on little data."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from test_docs import MODEL, here, tiny  # noqa: F401 (fixtures)

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "normalisation.py"


@pytest.mark.full
@pytest.mark.parametrize(
    ("library", "normalisation", "place"),
    [
        ("keras", "batch", "after"),
        ("tf_keras", "layer", "before"),
        ("keras", "layer", "before"),
        ("tf_keras", "batch", "before"),
    ],
)
def test_normalisation(library, normalisation, place, here, monkeypatch, capsys):  # noqa: F811
    options = {"library": library, "normalisation": normalisation, "place": place}
    options |= {"data": "reviews.csv", "model": MODEL, "limit": 50, "epochs": 1, "width": 8}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["normalisation.py", *words])
    model = runpy.run_path(str(EXAMPLE), run_name="__main__")["model"]
    # The mask reaches the last layer.
    ids = np.array([[5, 6, 7]])
    features = {"ids": ids, "positions": np.array([[1, 2, 3]])}
    padded = {name: np.pad(value, ((0, 0), (0, 4))) for name, value in features.items()}
    expected, received = model.predict(features), model.predict(padded)
    np.testing.assert_allclose(expected, received, atol=1e-5)
    assert f"{normalisation}, {place}: accuracy " in capsys.readouterr().out
    names = [type(layer).__name__ for layer in model.layers]
    chosen = {"batch": "MaskedBatchNormalization", "layer": "LayerNormalization"}
    assert names.count(chosen[normalisation]) == (5 if place == "before" else 4)
    assert names.count(chosen["layer" if normalisation == "batch" else "batch"]) == 0
