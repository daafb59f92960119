"""`strategy`, which chooses and sets up the devices and workers to train on."""

import contextlib
import random
import signal
import socket
import sys
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.distribute._cluster import Cluster
from keras_efficient.distribute._communication import Communication
from keras_efficient.distribute._local_tpu import local_tpu, named_tpu, slice_hosts
from keras_efficient.distribute._rendezvous import rendezvous

#: Seconds to wait for a connection to a TPU.
_TPU_TIMEOUT = 10.0

#: The strategy of each cluster that this process has joined.
_joined: dict[Cluster, Any] = {}

KINDS = ("auto", "one", "mirrored", "multi_worker", "tpu")


def strategy(
    kind: str = "auto",
    *,
    communication: Communication | None = None,
    start_timeout: float = 300.0,
    memory_growth: bool = True,
    deterministic: bool = False,
    seed: int | None = None,
    tpu: str | None = None,
) -> tf.distribute.Strategy:
    """Set up the devices and choose the `tf.distribute` strategy to create the model under.

    Call this first, before any tensor is created. It prints one line to stderr that says what it
    chose and why.

    - "one": TensorFlow's default strategy, for one device.
    - "mirrored": `MirroredStrategy` over this machine's GPUs, or its logical CPUs.
    - "multi_worker": `MultiWorkerMirroredStrategy` over the workers that TF_CONFIG or Slurm
      describes. `fit`, `evaluate`, `predict` and `save` then also work for Keras 3 models. Before
      TensorFlow starts, the workers meet and compare their settings. If one does not start within
      `start_timeout` seconds, all the others report which one.
    - "tpu": `TPUStrategy` over the TPU that TensorFlow's resolver finds.
    - "auto": "tpu" if there is a TPU, else "multi_worker" if several workers are described, else
      "mirrored" if there are several GPUs, else "one".

    Args:
        kind: "auto", "one", "mirrored", "multi_worker" or "tpu". Default: "auto".
        communication: `Communication`, the settings of the collectives between workers. Default:
            None, `Communication()`.
        start_timeout: float > 0, seconds to wait until all workers have started. Default: 300.
        memory_growth: bool, whether TensorFlow allocates GPU memory as it needs it, instead of all
            at once. Default: True.
        deterministic: bool, whether all operations give the same bits in every run, which is
            slower. Default: False.
        seed: int or None, seed for Python, NumPy, TensorFlow and both Keras libraries. Default:
            None, which means 0 with several workers or with `deterministic`, since several workers
            must shuffle alike, and no seeding otherwise.
        tpu: name or address of the TPU, as `TPUClusterResolver` takes it, or "local" for the chips
            of this machine. A slice of several hosts needs its name. Default: None, the TPU of
            TPU_NAME or of this machine.

    Returns:
        The strategy. Create and compile the model inside its `scope()`. With several workers it has
        an attribute `cluster`.

    Raises:
        InputError: `kind` is unknown or not available, TensorFlow has already started, a TPU slice
            of several hosts has no name, or the workers are described wrongly, are missing, or
            differ.

    Examples:
        >>> strategy = ke.strategy("one")
        >>> with strategy.scope():
        ...     model.compile("sgd", loss)

    Reference:
        `tf.distribute.Strategy`; keras-team/keras#20585 for Keras 3 with several workers.
    """
    if kind not in KINDS:
        raise InputError(
            f"`kind` must be one of {', '.join(KINDS)}. Received: {kind!r}. Use 'auto' to choose "
            "automatically."
        )
    if not start_timeout > 0:
        raise InputError(
            f"`start_timeout` must be positive. Received: {start_timeout!r}. Give it in seconds."
        )
    communication = communication or Communication()
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
    """Return the kind of strategy to use, and the reason."""
    if kind == "multi_worker" and cluster is None:
        raise InputError(
            "'multi_worker' needs a description of the cluster. Received: neither TF_CONFIG nor "
            "Slurm's variables. Start the script with `keras-efficient launch --workers 2`, or "
            "with srun."
        )
    workers = "" if cluster is None else f"worker {cluster.index} of {len(cluster)}"
    if kind != "auto":
        return kind, f"as requested{f', {workers} in {cluster.source}' if cluster else ''}"
    if tpu is not None or named_tpu() or local_tpu():
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
        raise _already_started(error) from error
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        tf.random.set_seed(seed)
        # A library that is imported later takes its seed from these.
        for library in set(flavors.LIBRARIES) & set(sys.modules):
            sys.modules[library].utils.set_random_seed(seed)


def _one():
    return tf.distribute.get_strategy()


def _mirrored():
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise InputError(
            "'mirrored' needs at least two devices. Received: "
            f"{', '.join(device.name for device in devices)}. Use 'auto' or 'one'; CPUs can be "
            "split with tf.config.set_logical_device_configuration."
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _multi_worker(cluster, communication, start_timeout, gpus, seed):
    from keras_efficient.distribute._multi_worker_strategy import MultiWorkerStrategy

    settings = {
        "number of replicas": max(1, len(gpus)),
        "TensorFlow": tf.__version__,
        "seed": seed,
    }
    if cluster in _joined:
        # A process has a single server, which is already listening on this worker's port.
        return _joined[cluster]
    rendezvous(cluster, settings, start_timeout)
    try:
        joined = MultiWorkerStrategy(cluster, communication.options)
    except RuntimeError as error:
        raise _already_started(error) from error
    # TensorFlow installs its own C++ handler for SIGTERM, with which the signal would not end a
    # script that has no handler. Setting Python's handler again replaces it.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    for library in flavors.LIBRARIES:
        # Keras 3 with another backend than TensorFlow cannot be adapted.
        with contextlib.suppress(ImportError):
            flavors.get(library).enable_multi_worker(MultiWorkerStrategy)
    _joined[cluster] = joined
    return joined


def _tpu(name):
    if name is None and not named_tpu() and local_tpu():
        hosts = slice_hosts()
        if len(hosts) > 1:
            raise InputError(
                "A TPU slice of several hosts needs its name, since each host would otherwise "
                f"train alone. Received: {len(hosts)} hosts ({', '.join(hosts)}), and neither "
                "`tpu` nor TPU_NAME. Start the script on the first host with the slice's name as "
                "`tpu`, or pass 'local' to use the chips of this host only."
            )
        name = "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        for address in resolver.cluster_spec().as_dict().get("worker", ()):
            # TensorFlow would wait for minutes for an address where nothing listens.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _TPU_TIMEOUT).close()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    # The resolver queries Google's metadata server and API, which can fail in all these ways.
    except (ValueError, OSError, RuntimeError, ImportError, tf.errors.OpError) as error:
        raise InputError(
            "'tpu' needs a TPU that can be found. Received: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}. Pass its name as `tpu`, or "
            "'local' on a TPU VM."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _already_started(error):
    return InputError(
        "ke.strategy must be called before TensorFlow creates its first tensor. Received: "
        f"TensorFlow has already started ({str(error).splitlines()[0]}). Move the call to the top "
        "of the script."
    )
