"""`ssh_command`, which starts a worker on another machine and forwards signals to it."""

import os
import shlex
import shutil
from collections.abc import Iterable

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.worker import Worker

#: Runs on the other machine. Each line on ssh's standard input is a signal to send to the worker.
#: When the launcher is gone the input ends, which stops the worker as well, so that nothing keeps
#: running. The second part must not keep the output open, or ssh would wait for it.
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


def ssh_command(worker: Worker, grace: float) -> list[str]:
    """Return the command line that starts a worker through the system's ssh.

    The worker runs in the folder with the path of the current one. ssh does not ask for passwords,
    so it needs keys and an agent.

    Args:
        worker: `Worker` with a host. Only its own variables are added to the remote environment.
        grace: seconds from SIGTERM to SIGKILL if the connection is lost.
    """
    variables = [f"{name}={value}" for name, value in worker.variables.items()]
    script = _SCRIPT.format(
        folder=shlex.quote(os.getcwd()),
        command=shlex.join(["env", *variables, *worker.command]),
        grace=max(1, round(grace)),
    )
    # Run by sh, whatever the login shell is.
    options = ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15"]
    return ["ssh", "-T", *options, str(worker.host), shlex.join(["sh", "-c", script])]


def check_ssh(hosts: Iterable[str | None]) -> None:
    """Check that ssh is installed if any of the hosts is another machine.

    Args:
        hosts: destinations for ssh, None for this machine.

    Raises:
        InputError: ssh is needed and not on the PATH.
    """
    others = [host for host in hosts if host is not None]
    if others and shutil.which("ssh") is None:
        raise InputError(
            "Workers on other machines are started by ssh, which must be on the PATH. Received: "
            f"{', '.join(others)}, but no ssh. Install OpenSSH's client."
        )
