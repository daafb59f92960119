"""The comparison of outputs, and failures of the process that serves."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters import _verification as verification, _verify_script as verify_script
from keras_efficient.exporters._verification import check_reference, compare
from keras_efficient.runtime import _bare_process as bare_process


def outputs(*values, dtype="float32"):
    return {"y": np.array(values, dtype)}


def test_largest_difference_over_all_float_outputs():
    reference = outputs(1.0, 2.0) | {"z": np.float32([5.0])}
    served = outputs(1.25, 2.0) | {"z": np.float32([4.5])}
    assert compare(reference, served, tolerance=0.25) == 0.5


def test_tolerance_is_relative_to_large_outputs_and_absolute_for_small_ones():
    assert compare(outputs(100.0), outputs(100.5), tolerance=0.01) == 0.5
    assert compare(outputs(0.5), outputs(0.5078125), tolerance=0.01) == 0.0078125
    with pytest.raises(VerificationError, match=r"'y' .*differs by 0\.5 .*at most 0\.01 "):
        compare(outputs(0.5), outputs(1.0), tolerance=0.01)


@pytest.mark.parametrize("served", [np.nan, np.inf])
def test_not_a_number_served(served):
    with pytest.raises(VerificationError, match=r"differs by (nan|inf)"):
        compare(outputs(0.5), outputs(served), tolerance=1e9)


def test_masked_positions_may_be_infinite():
    assert compare(outputs(-np.inf, 1.0), outputs(-np.inf, 1.0), tolerance=0.0) == 0.0


def test_integers_are_compared_where_there_is_nothing_else():
    labels = {"label": np.array([1])}
    assert compare(outputs(1.0) | labels, outputs(1.0) | {"label": np.array([2])}, 0.0) == 0.0
    with pytest.raises(VerificationError, match=r"'label' .*differs by 1 "):
        compare(labels, {"label": np.array([2])}, tolerance=5.0)


def test_names_and_shapes():
    with pytest.raises(VerificationError, match=r"outputs of the model in memory, \['y'\]"):
        compare(outputs(1.0), {"z": np.ones(1)}, 1.0)
    with pytest.raises(VerificationError, match=r"shape \(1,\) in memory but \(2,\) served"):
        compare(outputs(1.0), outputs(1.0, 1.0), 1.0)


def test_nan_in_memory():
    with pytest.raises(InputError, match="Received: 1 NaN among the 2 values of output 'y'"):
        check_reference(outputs(1.0, np.nan))
    check_reference(outputs(1.0, -np.inf) | {"label": np.array([1])})


def test_failed_process_shows_its_last_lines(tmp_path):
    with pytest.raises(VerificationError, match=r"(?s)ended with code 1:\n.*does not exist"):
        verification.run_without_keras(tmp_path / "missing", {"x": np.ones(1)})


def child(monkeypatch, result):
    """Replace the process by one with this result; return the list of its calls."""
    calls = []

    def run(command, **options):
        calls.append((command, options))
        folder = Path(command[-1])
        np.savez(folder / "outputs.npz", y=np.ones(1))
        (folder / "result.json").write_text(json.dumps(result))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_found_keras_is_refused(monkeypatch):
    child(monkeypatch, {"forbidden_modules": ["tf_keras"]})
    with pytest.raises(VerificationError, match=r"must run without Keras.*\['tf_keras'\]"):
        verification.run_without_keras("m", {})


def test_process_does_not_join_the_training_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    calls = child(monkeypatch, {"forbidden_modules": [], "latency_ms": None})
    served, result = verification.run_without_keras("m", {"x": np.ones(2)})
    assert served["tokens"]["y"].tolist() == [1.0]
    assert result == {"latency_ms": None}
    (command, options) = calls[0]
    assert "-P" in command
    assert "TF_CONFIG" not in options["env"]
    assert options["env"]["CUDA_VISIBLE_DEVICES"] == "-1"
    assert options["env"]["PATH"] == os.environ["PATH"]


def test_timing_stops_at_the_deadline(monkeypatch):
    now = iter(range(10**6))
    monkeypatch.setattr(bare_process.time, "perf_counter", lambda: next(now))
    calls = []
    times = verify_script.milliseconds(lambda: calls.append(1))
    assert times == [1000.0] * len(times)
    assert 1 <= len(times) <= 2
    monkeypatch.setattr(bare_process.time, "perf_counter", lambda: 0.0)
    assert len(verify_script.milliseconds(lambda: None)) == verify_script.CALLS


def test_bare_scripts_import_neither_keras_nor_other_files_of_the_package():
    allowed = {"json", "resource", "sys", "time", "pathlib", "collections", "numpy", "tensorflow"}
    # To end with the process that started it.
    allowed |= {"os", "shutil", "threading"}
    for module in (verify_script, bare_process):
        source = Path(module.__file__).read_text()
        imported = re.findall(r"^\s*(?:import|from) ([\w.]+)", source, flags=re.MULTILINE)
        ours = {name for name in imported if name.startswith("keras_efficient")}
        assert ours <= {"keras_efficient.runtime._bare_process"}
        assert {name.partition(".")[0] for name in set(imported) - ours} <= allowed
