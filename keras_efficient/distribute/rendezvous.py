"""All workers meet before TensorFlow starts, which would wait for ever for one that is missing.

Every worker takes its own port, so a second process that thinks it is the same worker finds it
taken. Those behind the first connect to the first, say who they are and what they have, and hear
whether all fit together. Then the ports are given to TensorFlow.
"""

import contextlib
import json
import socket
import time

from keras_efficient.errors import InputError

_LONGEST_MESSAGE = 65536


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
        return socket.create_server(("", port), backlog=len(cluster))
    except OSError as error:
        raise InputError(
            f"A worker's port must be free. Received: worker {cluster.index} at {cluster.address}, "
            f"whose port is taken ({error.strerror}). Is a worker of that index running already, "
            "or one of an earlier run left over? Stop it, or choose another port in "
            f"{cluster.source}."
        ) from error


def _receive_all(cluster, server, hello, deadline, timeout):
    """The first worker's part: hear everyone, tell everyone."""
    guests, trouble = {}, None
    with contextlib.ExitStack() as stack:
        while len(guests) < len(cluster) - 1 and trouble is None:
            left = deadline - time.monotonic()
            missing = [i for i in range(1, len(cluster)) if i not in guests]
            if left <= 0:
                trouble = _missing(cluster, missing, timeout)
                break
            server.settimeout(left)
            try:
                connection, (host, *_) = server.accept()
            except TimeoutError:
                continue
            stack.enter_context(connection)
            connection.settimeout(max(1.0, min(10.0, left)))
            said = _read(connection)
            # (A port scanner, or a health check.)
            if not isinstance(said, dict) or not {"index", "workers", "facts"} <= set(said):
                continue
            trouble = _differ(cluster, hello, said, guests, host)
            guests.setdefault(said["index"], []).append(connection)
        for connection in (c for group in guests.values() for c in group):
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"trouble": trouble}).encode() + b"\n")
                # They close first: the port is then free at once.
                connection.recv(1)
    if trouble:
        raise InputError(trouble)


def _differ(cluster, mine, said, guests, host):
    """What is wrong with a worker's introduction, or None."""
    index, theirs = said["index"], said["facts"]
    if said["workers"] != mine["workers"]:
        return (
            "All workers must have the same list of workers. Received: "
            f"{mine['workers']} on worker 0, {said['workers']} on worker {index} ({host}). Give "
            "all the same, in the same order."
        )
    if index == 0 or index in guests:
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
                heard = _read(first)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        else:
            if isinstance(heard, dict) and "trouble" in heard:
                if heard["trouble"]:
                    raise InputError(heard["trouble"])
                return
            reason = "it hung up"
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
    try:
        while not data.endswith(b"\n") and len(data) < _LONGEST_MESSAGE:
            part = connection.recv(4096)
            if not part:
                break
            data += part
        return json.loads(data)
    except (OSError, ValueError):
        return None
