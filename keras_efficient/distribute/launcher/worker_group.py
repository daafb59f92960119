"""One attempt at a job: start all workers, watch them, stop all when one fails."""

import queue
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from keras_efficient.distribute.launcher.process import Process

#: How long a worker that was killed may take to be gone, in seconds: a remote one has to be told.
_KILLED = 5.0
_POLL = 0.1


@dataclass
class Attempt:
    """What became of an attempt.

    Attributes:
        processes: every worker's `Process`.
        failed: the first one that ended with another code than 0, or None.
    """

    processes: list = field(default_factory=list)
    failed: Process | None = None


def log_file(job, index, restart):
    """Where a worker's output goes, or None."""
    return Path(job.log_dir) / f"worker-{index}.attempt-{restart}.log" if job.log_dir else None


def attempt(job, workers, signals, output, restart=0):
    """Run all workers to their end.

    Args:
        job: `Job`.
        workers: list of `Worker`.
        signals: `Signals`, which says whether the launcher was told to stop.
        output: `Output`.
        restart: how often the job was started before; names the log files.

    Returns:
        `Attempt`.
    """
    made = Attempt()
    ended = queue.SimpleQueue()
    try:
        for worker in workers:
            made.processes.append(Process(worker, job.grace, log_file(job, worker.index, restart)))
        # After the last start: a process must not fork while its threads hold locks.
        for process in made.processes:
            process.watch(output, ended)
        _watch(made, job, signals, ended, output)
    finally:
        # Also after an exception of ours: no worker stays behind.
        for process in made.processes:
            if process.running:
                process.abandon()
            process.join()
    return made


def _watch(made, job, signals, ended, output):
    kill_at = abandon_at = None
    # Counted as they are taken from the queue: one that is gone may have failed.
    awaited = len(made.processes)
    while awaited:
        try:
            process = ended.get(timeout=_POLL)
            awaited -= 1
        except queue.Empty:
            process = None
        now = time.monotonic()
        if process is not None and process.code and made.failed is None and not signals.received:
            made.failed = process
            others = _numbers(p for p in made.processes if p.running)
            if others:
                output.note(
                    f"worker {process.worker.index} {ending(process)}; stopping {others} "
                    f"({job.grace:g} s until they are killed)"
                )
        if kill_at is None and (made.failed or signals.received):
            others = _numbers(p for p in made.processes if p.running)
            if signals.received and others:
                output.note(
                    f"received {signal.Signals(signals.received).name}; {others} may save and stop "
                    f"({job.grace:g} s until killed; a second signal kills at once)"
                )
            # SIGTERM whatever was received: on it a worker saves.
            _signal(made.processes, signal.SIGTERM)
            kill_at = now + job.grace
        impatient = signals.count > (0 if made.failed else 1)
        if kill_at is not None and abandon_at is None and (now >= kill_at or impatient):
            if others := _numbers(p for p in made.processes if p.running):
                output.note(f"killing {others}")
            _signal(made.processes, signal.SIGKILL)
            abandon_at = now + _KILLED
        if abandon_at is not None and now >= abandon_at:
            for process in made.processes:
                process.abandon()
            abandon_at = now + _KILLED


def _signal(processes, number):
    for process in processes:
        process.signal(number)


def _numbers(processes):
    numbers = [str(process.worker.index) for process in processes]
    return f"worker{'s' * (len(numbers) > 1)} {', '.join(numbers)}" if numbers else ""


def ending(process):
    """How a worker ended, in words."""
    code = process.code
    if code > 128 and code - 128 in set(signal.Signals):
        name = signal.Signals(code - 128).name
        # A shell, ssh and a script that catches the signal say it by this code.
        return f"was killed by {name}" if process.by_signal else f"exited with {code} ({name})"
    return f"exited with {code}"
