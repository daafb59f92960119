"""`submit`, which runs a job through Ray Train."""

import os
import signal
import subprocess
import sys
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import Job, check_at_least
from keras_efficient.distribute.launcher.parent_death import die_with_parent

_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


def submit(job: Job, workers: int) -> int:
    """Run a job through Ray Train's `TensorflowTrainer`, which sets each worker's TF_CONFIG.

    It uses the Ray cluster of RAY_ADDRESS, or starts one on this machine for the time of the job.
    All machines need the program at the same path, and this package and TensorFlow installed.

    Args:
        job: `Job`. Its interpreter is not used: workers run with Ray's.
        workers: number of workers.

    Returns:
        Exit code: 0 on success, 1 on failure.

    Raises:
        InputError: there are no workers, or Ray is not installed.
    """
    check_at_least("--workers", workers, 1)
    # Ray sets it for scripts that use tf.keras. What the user set is passed on instead.
    legacy_keras = os.environ.get(_LEGACY_KERAS)
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.train import (  # pyright: ignore[reportMissingImports]
            FailureConfig,
            RunConfig,
            ScalingConfig,
        )
        from ray.train.tensorflow import (  # pyright: ignore[reportMissingImports]
            TensorflowTrainer,
        )
    except ImportError as error:
        raise InputError(
            f"--ray needs Ray and its Train library. Received: {error}. Install them with "
            "pip install 'keras_efficient[ray]'."
        ) from error
    resources = {"CPU": job.threads_per_worker or 1}
    if job.gpus_per_worker:
        resources["GPU"] = job.gpus_per_worker
    started_here = not ray.is_initialized()
    trainer = TensorflowTrainer(
        run_program,
        train_loop_config={
            "program": list(job.program),
            "folder": os.getcwd(),
            "variables": job.thread_variables,
            "grace": job.grace,
            "legacy_keras": legacy_keras,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=bool(job.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=job.max_restarts)),
    )
    try:
        trainer.fit()
    # Ray's exceptions differ between versions; their messages say what failed.
    except Exception as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if started_here:
            ray.shutdown()
    return 0


def run_program(config: dict[str, Any]) -> None:
    """Run the program of one of Ray's workers in a process of its own.

    Ray calls this function in a thread, where Python allows no signal handlers. A new process can
    also set up TensorFlow from the start.

    Args:
        config: dict with "program", "folder", "variables", "grace" and "legacy_keras", the user's
            TF_USE_LEGACY_KERAS or None.

    Raises:
        RuntimeError: the program ended with a nonzero exit code.
    """
    environment = os.environ | config["variables"]
    environment.pop(_LEGACY_KERAS, None)
    if config["legacy_keras"] is not None:
        environment[_LEGACY_KERAS] = config["legacy_keras"]
    process = subprocess.Popen(
        [sys.executable, "-u", *config["program"]],
        cwd=config["folder"],
        env=environment,
        # Ray may kill this process at any time.
        preexec_fn=die_with_parent(),
    )
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(config["grace"])
            except subprocess.TimeoutExpired:
                process.kill()
    if code:
        raise RuntimeError(
            f"{config['program'][0]} ended with exit code {128 - code if code < 0 else code}."
        )
