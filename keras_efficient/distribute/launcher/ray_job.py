"""A job on Ray: its TensorFlow trainer starts the workers."""

import os
import signal
import subprocess
import sys

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import at_least
from keras_efficient.distribute.launcher.parent_death import before_start


def submit(job, workers):
    """Run a job through Ray Train's `TensorflowTrainer`, which gives each worker its TF_CONFIG.

    Ray is that of RAY_ADDRESS, or one on this machine for the time of the job. The workers find the
    program at the same path, and this package and TensorFlow installed.

    Args:
        job: `Job`; its interpreter is Ray's.
        workers: how many.

    Returns:
        Exit code: 0 done, 1 failed.

    Raises:
        InputError: fewer than one worker, or Ray is not installed.
    """
    at_least("--workers", workers, 1)
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.tensorflow import TensorflowTrainer
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
    # Ray's own exceptions differ from version to version; all say what failed.
    except Exception as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if started_here:
            ray.shutdown()
    return 0


def run_program(config):
    """What each of Ray's workers does: run the program, in a process of its own.

    Ray calls this in a thread, where Python allows no signal handlers; and a process can set up
    TensorFlow afresh.

    Raises:
        RuntimeError: the program ended with another code than 0.
    """
    environment = os.environ | config["variables"]
    # Ray sets this for scripts that call tf.keras; here the script decides for itself.
    environment.pop("TF_USE_LEGACY_KERAS", None)
    process = subprocess.Popen(
        [sys.executable, "-u", *config["program"]],
        cwd=config["folder"],
        env=environment,
        # Ray may kill this process at any time.
        preexec_fn=before_start(),
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
