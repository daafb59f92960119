"""`run_attempt`: start all workers, watch them, and stop all of them when one fails."""

import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keras_efficient.distribute.launcher.console import Output
from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.join_watch import NOTICE_SECONDS, JoinWatch
from keras_efficient.distribute.launcher.process import Process
from keras_efficient.distribute.launcher.signals import Signals
from keras_efficient.distribute.launcher.worker import Worker

#: Seconds that a killed worker may take to end; a remote one has to receive the signal first.
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.1


@dataclass
class Attempt:
    """The result of starting all workers once.

    Attributes:
        processes: each worker's `Process`.
        failed: the first process that ended with a nonzero exit code, or None.
        alone: indices of the workers that never joined the cluster.
        stopped: whether the job was stopped because of them.
    """

    processes: list[Process] = field(default_factory=list)
    failed: Process | None = None
    alone: list[int] = field(default_factory=list)
    stopped: bool = False


def log_file(job: Job, index: int, restart: int) -> Path | None:
    """Return the file for a worker's output, or None."""
    return Path(job.log_dir) / f"worker-{index}.attempt-{restart}.log" if job.log_dir else None


def run_attempt(
    job: Job, workers: Sequence[Worker], signals: Signals, output: Output, restart: int = 0
) -> Attempt:
    """Run all workers until they have ended.

    Args:
        job: `Job`.
        workers: list of `Worker`.
        signals: `Signals`, which says whether the launcher was told to stop.
        output: `Output`.
        restart: how often the job was started before; names the log files. Default: 0.
    """
    attempt = Attempt()
    ended: queue.SimpleQueue[Process] = queue.SimpleQueue()
    try:
        for worker in workers:
            log = log_file(job, worker.index, restart)
            attempt.processes.append(Process(worker, job.grace, log))
        # After the last start, because forking while threads hold locks is unsafe.
        for process in attempt.processes:
            process.watch(output, ended)
        _watch(attempt, job, signals, ended, output)
    finally:
        # No worker may stay behind, even after an error in the launcher.
        for process in attempt.processes:
            if process.running:
                process.abandon()
            process.join()
    return attempt


def _watch(attempt, job, signals, ended, output):
    kill_at = abandon_at = None
    joining = JoinWatch(attempt.processes, job.join_timeout or NOTICE_SECONDS)
    # Counted as they are taken from the queue, because a process that has ended may have failed.
    awaited = len(attempt.processes)
    while awaited:
        try:
            process = ended.get(timeout=_POLL_SECONDS)
            awaited -= 1
        except queue.Empty:
            process = None
        now = time.monotonic()
        joining.look()
        attempt.alone = joining.alone
        stopping = signals.received or attempt.stopped
        if process is not None and process.code and attempt.failed is None and not stopping:
            attempt.failed = process
            others = _numbers(p for p in attempt.processes if p.running)
            if others:
                output.note(
                    f"worker {process.worker.index} {describe_end(process)}; stopping {others} "
                    f"({job.grace:g} s until they are killed)"
                )
        if kill_at is None and awaited and (overdue := joining.overdue()):
            attempt.stopped = job.join_timeout is not None
            output.note(_describe_alone(overdue, joining.seconds, stopped=attempt.stopped))
        if kill_at is None and (attempt.failed or signals.received or attempt.stopped):
            others = _numbers(p for p in attempt.processes if p.running)
            if signals.received and others:
                output.note(
                    f"received {signal.Signals(signals.received).name}; {others} may save and stop "
                    f"({job.grace:g} s until killed; a second signal kills at once)"
                )
            # Always SIGTERM, on which a worker saves its state.
            _signal(attempt.processes, signal.SIGTERM)
            kill_at = now + job.grace
        impatient = signals.count > (0 if attempt.failed else 1)
        if kill_at is not None and abandon_at is None and (now >= kill_at or impatient):
            if others := _numbers(p for p in attempt.processes if p.running):
                output.note(f"killing {others}")
            _signal(attempt.processes, signal.SIGKILL)
            abandon_at = now + _KILL_SECONDS
        if abandon_at is not None and now >= abandon_at:
            for process in attempt.processes:
                process.abandon()
            abandon_at = now + _KILL_SECONDS


def _describe_alone(indices, seconds, *, stopped):
    who = f"worker{'s' * (len(indices) > 1)} {', '.join(map(str, indices))}"
    text = f"{who} {'have' if len(indices) > 1 else 'has'} not joined the cluster for"
    if stopped:
        return f"{text} {seconds:g} s, the limit of --join-timeout; stopping all workers"
    return (
        f"{text} {seconds:g} s. If the script never does, each worker trains a model of its own, "
        "and all write the same files: make the model in the scope of ke.strategy('auto')"
    )


def _signal(processes, number):
    for process in processes:
        process.signal(number)


def _numbers(processes):
    numbers = [str(process.worker.index) for process in processes]
    return f"worker{'s' * (len(numbers) > 1)} {', '.join(numbers)}" if numbers else ""


def describe_end(process: Process) -> str:
    """Describe how a worker ended."""
    code = process.code
    if code is not None and code > 128 and code - 128 in set(signal.Signals):
        name = signal.Signals(code - 128).name
        # A shell, ssh, or a script that handles the signal exits with this code.
        return f"was killed by {name}" if process.by_signal else f"exited with {code} ({name})"
    return f"exited with {code}"
