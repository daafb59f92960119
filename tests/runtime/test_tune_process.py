"""`tune_process` sets what applies to this process, and names what it leaves with the reason."""

import json
import platform
import subprocess
import sys

import pytest

import keras_efficient as ke
from keras_efficient.runtime import _tune_process as module

CHILD = """
import json, os, resource, sys, time
import keras_efficient as ke
before = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
tuned = ke.tune_process() if sys.argv[1] == "tuned" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(64 << 20)  # The heap grows once.
start = faults()
for _ in range(4):
    bytearray(64 << 20)
found = {"faults": faults() - start, "before": before, "imported": "tensorflow" in sys.modules}
found["after"] = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
print(json.dumps({**found, "report": str(tuned)}))
"""


def child(kind, **environment):
    command = [sys.executable, "-c", CHILD, kind]
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no mallopt")
def test_freed_memory_is_used_again_and_nothing_changes_on_import():
    plain, tuned = child("plain"), child("tuned")
    # 4 arrays of 64 MiB are 65,536 pages of 4 KiB.
    assert tuned["faults"] < 1000 < plain["faults"]
    assert plain["before"] is None and plain["after"] is None
    assert not tuned["imported"]
    assert "glibc allocator: freed memory is kept for the next step" in tuned["report"]
    if platform.machine() == "x86_64":
        assert tuned["after"] == "1"
        assert "oneDNN: TF_ENABLE_ONEDNN_OPTS=1" in tuned["report"]


@pytest.fixture
def settings(monkeypatch):
    """An x86 machine with glibc, whose `mallopt` is not called, and TensorFlow not imported."""
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: FakeLibrary(1))
    monkeypatch.delenv(module.ONEDNN, raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    yield monkeypatch
    monkeypatch.delenv(module.ONEDNN, raising=False)


class FakeLibrary:
    def __init__(self, result):
        self.mallopt = lambda parameter, value: result


def test_what_does_not_apply_is_named_with_the_reason(settings):
    settings.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    settings.setenv(module.ONEDNN, "0")
    report = ke.tune_process()
    assert report.applied == {}
    assert report.skipped == {
        "glibc allocator": "LD_PRELOAD replaces glibc's allocator by jemalloc",
        "oneDNN": "TF_ENABLE_ONEDNN_OPTS=0 is set already",
    }
    assert str(report).splitlines()[1] == (
        "oneDNN: not set, TF_ENABLE_ONEDNN_OPTS=0 is set already"
    )


def test_tensorflow_must_not_have_been_imported(settings):
    settings.setitem(sys.modules, "tensorflow", None)
    report = ke.tune_process()
    assert list(report.applied) == ["glibc allocator"]
    assert "call ke.tune_process() before that" in report.skipped["oneDNN"]
    assert module.ONEDNN not in module.os.environ


def test_other_systems_are_left_alone(settings):
    settings.setattr(module.platform, "libc_ver", lambda: ("", ""))
    settings.setattr(module.platform, "machine", lambda: "arm64")
    report = ke.tune_process()
    assert report.applied == {}
    assert "not glibc" in report.skipped["glibc allocator"]
    assert "arm64" in report.skipped["oneDNN"]


def test_a_refusal_of_glibc_is_reported(settings):
    settings.setattr(module.ctypes, "CDLL", lambda _: FakeLibrary(0))
    assert "glibc refused" in ke.tune_process().skipped["glibc allocator"]
    assert ke.tune_process().skipped["oneDNN"] == "TF_ENABLE_ONEDNN_OPTS=1 is set already"
