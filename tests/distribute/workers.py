"""Run a function of a test file in several worker processes, as a cluster on this machine."""

import json
import os
import pickle
import socket
import subprocess
import tempfile
from pathlib import Path

import forked_python

TESTS = Path(__file__).parent.parent
SCRIPT = """
import sys, pickle, importlib, os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = {paths!r}
function = getattr(importlib.import_module({module!r}), {name!r})
result = function(*pickle.load(open({arguments!r}, "rb")))
pickle.dump(result, open(sys.argv[1], "wb"))
"""


def free_ports(count):
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start(function, arguments, folder, configs):
    """Start one process per TF_CONFIG, None for none, each calling `function(*arguments)`."""
    folder = Path(folder)
    (folder / "arguments").write_bytes(pickle.dumps(arguments))
    code = SCRIPT.format(
        paths=[str(TESTS), str(TESTS / "distribute")],
        module=function.__module__.rpartition(".")[2],
        name=function.__name__,
        arguments=str(folder / "arguments"),
    )
    processes = []
    for index, config in enumerate(configs):
        env = {k: v for k, v in os.environ.items() if k not in ("TF_CONFIG",)}
        # Two processes that use all cores each would wait for one another.
        env |= {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}
        if config is not None:
            env["TF_CONFIG"] = config
        with open(folder / f"log{index}", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [
                        *forked_python.command(*forked_python.TRAINING),
                        "-c",
                        code,
                        str(folder / f"result{index}"),
                    ],
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def configs(count):
    """Return the TF_CONFIG of each of `count` workers on this machine."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def run(function, *arguments, count=2, timeout=600):
    """Return the results of `function(*arguments)` in `count` workers; 1: without TF_CONFIG."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start(function, arguments, folder, configs(count) if count > 1 else [None])
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        logs = [(Path(folder) / f"log{i}").read_text(errors="replace") for i in range(count)]
        text = "\n".join(f"--- worker {i}\n{log[-6000:]}" for i, log in enumerate(logs))
        assert codes == [0] * count, f"{codes}\n{text}"
        return [
            pickle.loads((Path(folder) / f"result{index}").read_bytes()) for index in range(count)
        ]
