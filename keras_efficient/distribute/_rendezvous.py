"""`rendezvous`, at which all workers meet before TensorFlow starts.

TensorFlow waits for ever for a worker that is missing. Here every worker first listens on its own
port, so that a second process with the same index finds the port in use. All others connect to the
first worker and send their list of workers and their settings. The first worker compares them and
tells everyone the result. Then the ports are released for TensorFlow.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.distribute._cluster import Cluster

_MAX_MESSAGE_BYTES = 65536
#: How long the first worker waits for another one to take the reply.
_REPLY_SECONDS = 5.0


def rendezvous(cluster: Cluster, settings: dict[str, Any], timeout: float) -> None:
    """Wait until all workers of a cluster have started and agree on their settings.

    Args:
        cluster: `Cluster`.
        settings: dict of JSON values that must be the same on all workers, by the names that the
            messages use: "number of replicas", "TensorFlow".
        timeout: float, seconds to wait for missing workers.

    Raises:
        InputError: this worker's port is in use, a worker did not start in time, two have the same
            index, or workers differ. Every worker that has started gets the error.
    """
    if len(cluster) == 1:
        return
    deadline = time.monotonic() + timeout
    hello = {"index": cluster.index, "workers": list(cluster.workers), "settings": settings}
    with _listen(cluster) as server:
        if cluster.index == 0:
            _accept_all(cluster, server, hello, deadline, timeout)
        else:
            _report_to_first(cluster, hello, deadline, timeout)


def _listen(cluster):
    port = int(cluster.address.rpartition(":")[2])
    try:
        # On all interfaces: this machine may not own the name by which the others know it.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=both, backlog=max(128, len(cluster))
        )
    except OSError as error:
        raise InputError(
            f"A worker's port must be free. Received: worker {cluster.index} at {cluster.address}, "
            f"whose port cannot be used ({os.strerror(error.errno or 0)}). Stop any other worker "
            "with that index, including one left over from an earlier run, or choose another port "
            f"in {cluster.source}."
        ) from error


def _accept_all(cluster, server, hello, deadline, timeout):
    """Receive every worker's message, compare them, and send everyone the result."""
    accepted, rejected, problem = {}, [], None
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        while problem is None and len(accepted) < len(cluster) - 1:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                missing = [i for i in range(1, len(cluster)) if i not in accepted]
                problem = _missing(cluster, missing, timeout)
            for key, _ in selector.select(max(0.0, remaining)):
                if key.fileobj is server:
                    with contextlib.suppress(OSError):
                        peer = _Peer(*server.accept())
                        stack.enter_context(peer.connection)
                        selector.register(peer.connection, selectors.EVENT_READ, peer)
                    continue
                peer = key.data
                if not peer.receive():
                    selector.unregister(peer.connection)
                    peer.connection.close()
                    accepted = {i: other for i, other in accepted.items() if other is not peer}
                elif peer.hello:
                    difference = _difference(cluster, hello, peer, accepted)
                    problem = problem or difference
                    if difference:
                        rejected.append(peer)
                    else:
                        accepted[peer.hello["index"]] = peer
        for peer in (*accepted.values(), *rejected):
            with contextlib.suppress(OSError):
                peer.connection.settimeout(_REPLY_SECONDS)
                peer.connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
        for peer in (*accepted.values(), *rejected):
            with contextlib.suppress(OSError):
                # The peers close first, so that the port is free immediately.
                peer.connection.recv(1)
    if problem:
        raise InputError(problem)


class _Peer:
    """A connection to the first worker, from another worker or from a stranger.

    All connections are read without blocking, since a port scanner or a health check may never
    send anything.

    Attributes:
        connection: socket.
        host: str, its address.
        hello: dict, the worker's message, or None until it is complete.
    """

    def __init__(self, connection, address):
        connection.setblocking(False)
        # A dual-stack socket shows IPv4 addresses in this form.
        host = address[0].removeprefix("::ffff:")
        self.connection, self.host, self.hello = connection, host, None
        self._received = b""

    def receive(self):
        """Read the available data; return False if this is no worker, or has disconnected."""
        try:
            part = self.connection.recv(_MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += part
        if not part or self.hello or len(self._received) > _MAX_MESSAGE_BYTES:
            return False
        if self._received.endswith(b"\n"):
            self.hello = _parse_hello(self._received)
            return self.hello is not None
        return True


def _parse_hello(line):
    """Return a worker's message, or None if the line is not one."""
    hello = _parse(line)
    if not isinstance(hello, dict) or not isinstance(hello.get("index"), int):
        return None
    valid = isinstance(hello.get("workers"), list) and isinstance(hello.get("settings"), dict)
    return hello if valid else None


def _difference(cluster, own, peer, accepted):
    """Return what is wrong with a worker's message, or None."""
    hello, host = peer.hello, peer.host
    index, settings = hello["index"], hello["settings"]
    if hello["workers"] != own["workers"]:
        return (
            "All workers must have the same list of workers. Received: "
            f"{own['workers']} on worker 0, {hello['workers']} on worker {index} ({host}). Give "
            "all of them the same list, in the same order."
        )
    if index in accepted or not 0 < index < len(cluster):
        return (
            f"Every worker must have an index of its own. Received: two with index {index}, the "
            f"second from {host}. Number the workers from 0."
        )
    for name, value in own["settings"].items():
        if settings.get(name) != value:
            return (
                f"All workers must have the same {name}. Received: {value!r} on worker 0, "
                f"{settings.get(name)!r} on worker {index} ({host}). Start them with the same "
                "settings."
            )
    return None


def _report_to_first(cluster, hello, deadline, timeout):
    """Send this worker's message to the first worker, and wait for the result."""
    host, _, port = cluster.workers[0].rpartition(":")
    reason = "no answer"
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(
                (host.strip("[]"), int(port)), timeout=remaining
            ) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                # The first worker replies once all have reported, or after the same timeout.
                connection.settimeout(remaining + 10)
                reply, reason = _read_reply(connection), "it disconnected"
        except TimeoutError:
            reason = "no answer"
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        else:
            if isinstance(reply, dict) and "problem" in reply:
                if reply["problem"]:
                    raise InputError(reply["problem"])
                return
        time.sleep(min(0.2, max(0.0, remaining)))
    raise InputError(
        f"The first worker must be reachable within {timeout:g} seconds. Received: {reason} from "
        f"{cluster.workers[0]}, tried by worker {cluster.index}. Check that it is running, its "
        f"address in {cluster.source}, and the firewall, or increase `start_timeout`."
    )


def _missing(cluster, missing, timeout):
    listed = ", ".join(f"worker {index} ({cluster.workers[index]})" for index in missing)
    return (
        f"All {len(cluster)} workers must start within {timeout:g} seconds. Received: nothing from "
        f"{listed}. Check that they are running, their addresses in {cluster.source}, and that "
        f"they can reach {cluster.workers[0]}, or increase `start_timeout`."
    )


def _read_reply(connection):
    """Read one line of JSON; return None if it is not JSON."""
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_MESSAGE_BYTES:
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return _parse(data)


def _parse(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
