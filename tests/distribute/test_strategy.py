"""`ke.strategy`: what it chooses, sets up and prints, without training."""

import http.server
import json
import os
import random
import subprocess
import threading
import types
from pathlib import Path

import forked_python
import numpy as np
import pytest
import tensorflow as tf

import keras_efficient as ke
from keras_efficient.distribute import (
    Communication,
    _local_tpu as local_tpu_module,
    _strategy as strategy_module,
)
from keras_efficient.distribute._cluster import Cluster

ONE = Cluster(("a:1",), 0, "TF_CONFIG")
TWO = Cluster(("a:1", "b:1"), 1, "TF_CONFIG")
SLURM = Cluster(("n2:1", "n10:1"), 0, "Slurm job 7")
TPU_VARIABLES = (
    "TPU_NAME", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS"
)  # fmt: skip
NONE = "no GPU, no TPU, no other workers"


def error(message):
    return pytest.raises(ke.InputError, match=message)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NODELIST", *TPU_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local_tpu_module, "_ROOT", tmp_path)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")


@pytest.fixture
def local_tpu(tmp_path):
    write(tmp_path, {"dev/accel0": ""})


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def vfio(folder, *devices):
    """Pretend that VFIO has a group for each of these PCI devices, "vendor:device"."""
    write(folder, {"dev/vfio/vfio": ""})
    for index, device in enumerate(devices):
        vendor, number = device.split(":")
        pci = f"sys/bus/pci/devices/0000:00:0{index}.0"
        write(folder, {f"dev/vfio/{index}": "", f"{pci}/vendor": f"{vendor}\n"})
        write(folder, {f"{pci}/device": f"{number}\n"})


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are so many GPUs."""

    def pretend(count):
        devices = [f"GPU {index}" for index in range(count)]
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: devices)
        return devices

    return pretend


# --- what is chosen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "gpus", "chosen", "reason"),
    [
        (None, 0, "one", NONE),
        (None, 1, "one", "one GPU"),
        (None, 2, "mirrored", "2 GPUs"),
        (ONE, 0, "one", NONE),
        (ONE, 2, "mirrored", "2 GPUs"),
        (TWO, 0, "multi_worker", "worker 1 of 2 in TF_CONFIG"),
        (TWO, 2, "multi_worker", "worker 1 of 2 in TF_CONFIG"),
        (SLURM, 1, "multi_worker", "worker 0 of 2 in Slurm job 7"),
    ],
)
def test_auto(cluster, gpus, chosen, reason):
    assert strategy_module._choose("auto", cluster, ["GPU"] * gpus, None) == (chosen, reason)


def test_auto_takes_a_tpu_first(monkeypatch):
    tpu = ("tpu", "a TPU is named or present")
    assert strategy_module._choose("auto", TWO, ["GPU"] * 2, "mine") == tpu
    for name in ("TPU_NAME", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "mine")
            assert strategy_module._choose("auto", TWO, ["GPU"] * 2, None) == tpu


def test_auto_takes_a_tpu_of_this_machine(local_tpu):
    assert strategy_module._choose("auto", None, [], None)[0] == "tpu"


def test_newer_tpus_are_behind_vfio_and_other_machines_have_vfio_too(tmp_path):
    """v5p and v6e have no /dev/accel0."""
    cases = [
        (("0x1ae0:0x0062",), True),  # v5p
        (("0x1ae0:0x0042", "0x1ae0:0x006f"), True),  # Google's network card, v6e
        (("0x1ae0:0x0063",), True),  # v5e
        ((), False),  # VFIO without a device
        (("0x10de:0x20b0",), False),  # NVIDIA's GPU, passed through
        (("0x1ae0:0x0042",), False),  # a network card alone
        (("0x8086:0x006f",), False),  # the same number of another vendor
    ]
    for index, (devices, expected) in enumerate(cases):
        folder = tmp_path / str(index)
        vfio(folder, *devices)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local_tpu_module, "_ROOT", folder)
            assert local_tpu_module.local_tpu() is expected, devices
            kind, _ = strategy_module._choose("auto", None, [], None)
            assert kind == ("tpu" if expected else "one")


def test_a_pci_tpu_without_vfio_or_its_files_is_none(tmp_path):
    vfio(tmp_path, "0x1ae0:0x0062")
    (tmp_path / "sys/bus/pci/devices/0000:00:00.0/device").unlink()
    assert not local_tpu_module.local_tpu()
    vfio(tmp_path, "0x1ae0:0x0062")
    (tmp_path / "dev/vfio/0").unlink()
    assert not local_tpu_module.local_tpu()


@pytest.mark.parametrize("kind", ["one", "mirrored", "tpu"])
def test_what_is_asked_for_is_taken(kind):
    assert strategy_module._choose(kind, None, ["GPU"] * 2, None) == (kind, "as requested")


@pytest.mark.parametrize("cluster", [ONE, TWO])
def test_multi_worker_as_asked(cluster):
    chosen = strategy_module._choose("multi_worker", cluster, [], None)
    place = f"worker {cluster.index} of {len(cluster)}"
    assert chosen == ("multi_worker", f"as requested, {place} in TF_CONFIG")


def test_multi_worker_needs_a_description():
    with error(
        "'multi_worker' needs a description of the cluster. Received: neither TF_CONFIG nor"
    ):
        ke.strategy("multi_worker")


def test_what_is_chosen_for_slurm(monkeypatch):
    for name, value in {
        "JOB_ID": "7",
        "PROCID": "1",
        "STEP_NODELIST": "n[2,10]",
        "STEP_NUM_TASKS": "2",
        "STEP_TASKS_PER_NODE": "1(x2)",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    taken = {}
    monkeypatch.setattr(
        strategy_module, "_multi_worker", lambda *args: taken.update(args=args) or _Two()
    )
    ke.strategy(start_timeout=7)
    cluster, communication, timeout, _, seed = taken["args"]
    assert (len(cluster), cluster.index, cluster.source) == (2, 1, "Slurm job 7")
    assert (communication, timeout, seed) == (Communication(), 7, 0)


class _Two:
    num_replicas_in_sync = 2


def test_a_wrong_description_is_not_read_where_it_is_not_needed(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    ke.strategy("one")
    with error("TF_CONFIG must be JSON"):
        ke.strategy()


# --- one and mirrored ----------------------------------------------------------------------------


def test_one(capfd):
    strategy = ke.strategy("one")
    assert strategy is tf.distribute.get_strategy()
    assert capfd.readouterr() == ("", "ke.strategy: one, 1 replica (as requested)\n")


def test_auto_on_a_plain_machine(capfd, gpus):
    gpus(0)
    assert ke.strategy(seed=3) is tf.distribute.get_strategy()
    assert capfd.readouterr().err == f"ke.strategy: one, 1 replica, seed 3 ({NONE})\n"


def test_mirrored_over_the_logical_cpus(capfd):
    strategy = ke.strategy("mirrored")
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == 2
    assert capfd.readouterr().err == "ke.strategy: mirrored, 2 replicas (as requested)\n"


def test_mirrored_needs_two_devices(monkeypatch):
    only = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: only if kind == "CPU" else []
    )
    with error(
        "'mirrored' needs at least two devices. Received: /device:CPU:0. Use 'auto' or 'one'"
    ):
        ke.strategy("mirrored")


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mirorred", "", None, 1, "ONE"])
def test_an_unknown_kind(kind):
    with error("`kind` must be one of auto, one, mirrored, multi_worker, tpu. Received: "):
        ke.strategy(kind)


def test_a_misspelt_argument():
    with pytest.raises(TypeError, match="sead"):
        ke.strategy("one", sead=1)
    with pytest.raises(TypeError, match="positional"):
        ke.strategy("one", Communication())


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_start_timeout_must_be_positive(seconds):
    with error(f"`start_timeout` must be positive. Received: {seconds}"):
        ke.strategy("one", start_timeout=seconds)


@pytest.mark.parametrize("value", ["NCCL", "mpi", None])
def test_an_unknown_implementation(value):
    with error("`implementation` must be 'auto', 'ring' or 'nccl'. Received: "):
        Communication(value)


@pytest.mark.parametrize("name", ["bytes_per_pack", "timeout_seconds"])
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_communication_must_not_be_negative(name, value):
    with error(f"`{name}` must not be negative. Received: {value}"):
        Communication(**{name: value})


def test_communication_is_tensorflows():
    options = Communication("ring", bytes_per_pack=1024, timeout_seconds=2.5).options
    assert options.bytes_per_pack == 1024
    assert options.timeout_seconds == 2.5
    assert options.implementation is tf.distribute.experimental.CommunicationImplementation.RING
    plain, ours = tf.distribute.experimental.CommunicationOptions(), Communication().options
    for name in ("bytes_per_pack", "timeout_seconds", "implementation"):
        assert getattr(ours, name) == getattr(plain, name)


# --- setting up ----------------------------------------------------------------------------------


def draw():
    import keras
    import tf_keras

    return [
        random.random(),
        np.random.random(),
        float(tf.random.uniform(())),
        float(keras.random.uniform(())),
        float(tf_keras.backend.random_uniform(())),
        *keras.layers.Dense(1)(np.ones((1, 3))).numpy().ravel(),
        *tf_keras.layers.Dense(1)(np.ones((1, 3))).numpy().ravel(),
    ]


def test_seeded_alike_draws_alike():
    drawn = []
    draw()  # Imports both libraries.
    for seed in (1, 1, 2):
        ke.strategy("one", seed=seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_without_a_seed_nothing_is_seeded():
    random.seed(5)
    before = random.getstate()
    ke.strategy("one")
    assert random.getstate() == before


@pytest.mark.parametrize(("memory_growth", "expected"), [(True, ["GPU 0", "GPU 1"]), (False, [])])
def test_memory_growth_of_every_gpu(memory_growth, expected, gpus, monkeypatch):
    gpus(2)
    grown = []

    def grow(gpu, enable):
        assert enable is True
        grown.append(gpu)

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    ke.strategy("one", memory_growth=memory_growth)
    assert grown == expected


def test_memory_growth_too_late(gpus, monkeypatch):
    def fail(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized\nmore")

    gpus(1)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", fail)
    with error(
        r"ke.strategy must be called before TensorFlow creates its first tensor. Received: .*"
        r"\(Physical devices cannot be modified after being initialized\). Move the call"
    ):
        ke.strategy("one")
    ke.strategy("one", memory_growth=False)


# --- several workers -----------------------------------------------------------------------------


def run(code, **env):
    """Run `code` in a process of its own; return the JSON that it prints."""
    clean = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{code}"
    done = subprocess.run(
        [*forked_python.command(*forked_python.TRAINING), "-c", code],
        capture_output=True,
        text=True,
        env={**clean, **env},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_workers_need_tensorflow_not_to_have_started():
    """Only the rendezvous is mocked."""
    out = run(
        """
import json
import tensorflow as tf
import keras_efficient as ke
from keras_efficient.distribute import _strategy as strategy_module
met = []
strategy_module.rendezvous = lambda cluster, *rest: met.append([len(cluster), *rest])
tf.constant(1) + 1
try:
    ke.strategy(start_timeout=9)
except ke.InputError as error:
    print(json.dumps([str(error), met, tf.__version__]))
""",
        TF_CONFIG=Cluster(("127.0.0.1:1", "127.0.0.1:2"), 0).tf_config,
    )
    message, met, version = out
    assert message.startswith(
        "ke.strategy must be called before TensorFlow creates its first tensor."
    )
    assert met == [[2, {"number of replicas": 1, "TensorFlow": version, "seed": 0}, 9]]


def test_a_cluster_of_one_as_asked_and_determinism():
    """A cluster may have a single worker, and operations can be made deterministic."""
    import workers

    (port,) = workers.free_ports(1)
    out = run(
        """
import json, sys
import keras_efficient as ke
strategy = ke.strategy("multi_worker", deterministic=True)
import tensorflow as tf
from keras_efficient.distribute._multi_worker_strategy import MultiWorkerStrategy
from tensorflow.python.framework import config
print(json.dumps([
    type(strategy) is MultiWorkerStrategy,
    strategy.num_replicas_in_sync,
    strategy.cluster.address,
    config.is_op_determinism_enabled(),
    float(tf.random.uniform(())),
]))
""",
        TF_CONFIG=Cluster((f"127.0.0.1:{port}",), 0).tf_config,
    )
    assert out[:4] == [True, 1, f"127.0.0.1:{port}", True]
    tf.random.set_seed(0)
    assert out[4] == float(tf.random.uniform(()))


# --- TPU -----------------------------------------------------------------------------------------


@pytest.fixture
def tpu(monkeypatch):
    """A TPU that writes down what happens to it."""
    done = []

    class Resolver:
        def __init__(self, tpu=None):
            done.append(("resolve", tpu))

        def cluster_spec(self):
            return tf.train.ClusterSpec({})

    class Strategy:
        num_replicas_in_sync = 8

        def __init__(self, resolver):
            assert isinstance(resolver, Resolver)
            done.append(("strategy",))

    def note(name):
        return lambda resolver: done.append((name, type(resolver) is Resolver))

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", Resolver)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", note("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", note("initialize"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", Strategy)
    return done


REST = [("connect", True), ("initialize", True), ("strategy",)]


@pytest.mark.parametrize("kind", ["auto", "tpu"])
def test_a_tpu_by_name(kind, tpu, capfd):
    strategy = ke.strategy(kind, tpu="mine")
    assert type(strategy).__name__ == "Strategy"
    assert tpu == [("resolve", "mine"), *REST]
    assert capfd.readouterr().err.startswith("ke.strategy: tpu, 8 replicas (")


def test_a_tpu_of_the_environment_is_left_to_the_resolver(tpu, local_tpu, monkeypatch):
    monkeypatch.setenv("TPU_NAME", "mine")
    ke.strategy()
    assert tpu == [("resolve", None), *REST]


def test_a_tpu_of_this_machine(tpu, local_tpu):
    ke.strategy()
    assert tpu == [("resolve", "local"), *REST]


@pytest.fixture
def metadata(monkeypatch):
    """Google's metadata server: the attributes of this machine, by path."""
    attributes, paths = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append((self.path, self.headers["Metadata-Flavor"]))
            name = self.path.rpartition("/")[2]
            self.send_response(200 if name in attributes else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        yield types.SimpleNamespace(attributes=attributes, paths=paths)
        server.shutdown()


ENDPOINTS = "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"


@pytest.mark.parametrize("kind", ["auto", "tpu"])
def test_a_host_of_a_slice_without_a_name_does_not_train_alone(kind, tpu, metadata, tmp_path):
    """Each of the hosts chose "local"."""
    vfio(tmp_path, "0x1ae0:0x006f")
    metadata.attributes["worker-network-endpoints"] = ENDPOINTS
    with error(
        r"A TPU slice of several hosts needs its name.* Received: 2 hosts \(10\.0\.0\.1, 10\.0\."
        r"0\.2\), and neither `tpu` nor TPU_NAME\. Start the script on the first host"
    ):
        ke.strategy(kind)
    assert tpu == []
    path = "/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    assert metadata.paths == [(path, "Google")]


def test_a_host_of_a_slice_in_kubernetes(tpu, local_tpu, metadata, monkeypatch):
    metadata.attributes["worker-network-endpoints"] = "unknown:unknown:10.0.0.1"
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t-0.t, t-1.t")
    with error(r"Received: 2 hosts \(t-0\.t, t-1\.t\)"):
        ke.strategy()
    assert metadata.paths == []


def test_a_slice_of_one_host_is_local(tpu, local_tpu, metadata, monkeypatch):
    for hosts, endpoints in [
        (None, None),
        (None, "unknown:unknown:10.0.0.1"),
        ("localhost", ENDPOINTS),
        ("", ENDPOINTS),
    ]:
        tpu.clear()
        metadata.attributes.clear()
        if endpoints is not None:
            metadata.attributes["worker-network-endpoints"] = endpoints
        with monkeypatch.context() as patch:
            if hosts is not None:
                patch.setenv("TPU_WORKER_HOSTNAMES", hosts)
            ke.strategy()
        assert tpu == [("resolve", "local"), *REST], (hosts, endpoints)


def test_a_name_or_local_on_a_host_of_a_slice(tpu, local_tpu, metadata, monkeypatch):
    metadata.attributes["worker-network-endpoints"] = ENDPOINTS
    for name in ("mine", "local"):
        tpu.clear()
        ke.strategy(tpu=name)
        assert tpu[0] == ("resolve", name)
    for variable in ("TPU_NAME", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS"):
        tpu.clear()
        with monkeypatch.context() as patch:
            patch.setenv(variable, "mine")
            ke.strategy()
        assert tpu[0] == ("resolve", None)
    assert metadata.paths == []


def test_a_given_name_goes_before_the_tpu_of_this_machine(tpu, local_tpu):
    ke.strategy(tpu="mine")
    assert tpu[0] == ("resolve", "mine")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ValueError("No TPUs with the specified names exist."), "No TPUs with the specified"),
        (OSError("Name or service not known"), "Name or service not known"),
        (RuntimeError('TPU "mine" is not yet ready\nmore'), 'TPU "mine" is not yet ready. Pass'),
        (ImportError("googleapiclient must be installed"), "googleapiclient must be"),
        (ValueError(), "Received: ValueError. Pass"),
        (tf.errors.NotFoundError(None, None, "TPUs not found in the cluster."), "TPUs not found"),
    ],
)
def test_a_tpu_that_is_not_found(wrong, message, tpu, monkeypatch):
    def fail(resolver):
        raise wrong

    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", fail)
    with error(f"'tpu' needs a TPU that can be found. Received: .*|{message}") as caught:
        ke.strategy("tpu", tpu="mine")
    assert message in str(caught.value)
    assert caught.value.__cause__ is wrong


def test_no_tpu_without_mocks_is_an_error_and_no_hang():
    """The real resolver raises three kinds of error, and TensorFlow waits at a dead address."""
    names = [None, "no-such-tpu", "grpc://127.0.0.1:1", "local"]
    out = run(
        f"""
import json, time
import keras_efficient as ke
out = []
for name in {names}:
    start = time.monotonic()
    try:
        ke.strategy("tpu", tpu=name)
    except ke.InputError as error:
        out.append([time.monotonic() - start, str(error)])
print(json.dumps(out))
"""
    )
    assert len(out) == len(names)
    for seconds, message in out:
        assert message.startswith("'tpu' needs a TPU that can be found. Received: ")
        assert message.endswith(". Pass its name as `tpu`, or 'local' on a TPU VM.")
        assert seconds < 30
