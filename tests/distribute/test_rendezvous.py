"""The rendezvous of workers before TensorFlow starts, with threads as workers."""

import contextlib
import json
import socket
import threading
import time

import pytest
import workers

import keras_efficient as ke
from keras_efficient.distribute._cluster import Cluster
from keras_efficient.distribute._rendezvous import rendezvous

SETTINGS = {"number of replicas": 1, "TensorFlow": "2.20.0", "seed": 0}
#: Seconds that a rendezvous without missing workers may take.
SOON = 5.0


def addresses(count=2):
    return tuple(f"127.0.0.1:{port}" for port in workers.free_ports(count))


class Meeting:
    """Workers that meet in threads; `errors` maps each one's name to its error, or None."""

    def __init__(self):
        self.errors, self.seconds, self._threads = {}, {}, []

    def come(self, listed, index, settings=SETTINGS, timeout=10.0, after=0.0, name=None):
        def attend():
            time.sleep(after)
            start = time.monotonic()
            try:
                rendezvous(Cluster(tuple(listed), index), settings, timeout)
                self.errors[name] = None
            except Exception as error:
                self.errors[name] = error
            self.seconds[name] = time.monotonic() - start

        name = index if name is None else name
        self._threads.append(threading.Thread(target=attend, daemon=True))
        self._threads[-1].start()

    def end(self):
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive(), "a worker hangs"
        return self.errors


def all_meet(listed, **kwargs):
    meeting = Meeting()
    for index in range(len(listed)):
        meeting.come(listed, index, **kwargs)
    return meeting


def assert_all_met(meeting, count):
    assert meeting.end() == dict.fromkeys(range(count))


def assert_errors(meeting, *messages):
    """Check that every worker got an InputError that contains each of `messages`."""
    errors = meeting.end()
    for name, error in errors.items():
        assert isinstance(error, ke.InputError), f"worker {name}: {error!r}"
        for message in messages:
            assert message in str(error), f"worker {name}: {error}"


def call(address, within=5.0):
    """Open a raw connection to a worker, once it listens."""
    host, port = address.split(":")
    end = time.monotonic() + within
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=within)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.02)


def introduce(address, **hello):
    """Send a worker's message to the worker at `address`; return the connection."""
    connection = call(address)
    connection.sendall(json.dumps(hello).encode() + b"\n")
    return connection


def problem(connection):
    return json.loads(connection.makefile().readline())["problem"]


def is_bindable(address):
    with contextlib.suppress(OSError), socket.socket() as plain:
        # Without SO_REUSEADDR: not even a connection in TIME_WAIT may be left.
        plain.bind(("", int(address.rpartition(":")[2])))
        return True
    return False


# --- all is well ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 8])
def test_all_meet(count):
    listed = addresses(count)
    meeting = all_meet(listed)
    assert_all_met(meeting, count)
    assert max(meeting.seconds.values()) < SOON


def test_one_worker_meets_nobody():
    (port,) = workers.free_ports(1)
    with socket.create_server(("", port)):
        # Its port is not used.
        rendezvous(Cluster((f"127.0.0.1:{port}",), 0), SETTINGS, 0.1)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_worker_may_come_late(late):
    listed = addresses(3)
    meeting = Meeting()
    for index in range(3):
        meeting.come(listed, index, after=1.0 if index == late else 0.0)
    assert_all_met(meeting, 3)


def test_the_ports_are_free_at_once_and_workers_can_meet_again():
    listed = addresses(3)
    for _ in range(3):
        assert_all_met(all_meet(listed), 3)
        assert all(map(is_bindable, listed))


def test_a_meeting_that_failed_leaves_the_ports_free():
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0)
    meeting.come(listed, 1, {**SETTINGS, "seed": 1})
    assert_errors(meeting, "same seed")
    assert_all_met(all_meet(listed), 2)


# --- a worker is missing -------------------------------------------------------------------------


def test_a_missing_worker_is_named_to_all():
    listed = addresses(4)
    meeting = Meeting()
    for index in (0, 1, 3):
        meeting.come(listed, index, timeout=2.0)
    assert_errors(
        meeting,
        "All 4 workers must start within 2 seconds. Received: nothing from "
        f"worker 2 ({listed[2]}). Check that they are running",
        "in given",
        listed[0],
    )
    assert set(meeting.errors) == {0, 1, 3}
    assert max(meeting.seconds.values()) < 2 + SOON


def test_every_missing_worker_is_named():
    listed = addresses(3)
    meeting = Meeting()
    meeting.come(listed, 0, timeout=0.5)
    assert_errors(meeting, f"worker 1 ({listed[1]}), worker 2 ({listed[2]})")


def test_the_first_worker_is_missing():
    listed = addresses(3)
    meeting = Meeting()
    for index in (1, 2):
        meeting.come(listed, index, timeout=1.5)
    assert_errors(
        meeting,
        "The first worker must be reachable within 1.5 seconds. Received: Connection refused from "
        f"{listed[0]}, tried by worker",
    )
    assert max(meeting.seconds.values()) < 1.5 + SOON


def test_the_first_workers_name_is_unknown():
    (port,) = workers.free_ports(1)
    meeting = Meeting()
    meeting.come((f"no-such-host.invalid:{port}", *addresses(1)), 1, timeout=1.0)
    assert_errors(meeting, "The first worker must be reachable", "no-such-host.invalid")


def test_something_else_is_at_the_first_workers_address():
    listed = addresses(2)
    host, port = listed[0].split(":")
    with socket.create_server((host, int(port))) as server:
        meeting = Meeting()
        meeting.come(listed, 1, timeout=1.5)
        connection, _ = server.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()
        server.close()
        assert_errors(meeting, "The first worker must be reachable within 1.5 seconds")


def test_a_worker_that_died_while_it_waited_may_come_again():
    listed = addresses(3)
    meeting = Meeting()
    meeting.come(listed, 0)
    hello = {"index": 1, "workers": list(listed), "settings": SETTINGS}
    introduce(listed[0], **hello).close()
    time.sleep(0.2)
    meeting.come(listed, 1)
    meeting.come(listed, 2)
    assert_all_met(meeting, 3)


def test_a_worker_that_died_while_it_waited_is_missing():
    listed = addresses(3)
    meeting = Meeting()
    meeting.come(listed, 0, timeout=1.5)
    introduce(listed[0], index=1, workers=list(listed), settings=SETTINGS).close()
    meeting.come(listed, 2, timeout=1.5)
    assert_errors(meeting, f"nothing from worker 1 ({listed[1]}).")


# --- workers do not fit --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_taken(index):
    listed = addresses(2)
    with socket.create_server(("", int(listed[index].split(":")[1]))):
        meeting = Meeting()
        meeting.come(listed, index)
        assert_errors(
            meeting,
            f"A worker's port must be free. Received: worker {index} at {listed[index]}, whose "
            "port cannot be used (Address already in use)",
            "or choose another port in given.",
        )
    assert max(meeting.seconds.values()) < SOON


def test_two_processes_that_are_the_same_worker():
    listed = addresses(3)
    meeting = Meeting()
    meeting.come(listed, 0)
    meeting.come(listed, 1)
    meeting.come(listed, 1, name="again", after=0.5)
    meeting.come(listed, 2, after=1.5)
    errors = meeting.end()
    assert "A worker's port must be free" in str(errors.pop("again"))
    assert errors == dict.fromkeys(range(3))


def test_two_on_different_machines_with_one_index():
    listed = addresses(3)
    meeting = Meeting()
    meeting.come(listed, 0)
    meeting.come(listed, 1)
    # Let worker 1 arrive first.
    time.sleep(0.5)
    with introduce(listed[0], index=1, workers=list(listed), settings=SETTINGS) as second:
        told = problem(second)
    message = (
        "Every worker must have an index of its own. Received: two with index 1, the second from "
        "127.0.0.1. Number the workers from 0."
    )
    assert told == message
    assert_errors(meeting, message)
    assert set(meeting.errors) == {0, 1}


@pytest.mark.parametrize("index", [0, 2, -1])
def test_an_index_that_cannot_be(index):
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0)
    with introduce(listed[0], index=index, workers=list(listed), settings=SETTINGS) as second:
        assert f"two with index {index}" in problem(second)
    assert_errors(meeting, "Every worker must have an index of its own")


@pytest.mark.parametrize(
    ("fact", "value", "shown"),
    [
        ("number of replicas", 2, "2"),
        ("seed", None, "None"),
        ("TensorFlow", "2.21.0", "'2.21.0'"),
    ],
)
def test_workers_that_differ(fact, value, shown):
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0)
    meeting.come(listed, 1, {**SETTINGS, fact: value})
    assert_errors(
        meeting,
        f"All workers must have the same {fact}. Received: {SETTINGS[fact]!r} on worker 0, {shown} "
        "on worker 1 (127.0.0.1). Start them with the same settings.",
    )
    assert max(meeting.seconds.values()) < SOON


def test_workers_with_different_lists():
    listed, other = addresses(2), addresses(1)
    meeting = Meeting()
    meeting.come(listed, 0)
    meeting.come((listed[0], *other), 1)
    assert_errors(
        meeting,
        f"All workers must have the same list of workers. Received: {list(listed)} on worker 0, "
        f"{[listed[0], *other]} on worker 1 (127.0.0.1). Give all of them the same list, in "
        "the same order.",
    )


def test_all_who_are_there_hear_that_one_differs():
    listed = addresses(3)
    meeting = Meeting()
    meeting.come(listed, 0)
    meeting.come(listed, 1)
    meeting.come(listed, 2, {**SETTINGS, "seed": 5}, after=0.5)
    assert_errors(meeting, "All workers must have the same seed. Received: 0 on worker 0, 5 on wor")
    assert set(meeting.errors) == {0, 1, 2}


# --- strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        b"\n",
        b"\x00\xff\xfe garbage \n",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"{}\n",
        b"[1, 2]\n",
        b'{"index": [1], "workers": [], "settings": {}}\n',
        b'{"index": 1, "workers": 3, "settings": {}}\n',
        b'{"index": 1, "workers": [], "settings": []}\n',
        b"[" * 60_000 + b"\n",
        b"9" * 60_000 + b"\n",
        b"x" * 1_000_000,
    ],
    ids=lambda words: repr(words[:12]),
)
def test_a_stranger_that_talks_is_not_listened_to(words):
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0)
    with call(listed[0]) as stranger:
        with contextlib.suppress(OSError):
            stranger.sendall(words)
        time.sleep(0.1)
        meeting.come(listed, 1)
        assert_all_met(meeting, 2)
    assert max(meeting.seconds.values()) < SOON


def test_strangers_that_are_silent_or_slow_or_gone_do_not_hold_up_anyone():
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0, timeout=20.0)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(call(listed[0]))
            stack.enter_context(call(listed[0])).sendall(b'{"index": 1,')
            call(listed[0]).close()
        meeting.come(listed, 1, timeout=20.0)
        assert_all_met(meeting, 2)
    assert max(meeting.seconds.values()) < SOON


def test_a_silent_stranger_does_not_lengthen_the_wait():
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0, timeout=1.5)
    with call(listed[0]):
        assert_errors(meeting, "nothing from worker 1")
    assert meeting.seconds[0] < 1.5 + SOON


def test_a_worker_whose_words_come_in_pieces_is_heard():
    listed = addresses(2)
    meeting = Meeting()
    meeting.come(listed, 0)
    line = json.dumps({"index": 1, "workers": list(listed), "settings": SETTINGS}).encode() + b"\n"
    with call(listed[0]) as slow:
        for start in range(0, len(line), 20):
            slow.sendall(line[start : start + 20])
            time.sleep(0.01)
        assert problem(slow) is None
    assert_all_met(meeting, 1)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_workers_meet_over_ipv6():
    assert_all_met(all_meet([f"[::1]:{port}" for port in workers.free_ports(2)]), 2)
