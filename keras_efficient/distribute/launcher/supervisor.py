"""Run a job: again after a failure, if that can help."""

import signal
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.console import Output
from keras_efficient.distribute.launcher.signals import Signals
from keras_efficient.distribute.launcher.worker import pinning
from keras_efficient.distribute.launcher.worker_group import attempt, ending, log_file

#: A worker that fails the same way twice within so many seconds of its start will do so again.
_CRASH_LOOP_SECONDS = 5.0


def run(job, plan_workers):
    """Run a job's workers, all again up to `job.max_restarts` times after one failed.

    The script goes on from its last checkpoint by itself, with `ke.callbacks.Resume`.

    Args:
        job: `Job`.
        plan_workers: function from the number of restarts so far to the list of `Worker`.

    Returns:
        Exit code: 0 done; that of the first worker that failed, 128 + n if signal n killed it;
        128 + n if the launcher received signal n before any failed.

    Raises:
        InputError: the log folder cannot be made.
    """
    _make(job.log_dir)
    workers = plan_workers(0)
    output = Output(len(workers))
    if note := pinning(job, workers):
        output.note(note)
    restart, last = 0, None
    with Signals() as signals:
        while True:
            made = attempt(job, workers, signals, output, restart)
            if made.failed is None:
                if not signals.received:
                    return 0
                _report_stop(made, signals, output)
                return 128 + signals.received
            failure = made.failed.code, tuple(made.failed.tail.last_words()[-1:])
            quick = made.failed.seconds < _CRASH_LOOP_SECONDS
            why = _why_not(job, restart, made.failed, quick and failure == last, signals)
            if why:
                _report_failure(job, made, restart, why, output)
                return made.failed.code
            restart += 1
            output.note(
                f"restart {restart} of {job.max_restarts}, worker {made.failed.worker.index} "
                f"{ending(made.failed)}"
            )
            last = failure if quick else None
            workers = plan_workers(restart)
            if signals.received:
                return 128 + signals.received


def _make(folder):
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Found now, and not when the first worker runs.
        open(Path(folder) / "worker-0.attempt-0.log", "ab").close()
    except OSError as error:
        raise InputError(
            f"--log-dir must be a folder that can be written to. Received: {str(folder)!r} "
            f"({error.strerror}). Name another."
        ) from error


def _why_not(job, restart, failed, same_again, signals):
    """Why the job is not started again, or None."""
    if signals.received:
        return f"not restarted: received {signal.Signals(signals.received).name}"
    if failed.code == 2:
        return "not restarted: exit code 2 means bad input, which another start will not mend"
    if same_again:
        return (
            f"not restarted: twice in a row the same error within {_CRASH_LOOP_SECONDS:g} s of the "
            "start, which a third start will not mend"
        )
    if restart >= job.max_restarts:
        return f"no restarts left of {job.max_restarts}" if job.max_restarts else "not restarted"
    return None


def _report_failure(job, made, restart, why, output):
    """Who failed and how; its last words at the very end."""
    failed = made.failed
    index = failed.worker.index
    output.note(f"worker {index} failed first: it {ending(failed)} after {failed.seconds:.0f} s")
    for process in made.processes:
        if process is not failed:
            output.note(f"worker {process.worker.index} {_end(process)}")
    output.note(why)
    if log := log_file(job, index, restart):
        output.note(f"its output: {log}")
    words = failed.tail.last_words()
    output.note(f"the last words of worker {index}:" if words else f"worker {index} wrote nothing")
    if words:
        output.plain("\n".join(words))


def _report_stop(made, signals, output):
    for process in made.processes:
        output.note(f"worker {process.worker.index} {_end(process)}")
    output.note(f"stopped by {signal.Signals(signals.received).name}")


def _end(process):
    if not process.code:
        return "was done"
    return ending(process) + (" when stopped" if process.signalled else "")
