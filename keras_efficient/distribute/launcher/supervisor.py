"""`run`: run a job, and start it again after a failure."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.console import Output
from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.signals import Signals
from keras_efficient.distribute.launcher.worker import Worker, pinning_note
from keras_efficient.distribute.launcher.worker_group import describe_end, log_file, run_attempt

#: Two equal failures in a row, both within so many seconds of the start, are a crash loop.
_CRASH_LOOP_SECONDS = 5.0
#: So are this many in a row, whatever they say.
_CRASH_LOOP_FAILURES = 5
#: Longest wait before a restart. The second quick failure in a row waits 1 s, the next 2 s, 4 s.
_LONGEST_WAIT_SECONDS = 60.0


def run(job: Job, plan_workers: Callable[[int], list[Worker]]) -> int:
    """Run a job's workers, and start all of them again after a failure.

    There are at most `job.max_restarts` restarts. With `ke.callbacks.Resume` the script continues
    from its last checkpoint.

    Args:
        job: `Job`.
        plan_workers: function from the number of restarts so far to the list of workers.

    Returns:
        Exit code: 0 on success; that of the first worker that failed, or 128 + n if signal n killed
        it; 128 + n if the launcher received signal n before any worker failed; 2 if workers did not
        join the cluster and `job.join_timeout` is given.

    Raises:
        InputError: the log folder cannot be created.
    """
    _create_log_dir(job.log_dir)
    workers = plan_workers(0)
    output = Output(len(workers))
    if note := pinning_note(job, workers):
        output.note(note)
    restart, previous, quick_failures = 0, None, 0
    with Signals() as signals:
        while True:
            attempt = run_attempt(job, workers, signals, output, restart)
            failed = attempt.failed
            if failed is None:
                if not signals.received:
                    return _report_alone(job, attempt, output)
                _report_stop(attempt, signals, output)
                return 128 + signals.received
            failure = failed.code, tuple(failed.tail.excerpt()[-1:])
            quick = failed.seconds < _CRASH_LOOP_SECONDS
            quick_failures = quick_failures + 1 if quick else 0
            same_again = quick and failure == previous
            reason = _reason_to_stop(job, restart, failed, same_again, quick_failures, signals)
            if reason:
                _report_failure(job, attempt, restart, reason, output)
                return failed.code or 1
            restart += 1
            wait = _seconds_to_wait(quick_failures)
            output.note(
                f"restart {restart} of {job.max_restarts}, worker {failed.worker.index} "
                f"{describe_end(failed)}" + (f"; waiting {wait:g} s" if wait else "")
            )
            _wait(wait, signals)
            if signals.received:
                return 128 + signals.received
            previous = failure if quick else None
            workers = plan_workers(restart)
            if signals.received:
                return 128 + signals.received


def _create_log_dir(folder):
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Checks that files can be written before any worker is started.
        open(Path(folder) / "worker-0.attempt-0.log", "ab").close()
    except OSError as error:
        raise InputError(
            f"--log-dir must be a folder that can be written to. Received: {str(folder)!r} "
            f"({error.strerror}). Name another."
        ) from error


def _seconds_to_wait(quick_failures):
    """Return how long to wait before a restart: twice as long after each quick failure."""
    return min(2.0 ** (quick_failures - 2), _LONGEST_WAIT_SECONDS) if quick_failures > 1 else 0.0


def _wait(seconds, signals):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not signals.received:
        time.sleep(min(0.1, seconds))


def _report_alone(job, attempt, output):
    """Say that workers trained alone, and return the exit code of a job without a failure."""
    if not attempt.alone:
        return 0
    if not attempt.stopped:
        listed = ", ".join(map(str, attempt.alone))
        output.note(
            f"worker{'s' * (len(attempt.alone) > 1)} {listed} of {len(attempt.processes)} never "
            "joined the cluster: each trained by itself, and what they wrote to the same path is "
            "that of the last one. Make the model in the scope of ke.strategy('auto'), and see "
            "--join-timeout"
        )
    return 0 if job.join_timeout is None else 2


def _reason_to_stop(job, restart, failed, same_again, quick_failures, signals):
    """Return why the job is not started again, or None."""
    if signals.received:
        return f"not restarted: received {signal.Signals(signals.received).name}"
    if failed.code == 2:
        return "not restarted: exit code 2 means bad input, which a restart cannot fix"
    if same_again:
        return (
            f"not restarted: twice in a row the same error within {_CRASH_LOOP_SECONDS:g} s of the "
            "start, which another restart cannot fix"
        )
    if quick_failures >= _CRASH_LOOP_FAILURES:
        return (
            f"not restarted: {quick_failures} times in a row a failure within "
            f"{_CRASH_LOOP_SECONDS:g} s of the start, which another restart cannot fix"
        )
    if restart >= job.max_restarts:
        return f"no restarts left of {job.max_restarts}" if job.max_restarts else "not restarted"
    return None


def _report_failure(job, attempt, restart, reason, output):
    """Print how the workers ended, and finally the last output of the one that failed first."""
    failed = attempt.failed
    index = failed.worker.index
    output.note(
        f"worker {index} failed first: it {describe_end(failed)} after {failed.seconds:.0f} s"
    )
    for process in attempt.processes:
        if process is not failed:
            output.note(f"worker {process.worker.index} {_describe(process)}")
    output.note(reason)
    if log := log_file(job, index, restart):
        output.note(f"its output: {log}")
    excerpt = failed.tail.excerpt()
    output.note(
        f"the last output of worker {index}:" if excerpt else f"worker {index} wrote nothing"
    )
    if excerpt:
        output.plain("\n".join(excerpt))


def _report_stop(attempt, signals, output):
    for process in attempt.processes:
        output.note(f"worker {process.worker.index} {_describe(process)}")
    output.note(f"stopped by {signal.Signals(signals.received).name}")


def _describe(process):
    if not process.code:
        return "finished"
    return describe_end(process) + (" when stopped" if process.signalled else "")
