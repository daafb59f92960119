"""Helpers of the launcher's tests: small scripts to start, and functions that run the launcher."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import forked_python
import psutil

MAIN = ["-c", "from keras_efficient.cli import main; main()", "launch"]
#: What the launcher imports; its workers run in interpreters of their own.
LAUNCHER = ("keras_efficient.cli._app", "keras_efficient.cli._launch")
#: Seconds, far more than anything here takes, since a machine may be busy.
PATIENCE = 90
#: The start of every script.
HEAD = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
restart = int(os.environ["KERAS_EFFICIENT_RESTART"])
here = Path(__file__).parent
def ready():
    (here / f"new{task}").write_text(str(os.getpid()))
    (here / f"new{task}").rename(here / f"pid{task}")
def meet():
    ready()
    while not all((here / f"pid{i}").exists() for i in range(2)):
        time.sleep(0.02)
"""


@dataclass(frozen=True)
class Ended:
    """The exit code and output of the launcher."""

    code: int
    out: str
    err: str

    def lines(self, worker, stream="out"):
        """Return a worker's lines, without the prefix."""
        name = f"[worker {worker}] "
        return [line[len(name) :] for line in getattr(self, stream).splitlines() if name in line]

    def refused(self, *parts):
        """Assert exit code 2 and a message, without a traceback, that has all of `parts`."""
        assert self.code == 2, self
        assert "Traceback" not in self.err and not self.out, self
        for part in parts:
            assert part in " ".join(self.err.split()), f"{part!r} is not in: {self.err}"


def script(folder, body):
    """Write a script for the workers; returns its path."""
    path = folder / "script.py"
    path.write_text(HEAD + body)
    return path


def launch(*words, **variables):
    """Run the launcher to its end."""
    with start(*words, **variables) as process:
        return finish(process)


def start(*words, fresh=False, **variables):
    """Start the launcher, in a new interpreter if `fresh` or if PYTHON… variables are given."""
    fresh = fresh or any(name.startswith("PYTHON") for name in variables)
    python = [sys.executable] if fresh else forked_python.command(*LAUNCHER)
    environment = {**os.environ, "COLUMNS": "400", **variables}
    for name in ("TF_CONFIG", "CUDA_VISIBLE_DEVICES"):
        if name not in variables:
            environment.pop(name, None)
    return subprocess.Popen(
        [*python, *MAIN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def finish(process):
    """Wait for the launcher to end, and kill it if it does not."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the launcher hangs: {out}\n{err}") from None
    return Ended(process.returncode, out, err)


def pids(folder, count=2):
    """Return the process ids that the workers wrote, once all of them are ready."""
    files = [folder / f"pid{index}" for index in range(count)]
    until(lambda: all(file.exists() for file in files), "the workers did not start")
    return [int(file.read_text()) for file in files]


def until(happened, otherwise):
    """Wait until `happened()`; fail with the message `otherwise` if it takes too long."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def alive(pid):
    """Return whether a process is running; zombies are not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_path(folder, monkeypatch, **programs):
    """Put shell scripts, by name, before the other programs on the PATH."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
