"""`ke.strategy`: where a model trains, from what is there."""

import contextlib
import os
import random
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.distribute._cluster import Cluster
from keras_efficient.distribute._rendezvous import meet

#: What a TPU VM has.
_LOCAL_TPU = Path("/dev/accel0")
#: How long a TPU's address may take to answer.
_TPU_SECONDS = 10.0

#: {cluster: its strategy} in this process.
_made = {}

KINDS = ("auto", "one", "mirrored", "multi_worker", "tpu")


@dataclass(frozen=True)
class Communication:
    """How several workers sum their gradients; TensorFlow's `CommunicationOptions`.

    Args:
        implementation: "auto", "ring" or "nccl" (GPUs only).
        bytes_per_pack: int, bytes of gradients summed at once; 0 (default) leaves it to TensorFlow.
        timeout_seconds: float or None (default: none), after which a sum that does not come fails.
            It costs a thread per sum, so it is for looking for errors: a worker that dies is
            noticed without it.

    Raises:
        InputError: a value out of range.
    """

    implementation: str = "auto"
    bytes_per_pack: int = 0
    timeout_seconds: float | None = None

    def __post_init__(self):
        if self.implementation not in ("auto", "ring", "nccl"):
            raise InputError(
                "`implementation` must be 'auto', 'ring' or 'nccl'. Received: "
                f"{self.implementation!r}. Leave it to 'auto'."
            )
        for name in ("bytes_per_pack", "timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"`{name}` must not be negative. Received: {value!r}.")

    @property
    def options(self):
        return tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=self.bytes_per_pack,
            timeout_seconds=self.timeout_seconds,
            implementation=tf.distribute.experimental.CommunicationImplementation(
                self.implementation.upper()
            ),
        )


def strategy(
    kind="auto",
    *,
    communication=Communication(),
    start_timeout=300.0,
    memory_growth=True,
    deterministic=False,
    seed=None,
    tpu=None,
):
    """Set up the devices and choose the `tf.distribute` strategy to build the model in.

    To be called first: before any tensor is made. One line on stderr says what was chosen and why.

    - "one": TensorFlow's default, one device.
    - "mirrored": `MirroredStrategy` over this machine's GPUs (or its logical CPUs).
    - "multi_worker": `MultiWorkerMirroredStrategy` over the workers that TF_CONFIG or Slurm
      describes. `fit`, `evaluate`, `predict` and `save` then work for Keras 3 too (traps 17, 21).
      Before TensorFlow starts, the workers meet and compare what they are; if one does not come
      within `start_timeout`, all that are there say which.
    - "tpu": `TPUStrategy` over the TPU that the resolver finds.
    - "auto": "tpu" if there is one, else "multi_worker" if a cluster of several is described, else
      "mirrored" if there are several GPUs, else "one".

    Args:
        kind: see above.
        communication: `Communication`, for several workers.
        start_timeout: float, seconds in which all workers have to start. Default: 300.
        memory_growth: whether TensorFlow takes a GPU's memory as it needs it (True, default) or
            all at once.
        deterministic: whether TensorFlow computes the same bits in every run, which is slower.
        seed: int or None: given to Python, NumPy, TensorFlow and both Keras libraries. Several
            workers must draw alike to shuffle alike, so for them, and with `deterministic`, None
            (default) is 0.
        tpu: str or None: name or address of the TPU, as `TPUClusterResolver` takes it.

    Returns:
        The strategy. Build and compile the model in its `scope()`.

    Raises:
        InputError: unknown `kind`; nothing to choose for it; called too late; a cluster whose
            description is wrong, whose workers do not come, or differ.

    Example:
        >>> strategy = ke.strategy("one")
        >>> with strategy.scope():
        ...     model.compile("sgd", loss)
    """
    if kind not in KINDS:
        raise InputError(
            f"`kind` must be one of {', '.join(KINDS)}. Received: {kind!r}. Leave it to 'auto'."
        )
    if not start_timeout > 0:
        raise InputError(f"`start_timeout` must be positive. Received: {start_timeout!r}.")
    cluster = Cluster.from_environment() if kind in ("auto", "multi_worker") else None
    gpus = tf.config.list_physical_devices("GPU")
    kind, reason = _choose(kind, cluster, gpus, tpu)
    if seed is None and (deterministic or kind == "multi_worker"):
        seed = 0
    _set_up(gpus if memory_growth else [], deterministic, seed)
    chosen = {
        "one": _one,
        "mirrored": _mirrored,
        "multi_worker": lambda: _multi_worker(cluster, communication, start_timeout, gpus, seed),
        "tpu": lambda: _tpu(tpu),
    }[kind]()
    replicas = chosen.num_replicas_in_sync
    seeded = "" if seed is None else f", seed {seed}"
    print(
        f"ke.strategy: {kind}, {replicas} replica{'s' * (replicas > 1)}{seeded} ({reason})",
        file=sys.stderr,
    )
    return chosen


def _choose(kind, cluster, gpus, tpu):
    """What is taken for "auto", and why."""
    if kind == "multi_worker" and cluster is None:
        raise InputError(
            "'multi_worker' needs a description of the cluster. Received: neither TF_CONFIG nor "
            "Slurm's variables. Start the script with `keras-efficient launch --workers 2`, or "
            "with srun."
        )
    workers = "" if cluster is None else f"worker {cluster.index} of {len(cluster)}"
    if kind != "auto":
        return kind, f"as asked{f', {workers} in {cluster.source}' if workers else ''}"
    if tpu is not None or "TPU_NAME" in os.environ or _LOCAL_TPU.exists():
        return "tpu", "a TPU is named or present"
    if cluster is not None and len(cluster) > 1:
        return "multi_worker", f"{workers} in {cluster.source}"
    if len(gpus) > 1:
        return "mirrored", f"{len(gpus)} GPUs"
    return "one", "one GPU" if gpus else "no GPU, no TPU, no other workers"


def _set_up(gpus, deterministic, seed):
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        raise _too_late(error) from error
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        tf.random.set_seed(seed)
        # (One that is imported later draws from these.)
        for library in set(flavors.LIBRARIES) & set(sys.modules):
            sys.modules[library].utils.set_random_seed(seed)


def _one():
    return tf.distribute.get_strategy()


def _mirrored():
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise InputError(
            "'mirrored' needs two devices or more. Received: "
            f"{', '.join(device.name for device in devices)}. Use 'auto' or 'one'; CPUs can be "
            "split with tf.config.set_logical_device_configuration."
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _multi_worker(cluster, communication, start_timeout, gpus, seed):
    from keras_efficient.distribute._multi_worker_strategy import MultiWorkerStrategy

    facts = {
        "number of replicas": max(1, len(gpus)),
        "TensorFlow": tf.__version__,
        "seed": seed,
    }
    if cluster in _made:
        # A process has one server, which listens at its port already.
        return _made[cluster]
    meet(cluster, facts, start_timeout)
    try:
        workers = MultiWorkerStrategy(cluster, communication.options)
    except RuntimeError as error:
        raise _too_late(error) from error
    # TensorFlow has put a handler of its own below Python's, which keeps SIGTERM from ending a
    # script that has none.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    for library in flavors.LIBRARIES:
        # (Keras 3 on another backend has no `fit` for it.)
        with contextlib.suppress(ImportError):
            flavors.get(library).serve_workers(MultiWorkerStrategy)
    _made[cluster] = workers
    return workers


def _tpu(name):
    if name is None and "TPU_NAME" not in os.environ and _LOCAL_TPU.exists():
        name = "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        for address in resolver.cluster_spec().as_dict().get("worker", ()):
            # (TensorFlow would wait for an address at which nobody is.)
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _TPU_SECONDS).close()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    # (The resolver asks Google's metadata server and its API, with all that can fail there.)
    except (ValueError, OSError, RuntimeError, ImportError, tf.errors.OpError) as error:
        raise InputError(
            "'tpu' needs a TPU that can be found. Received: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}. Give its name as `tpu`, or "
            "'local' on a TPU VM."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _too_late(error):
    return InputError(
        "ke.strategy must come before TensorFlow makes its first tensor. Received: a TensorFlow "
        f"that has started ({str(error).splitlines()[0]}). Move the call to the top of the script."
    )
