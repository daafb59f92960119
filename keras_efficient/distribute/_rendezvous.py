"""All workers meet before TensorFlow starts, which would wait for ever for one that is missing.

Every worker takes its own port, so a second process that thinks it is the same worker finds it
taken. Those behind the first connect to the first, say who they are and what they have, and hear
whether all fit together. Then the ports are given to TensorFlow.
"""

import contextlib
import json
import os
import selectors
import socket
import time

from keras_efficient._errors import InputError

_LONGEST_MESSAGE = 65536
#: How long the first worker waits for another one to take the answer.
_FAREWELL_SECONDS = 5.0


def meet(cluster, facts, timeout):
    """Wait until all workers of `cluster` are there and agree.

    Args:
        cluster: `Cluster`.
        facts: dict of JSON values in which all workers must agree ("replicas", "TensorFlow").
        timeout: float, seconds after which a worker that has not come is given up.

    Raises:
        InputError: this worker's port is taken, a worker did not come in time, one came twice, or
            workers differ; every worker that is there gets the error.
    """
    if len(cluster) == 1:
        return
    deadline = time.monotonic() + timeout
    hello = {"index": cluster.index, "workers": list(cluster.workers), "facts": facts}
    with _own_port(cluster) as server:
        if cluster.index == 0:
            _receive_all(cluster, server, hello, deadline, timeout)
        else:
            _introduce(cluster, hello, deadline, timeout)


def _own_port(cluster):
    port = int(cluster.address.rpartition(":")[2])
    try:
        # (All interfaces: the name by which others know this machine may not be one it has.)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=both, backlog=max(128, len(cluster))
        )
    except OSError as error:
        raise InputError(
            f"A worker's port must be free. Received: worker {cluster.index} at {cluster.address}, "
            f"whose port cannot be had ({os.strerror(error.errno)}). Is a worker of that "
            "index running already, or one of an earlier run left over? Stop it, or choose another "
            f"port in {cluster.source}."
        ) from error


def _receive_all(cluster, server, hello, deadline, timeout):
    """The first worker's part: hear everyone, tell everyone."""
    guests, refused, trouble = {}, [], None
    with contextlib.ExitStack() as stack:
        callers = stack.enter_context(selectors.DefaultSelector())
        server.setblocking(False)
        callers.register(server, selectors.EVENT_READ)
        while trouble is None and len(guests) < len(cluster) - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [i for i in range(1, len(cluster)) if i not in guests]
                trouble = _missing(cluster, missing, timeout)
            for key, _ in callers.select(max(0.0, left)):
                if key.fileobj is server:
                    with contextlib.suppress(OSError):
                        caller = _Caller(*server.accept())
                        stack.enter_context(caller.connection)
                        callers.register(caller.connection, selectors.EVENT_READ, caller)
                    continue
                caller = key.data
                if not caller.is_worker_after_reading():
                    callers.unregister(caller.connection)
                    caller.connection.close()
                    guests = {i: guest for i, guest in guests.items() if guest is not caller}
                elif caller.said:
                    wrong = _differ(cluster, hello, caller, guests)
                    trouble = trouble or wrong
                    if wrong:
                        refused.append(caller)
                    else:
                        guests[caller.said["index"]] = caller
        for guest in (*guests.values(), *refused):
            with contextlib.suppress(OSError):
                guest.connection.settimeout(_FAREWELL_SECONDS)
                guest.connection.sendall(json.dumps({"trouble": trouble}).encode() + b"\n")
        for guest in (*guests.values(), *refused):
            with contextlib.suppress(OSError):
                # They close first: the port is then free at once.
                guest.connection.recv(1)
    if trouble:
        raise InputError(trouble)


class _Caller:
    """Someone who has connected to the first worker: another one, or a stranger.

    None of them is waited for alone: a port scanner, or a health check, may never say a word.

    Attributes:
        said: dict, a worker's introduction, or None as long as it is not complete.
    """

    def __init__(self, connection, address):
        connection.setblocking(False)
        # (A socket for both has IPv4 in this form.)
        host = address[0].removeprefix("::ffff:")
        self.connection, self.host, self.said = connection, host, None
        self._heard = b""

    def is_worker_after_reading(self):
        """Read what is there; whether this can be, or is, a worker that has not hung up."""
        try:
            part = self.connection.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._heard += part
        if not part or self.said or len(self._heard) > _LONGEST_MESSAGE:
            return False
        if self._heard.endswith(b"\n"):
            self.said = _introduction(self._heard)
            return self.said is not None
        return True


def _introduction(line):
    """What a worker says first, or None if no worker says that."""
    said = _parsed(line)
    if not isinstance(said, dict) or not isinstance(said.get("index"), int):
        return None
    fits = isinstance(said.get("workers"), list) and isinstance(said.get("facts"), dict)
    return said if fits else None


def _differ(cluster, mine, caller, guests):
    """What is wrong with a worker's introduction, or None."""
    said, host = caller.said, caller.host
    index, theirs = said["index"], said["facts"]
    if said["workers"] != mine["workers"]:
        return (
            "All workers must have the same list of workers. Received: "
            f"{mine['workers']} on worker 0, {said['workers']} on worker {index} ({host}). Give "
            "all the same, in the same order."
        )
    if index in guests or not 0 < index < len(cluster):
        return (
            f"Every worker must have an index of its own. Received: two with index {index}, the "
            f"second from {host}. Number the workers from 0."
        )
    for name, value in mine["facts"].items():
        if theirs.get(name) != value:
            return (
                f"All workers must have the same {name}. Received: {value!r} on worker 0, "
                f"{theirs.get(name)!r} on worker {index} ({host}). Start them alike."
            )
    return None


def _introduce(cluster, hello, deadline, timeout):
    """The other workers' part."""
    host, _, port = cluster.workers[0].rpartition(":")
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as first:
                first.sendall(json.dumps(hello).encode() + b"\n")
                # It answers when it has heard all, or has waited as long as this one.
                first.settimeout(left + 10)
                heard, reason = _read(first), "it hung up"
        except TimeoutError:
            reason = "no answer"
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        else:
            if isinstance(heard, dict) and "trouble" in heard:
                if heard["trouble"]:
                    raise InputError(heard["trouble"])
                return
        time.sleep(min(0.2, max(0.0, left)))
    raise InputError(
        f"The first worker must be reachable within {timeout:g} seconds. Received: {reason} from "
        f"{cluster.workers[0]}, tried by worker {cluster.index}. Check that it runs, its address "
        f"in {cluster.source}, and the firewall; or give `start_timeout` more seconds."
    )


def _missing(cluster, missing, timeout):
    listed = ", ".join(f"worker {index} ({cluster.workers[index]})" for index in missing)
    return (
        f"All {len(cluster)} workers must start within {timeout:g} seconds. Received: nothing from "
        f"{listed}. Check that they run, their addresses in {cluster.source}, and that they can "
        f"reach {cluster.workers[0]}; or give `start_timeout` more seconds."
    )


def _read(connection):
    """One line of JSON, or None."""
    data = b""
    while not data.endswith(b"\n") and len(data) < _LONGEST_MESSAGE:
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return _parsed(data)


def _parsed(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
