"""The command line itself: version, help, shell completion, and `python -m keras_efficient`."""

import os
import subprocess
import sys

import pytest
from command_line import keras_efficient

import keras_efficient as ke

COMMANDS = ("finetune", "demo", "launch", "serve", "predict", "bench")
#: Runs `python -m keras_efficient` with the arguments, then prints which libraries it imported.
RUN = """
import runpy, sys
try:
    runpy.run_module("keras_efficient", run_name="__main__", alter_sys=True)
finally:
    print(sorted({"tensorflow", "keras", "tf_keras", "transformers", "numpy"} & set(sys.modules)))
"""


def test_version():
    outcome = keras_efficient("--version")
    assert (outcome.code, outcome.out, outcome.err) == (
        0,
        f"keras_efficient {ke.__version__}\n",
        "",
    )


def test_help_names_all_commands_and_shell_completion():
    outcome = keras_efficient("--help")
    assert outcome.code == 0 and not outcome.err
    for word in (*COMMANDS, "--version", "Shell completion", "--install-completion"):
        assert word in outcome.out


def test_no_arguments_print_the_help():
    outcome = keras_efficient()
    assert outcome.code == 2
    assert "--install-completion" in outcome.out + outcome.err


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_python_m_imports_no_library(option):
    done = subprocess.run(
        [sys.executable, "-c", RUN, option], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *_, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert ("keras_efficient" if option == "--version" else "Usage: ") in done.stdout


def test_completion_of_commands():
    """The shell calls the program with these variables to complete "keras-efficient be"."""
    variables = {
        "_KERAS_EFFICIENT_COMPLETE": "complete_bash",
        "COMP_WORDS": "keras-efficient be",
        "COMP_CWORD": "1",
    }
    code = (
        "import sys; sys.argv = ['keras-efficient']; from keras_efficient.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        timeout=120,
    )
    assert done.stdout.split() == ["bench"], done
