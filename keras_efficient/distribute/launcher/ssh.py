"""A worker on another machine: the command that ssh runs there, and its remote control."""

import os
import shlex
import shutil

from keras_efficient._errors import InputError

#: Runs on the other machine. What is written to ssh's standard input is the signal to send; its
#: end, by which ssh reports that we are gone, stops the worker too: nothing stays behind. The
#: second part must not hold the output open, or ssh would wait for it.
_SCRIPT = """cd {folder} || exit 1
exec 3<&0
{command} </dev/null 3<&- &
worker=$!
{{
  while read -r signal; do kill -s "$signal" "$worker"; done
  kill -s TERM "$worker"
  sleep {grace}
  kill -s KILL "$worker"
}} <&3 >/dev/null 2>&1 &
control=$!
exec 3<&-
wait "$worker"
code=$?
kill "$control" 2>/dev/null
exit "$code"
"""


def ssh_command(worker, grace):
    """The words that start a worker through the system's ssh, in this folder's path there.

    Args:
        worker: `Worker` with a host. Of the environment only its variables go along.
        grace: seconds from SIGTERM to SIGKILL if the connection ends.

    Returns:
        List of words. ssh asks for no password: use keys, and an agent.
    """
    variables = [f"{name}={value}" for name, value in worker.variables.items()]
    script = _SCRIPT.format(
        folder=shlex.quote(os.getcwd()),
        command=shlex.join(["env", *variables, *worker.command]),
        grace=max(1, round(grace)),
    )
    # Whatever the login shell there is, sh reads the script.
    options = ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15"]
    return ["ssh", "-T", *options, worker.host, shlex.join(["sh", "-c", script])]


def check_ssh(hosts):
    """Refuse to start what needs ssh where there is none.

    Raises:
        InputError: one of `hosts` is another machine, and ssh is not on the PATH.
    """
    others = [host for host in hosts if host is not None]
    if others and shutil.which("ssh") is None:
        raise InputError(
            "Workers on other machines are started by ssh, which must be on the PATH. Received: "
            f"{', '.join(others)}, and no ssh. Install OpenSSH's client."
        )
