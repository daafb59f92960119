"""A Python interpreter whose imports are already done, for tests that start many processes.

Importing TensorFlow takes longer than most of what tests run in other processes. `command` starts a
server that imports the given modules once, and returns a command to use in place of
`[sys.executable]`. The command asks the server to fork, and then behaves like the forked process:
it has its output, exit code and signals. It takes `-c CODE` or a script, and their arguments.

Not for tests of what a process imports, nor with variables that Python reads when it starts.
"""

import array
import atexit
import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

_LENGTH = struct.Struct("!i")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What a server for training scripts imports. Not tf_keras, which imports quickly, so that tests
#: can import it after a seed was set.
TRAINING = (
    "tensorflow",
    "keras",
    "keras_efficient.callbacks._resume",
    "keras_efficient.callbacks._ema",
    "keras_efficient.distribute._multi_worker_strategy",
    "keras_efficient.distribute._strategy",
    "keras_efficient.optimizers._adamw",
    "keras_efficient.schedules._warmup",
    "keras_efficient.training._accumulate",
    "pytest",
)


@functools.cache
def command(*modules):
    """Return a command that runs Python with modules already imported."""
    folder = tempfile.mkdtemp(prefix="forked-python")
    path = os.path.join(folder, "socket")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    # Libraries that start their threads when they are imported would lose them in a fork.
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for name in ("TF_CONFIG", "TF_USE_LEGACY_KERAS"):
        environment.pop(name, None)
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", path, *modules], stdin=subprocess.PIPE, env=environment
    )

    @atexit.register
    def stop():
        server.stdin.close()
        server.wait()

    return [sys.executable, "-S", "-E", __file__, "run", path]


@functools.cache
def program(*modules):
    """Return the path of a program that does the same as `command`."""
    words = command(*modules)
    path = os.path.join(os.path.dirname(words[-1]), "python")
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
    os.chmod(path, 0o755)
    return path


# The process that the test sees.


def run(path, arguments):
    """Have the server fork a process, and end as it ends."""
    # Kept until there is a process to forward them to.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    connection = socket.socket(socket.AF_UNIX)
    while True:
        try:
            connection.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            # The server is starting.
            time.sleep(0.01)
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    data = json.dumps(request).encode("utf-8", "surrogateescape")
    socket.send_fds(connection, [_LENGTH.pack(len(data))], [1, 2])
    connection.sendall(data)
    pid = _read_number(connection)
    for number in _FORWARDED:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    code = _read_number(connection)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _read_number(connection):
    data = b""
    while len(data) < _LENGTH.size:
        part = connection.recv(_LENGTH.size - len(data))
        if not part:
            os._exit(70)
        data += part
    return _LENGTH.unpack(data)[0]


# The server.


def serve(path, modules):
    """Import modules, then fork a process for each connection, until the test process ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    import importlib

    for module in modules:
        importlib.import_module(module)
    import gc

    gc.collect()
    # Spares the forks from copying every page at their first collection.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin.buffer, selectors.EVENT_READ)
    connections = {}
    while True:
        for key, _ in selector.select(0.05 if connections else None):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, streams = _receive(connection)
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    selector.close()
                    for other in (connection, *connections.values()):
                        other.close()
                    _become(request, streams)
                for stream in streams:
                    os.close(stream)
                connections[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
                connection.sendall(_LENGTH.pack(pid))
            elif key.fileobj is sys.stdin.buffer:
                for pid in connections:
                    os.kill(pid, signal.SIGKILL)
                shutil.rmtree(os.path.dirname(path), ignore_errors=True)
                return
            else:
                # The test has killed its process.
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)
        while connections:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            connection = connections.pop(pid)
            with contextlib.suppress(KeyError):
                selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(_LENGTH.pack(os.waitstatus_to_exitcode(status)))
            connection.close()


def _receive(connection):
    head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    data, (length,) = b"", _LENGTH.unpack(head)
    while len(data) < length:
        data += connection.recv(length - len(data))
    return json.loads(data.decode("utf-8", "surrogateescape")), array.array("i", streams)


def _become(request, streams):
    """Turn a fork into a process that runs the requested program."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
            os.close(stream)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        _run_program([word for word in request["arguments"] if word != "-u"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code & 0xFF)


def _run_program(arguments):
    import runpy

    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path[0] = ""
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    mode, path, *rest = sys.argv[1:]
    run(path, rest) if mode == "run" else serve(path, rest)
