"""Scripts that run exported models are confined: `_sandbox.py` gives up the other rights."""

import json
import socket
import subprocess
import sys
import textwrap

import pytest

from keras_efficient.runtime._run_script import _SANDBOX, run_script

#: Tries what a model should not do, and writes what happened to `result.json` in its folder.
SCRIPT = """
import json, os, pathlib, resource, signal, socket, subprocess, sys

folder, outside = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
result = {"arguments": sys.argv}

def attempt(name, action):
    try:
        action()
        result[name] = "done"
    except OSError as error:
        result[name] = type(error).__name__

def connect(kind):
    # The address is of a network that exists only in documents.
    with socket.socket(socket.AF_INET, kind) as made:
        made.settimeout(0.2)
        made.connect(("192.0.2.1", 9))

def connect_locally():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.connect(("127.0.0.1", int((outside / "port").read_text())))

attempt("read", lambda: (outside / "kept").read_text())
attempt("write", lambda: (outside / "written").write_text("x"))
attempt("overwrite", lambda: (outside / "kept").write_text("x"))
attempt("truncate", lambda: os.truncate(outside / "kept", 0))
attempt("delete", lambda: (outside / "kept").unlink())
attempt("rename", lambda: (outside / "kept").rename(folder / "kept"))
attempt("link", lambda: os.link(outside / "kept", folder / "linked"))
attempt("make a folder", lambda: (outside / "new").mkdir())
attempt("write through a link", lambda: (folder / "link").write_text("x"))
attempt("discard", lambda: open(os.devnull, "wb").close())
attempt("run a program", lambda: subprocess.run(["true"], check=True))
attempt("signal the parent", lambda: os.kill(os.getppid(), 0))
attempt("connect", connect_locally)
attempt("send", lambda: connect(socket.SOCK_DGRAM))
status = pathlib.Path("/proc/self/status").read_text()
result["status"] = dict(line.split(":\\t", 1) for line in status.splitlines() if ":\\t" in line)
result["core"] = resource.getrlimit(resource.RLIMIT_CORE)
result["file size"] = resource.getrlimit(resource.RLIMIT_FSIZE)
(folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the confined script could do."""
    outside = tmp_path_factory.mktemp("outside")
    folder = tmp_path_factory.mktemp("folder")
    (outside / "script.py").write_text(SCRIPT)
    (outside / "kept").write_text("kept")
    (folder / "link").symlink_to(outside / "through")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (outside / "port").write_text(str(server.getsockname()[1]))
        done = run_script(outside / "script.py", folder, timeout=60)
    assert not done.returncode, done.stderr
    result = json.loads((folder / "result.json").read_text())
    result["files"] = {path.name: path.read_bytes() for path in outside.iterdir() if path.is_file()}
    return result


def test_the_script_gets_its_own_arguments_and_its_files(result):
    script, folder = result["arguments"]
    assert script.endswith("script.py") and folder.endswith("folder0")
    assert result["read"] == "done"
    # dill, which `datasets` requires and TensorFlow imports if it is there, does so.
    assert result["discard"] == "done"


def test_no_new_privileges_and_no_core(result):
    assert result["status"]["NoNewPrivs"] == "1"
    # At most the capability to read files.
    assert int(result["status"]["CapEff"], 16) & ~(1 << 2) == 0
    assert result["core"] == [0, 0]
    assert 0 < result["file size"][1] <= 2**30


def test_no_network(result):
    unshare = "import ctypes; libc = ctypes.CDLL(None); "
    unshare += "raise SystemExit(libc.unshare(0x40000000) and libc.unshare(0x50000000))"
    if subprocess.run([sys.executable, "-c", unshare]).returncode:
        pytest.skip("the system allows no network namespaces, as some containers do")
    assert result["connect"] in ("OSError", "PermissionError")
    assert result["send"] in ("OSError", "PermissionError")


def test_no_writing_outside_the_folder_and_no_programs(result):
    """https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md: sandbox models."""
    landlockpy = pytest.importorskip("landlockpy")
    if not landlockpy.supported():
        pytest.skip("the kernel has no Landlock")
    refused = {"PermissionError", "OSError"}
    names = ("write", "overwrite", "delete", "rename", "link", "make a folder")
    names += ("write through a link", "run a program")
    assert {name: result[name] for name in names if result[name] not in refused} == {}
    assert result["files"]["kept"] == b"kept" or landlockpy.abi_version() < 3
    assert set(result["files"]) == {"script.py", "kept", "port"}
    if landlockpy.abi_version() >= 6:
        assert result["signal the parent"] == "PermissionError"


def test_what_the_system_does_not_offer_is_left_out(tmp_path):
    """Without landlockpy and without namespaces the script runs all the same."""
    script = tmp_path / "script.py"
    script.write_text("import pathlib, sys; pathlib.Path(sys.argv[1], 'done').touch()")
    driver = """
        import ctypes, runpy, sys

        sys.modules["landlockpy"] = None
        class Refusing:
            def __getattr__(self, name):
                return lambda *arguments: -1
        ctypes.CDLL = lambda *arguments, **options: Refusing()
        sys.argv = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(driver), str(_SANDBOX)]
    subprocess.run([*command, str(tmp_path), str(script), str(tmp_path)], check=True)
    assert (tmp_path / "done").exists()
