"""Exports in several formats, of which the fastest is recommended."""

import json

import numpy as np
import pytest
from in_process_export import in_process as in_process
from zoo import FEW, ZOO, keras_of

import keras_efficient as ke
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters import _export, _export_fastest
from keras_efficient.exporters._destination import check_destination
from keras_efficient.exporters.onnx import export as onnx_export
from keras_efficient.versions._check_manifest import check_manifest

pytest.importorskip("ai_edge_litert", reason="LiteRT files are verified with ai-edge-litert")
QUICK = {"seconds": 0.05, "latency": False}


@pytest.fixture
def times(monkeypatch):
    """Give the candidates these durations instead of measured ones."""
    found = {"saved_model": [2.0, 2.0], "litert": [1.0, 3.0], "onnx": [4.0, 0.5]}

    def timed(reports, features, batches, lengths, threads, seconds):
        cases = ("batch 1", "batch 8")
        return {name: dict(zip(cases, found[name], strict=True)) for name in reports}, {}

    monkeypatch.setattr(_export_fastest, "_time", timed)
    return found


@pytest.mark.slow
def test_all_formats_are_kept_and_one_is_recommended(tmp_path):
    specimen = next(s for s in FEW if s.name == "kerashub-bert")
    model, (x, _) = specimen.make(), specimen.batch(4)
    report = ke.exporters.export_fastest(
        model, tmp_path / "m", sample=x, batches=[1, 3], lengths=[2, 9], **QUICK
    )
    assert set(report.candidates) == {"saved_model", "litert", "onnx"}
    for format, found in report.candidates.items():
        folder = tmp_path / "m" / found["directory"]
        assert check_manifest(folder)["recipe"]["format"] == format
        assert set(found["median_ms"]) == {
            f"batch {batch}, length {length}" for batch in (1, 3) for length in (2, 9)
        }
    speeds = {format: found["speed"] for format, found in report.candidates.items()}
    assert report.recommended == max(speeds, key=speeds.get) and min(speeds.values()) == 1
    assert report.directory.parent.name == report.recommended
    assert "(recommended)" in str(report)
    written = json.loads((tmp_path / "m" / "candidates.json").read_text())
    assert written == {"recommended": report.recommended, "candidates": report.candidates}


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_auto(library, tmp_path, times, in_process, monkeypatch):
    """One candidate fails its verification; the others go on, by their geometric means."""

    def wrong(*args, **options):
        raise VerificationError("Output 'outputs' of the served model differs by 1.")

    monkeypatch.setattr(_export, "export_litert", wrong)
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    x = np.ones((4, 3), "float32")
    version = ke.exporters.check_export(model, tmp_path / "m", sample=x, format="auto")
    assert version == tmp_path / "m" / "saved_model" / "1"
    report = ke.export(model, tmp_path / "m", sample=x, format="auto")
    assert report.recommended == "onnx" and report.directory == tmp_path / "m" / "onnx" / "1"
    assert report.candidates["onnx"]["speed"] == pytest.approx(2**0.5)
    assert (
        report.candidates["litert"] == {"refused": report.candidates["litert"]["refused"]}
        and "differs by 1" in report.candidates["litert"]["refused"]
    )
    assert (tmp_path / "m" / "saved_model" / "1" / "saved_model.pb").exists()
    # The next export has the next number, and one that exists is refused.
    again = ke.export(model, tmp_path / "m", sample=x, format="auto")
    assert again.directory == tmp_path / "m" / "onnx" / "2"


def test_a_format_without_its_extra_is_listed(tmp_path, times, in_process, monkeypatch):
    def missing():
        raise InputError("Install it: pip install 'keras_efficient[onnx]'.")

    monkeypatch.setattr(onnx_export, "check_installed", missing)
    model, x = ZOO[0].make(), ZOO[0].batch(2)[0]
    made = ke.exporters.export_fastest(
        model, tmp_path / "m/3", sample=x, formats=["saved_model", "onnx"], **QUICK
    )
    assert made.recommended == "saved_model" and made.directory.name == "3"
    assert "keras_efficient[onnx]" in made.candidates["onnx"]["refused"]
    with pytest.raises(InputError, match=r"keras_efficient\[onnx\]"):
        ke.exporters.export_fastest(model, tmp_path / "n", sample=x, formats=["onnx"], **QUICK)
    assert check_destination(tmp_path / "n").name == "1"


def test_bad_arguments(tmp_path):
    model, x = ZOO[0].make(), ZOO[0].batch(2)[0]
    for options, message in [
        ({"formats": ["pmml"]}, "`formats` must be some of"),
        ({"batches": [0]}, "`batches` must be positive"),
        ({"lengths": []}, "`lengths` must be positive"),
        ({"threads": 0}, "`threads` must be a positive"),
        ({"seconds": 0}, "`seconds` must be positive"),
    ]:
        with pytest.raises(InputError, match=message):
            ke.exporters.export_fastest(model, tmp_path / "m", sample=x, **options)
    assert not (tmp_path / "m").exists()
