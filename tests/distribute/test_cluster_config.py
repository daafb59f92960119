"""Clusters described by TF_CONFIG and by Slurm, valid and invalid."""

import json

import pytest

import keras_efficient as ke
from keras_efficient.distribute import Cluster, is_chief

TWO = ["10.0.0.1:1000", "10.0.0.2:1000"]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "n[2,10]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def error(message):
    return pytest.raises(ke.InputError, match=message)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    for name in ("TF_CONFIG", *SLURM):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def describe(monkeypatch):
    """Sets TF_CONFIG, to a text or to JSON, and returns what is read from it."""

    def read(config):
        text = config if isinstance(config, str) else json.dumps(config)
        monkeypatch.setenv("TF_CONFIG", text)
        return Cluster.from_environment()

    return read


@pytest.fixture
def slurm(monkeypatch):
    """Sets Slurm's variables (None removes one) and returns what is read from them."""

    def read(**changes):
        for name, value in {**SLURM, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return Cluster.from_environment()

    return read


def config(workers=TWO, kind="worker", index=0, **jobs):
    return {"cluster": {"worker": workers, **jobs}, "task": {"type": kind, "index": index}}


# --- TF_CONFIG -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {}}', '{"cluster": {"worker": []}}'])
def test_no_cluster_is_none(text, describe):
    assert describe(text) is None
    assert is_chief()


def test_nothing_in_the_environment_is_none():
    assert Cluster.from_environment() is None
    assert is_chief()


@pytest.mark.parametrize("index", [0, 1])
def test_workers_of_tf_config(index, describe):
    cluster = describe(config(index=index))
    assert len(cluster) == 2
    assert cluster.workers == tuple(TWO)
    assert cluster.address == TWO[index]
    assert cluster.task == ("worker", index)
    assert cluster.spec == {"worker": TWO}
    assert cluster.source == "TF_CONFIG"
    assert is_chief() == (index == 0)


@pytest.mark.parametrize(
    ("kind", "index", "place"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)]
)
def test_the_chief_comes_before_the_workers(kind, index, place, describe):
    cluster = describe(config(kind=kind, index=index, chief=["10.0.0.9:1"]))
    assert cluster.workers == ("10.0.0.9:1", *TWO)
    assert cluster.index == place
    assert cluster.task == (kind, index)
    assert cluster.spec == {"chief": ["10.0.0.9:1"], "worker": TWO}
    assert is_chief() == (place == 0)


def test_a_chief_alone(describe):
    cluster = describe(config([], "chief", chief=["a:1"]))
    assert (cluster.task, cluster.spec) == (("chief", 0), {"chief": ["a:1"]})


@pytest.mark.parametrize("chief", [{}, {"chief": ["10.0.0.9:1"]}])
def test_tf_config_goes_round(chief, describe):
    cluster = describe(config(index=1, **chief))
    assert describe(cluster.tf_config) == cluster


def test_tensorflow_reads_what_we_write(describe):
    import tensorflow as tf

    describe(describe(config(index=1, chief=["10.0.0.9:1"])).tf_config)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    assert resolver.cluster_spec().as_dict() == {"chief": ["10.0.0.9:1"], "worker": TWO}


@pytest.mark.parametrize(
    "text",
    [
        "worker0:12345",
        "[1, 2]",
        "null",
        "17",
        '{"cluster": ["a:1"]}',
        '{"cluster": {"worker": 3}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": ["worker", 0]}',
    ],
)
def test_a_tf_config_that_is_none(text, describe):
    with error(r'TF_CONFIG must be JSON: \{"cluster": .* Received: .*Correct it or unset it'):
        describe(text)
    with error("TF_CONFIG must be JSON"):
        is_chief()


def test_a_long_tf_config_is_not_shown_whole(describe):
    with error("TF_CONFIG must be JSON") as caught:
        describe("x" * 10_000)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "wrong",
    [
        config(ps=["a:1"]),
        config(kind="ps", ps=["a:1"]),
        config(kind="evaluator"),
        config(kind="chief"),
        config(kind=None),
        config(kind=["worker"]),
        {"cluster": {"worker": TWO}},
    ],
)
def test_jobs_that_take_no_part(wrong, describe):
    with error('TF_CONFIG may name a "chief" and "worker"s, and a task of one of them. Received'):
        describe(wrong)


def test_two_chiefs(describe):
    with error("TF_CONFIG may name one chief. Received: a:1, b:1"):
        describe(config(chief=["a:1", "b:1"]))


@pytest.mark.parametrize("index", [None, -1, 2, True, "0", 0.0, [0]])
def test_an_index_that_is_none(index, describe):
    with error('TF_CONFIG must give the task an index from 0 to 1 of its "worker"s. Received'):
        describe(config(index=index))


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "10.0.0.1:", ":1000", "a:0", "a:70000", "a:-1", "a:x", 1000, None, ""]
)
def test_an_address_that_is_none(address, describe):
    with error("A worker's address must be host:port with a port from 1 to 65535. Received: "):
        describe(config([TWO[0], address]))


def test_an_address_twice(describe):
    with error("Every worker must have an address of its own. Received twice: 10.0.0.1:1000 in TF"):
        describe(config([TWO[0], TWO[1], TWO[0]]))
    with error("Every worker must have an address of its own"):
        describe(config(chief=[TWO[0]]))


# --- given ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [True, "0", 0.5, None])
def test_a_given_index_must_be_an_integer(index):
    with error("A task's index must be an integer. Received: .* in given"):
        Cluster(tuple(TWO), index)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_given_index_must_be_that_of_a_worker(index):
    with error(f"A task's index must lie from 0 to 1, as there are 2 workers. Received: {index}"):
        Cluster(tuple(TWO), index)


# --- Slurm ---------------------------------------------------------------------------------------


def hosts(cluster):
    return [address.rpartition(":")[0] for address in cluster.workers]


def ports(cluster):
    return [int(address.rpartition(":")[2]) for address in cluster.workers]


def test_slurm_nodes_in_the_order_of_ranks(slurm):
    cluster = slurm()
    assert hosts(cluster) == ["n2", "n10"]
    assert cluster.index == 1
    assert cluster.task == ("worker", 1)
    assert cluster.source == "Slurm job 7"
    assert not is_chief()


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("r[1-2]n[1-2]", "r1n1 r1n2 r2n1 r2n2"),
        ("r[1,3]n[09-10]-ib", "r1n09-ib r1n10-ib r3n09-ib r3n10-ib"),
        ("login,a[1-2],r1n[2,10]", "login a1 a2 r1n2 r1n10"),
        ("[1-2]x[1-2]y[1-2]", "1x1y1 1x1y2 1x2y1 1x2y2 2x1y1 2x1y2 2x2y1 2x2y2"),
        ("gpu-a,gpu-b", "gpu-a gpu-b"),
    ],
)
def test_slurm_host_lists_may_have_several_brackets(slurm, nodes, hosts):
    hosts = hosts.split()
    cluster = slurm(
        SLURM_STEP_NODELIST=nodes,
        SLURM_STEP_TASKS_PER_NODE=f"1(x{len(hosts)})",
        SLURM_STEP_NUM_TASKS=str(len(hosts)),
    )
    assert [worker.split(":")[0] for worker in cluster.workers] == hosts


@pytest.mark.parametrize("nodes", ["n[1-2", "n1-2]", "n[[1-2]]", "n[1-x]", "n[]", "n1,,n2", ",n1"])
def test_slurm_host_lists_that_are_none(slurm, nodes):
    with pytest.raises(ke.InputError, match="A Slurm step must set SLURM_STEP_NODELIST"):
        slurm(SLURM_STEP_NODELIST=nodes)


def test_slurm_tasks_of_one_node_have_different_ports(slurm):
    cluster = slurm(
        SLURM_STEP_NODELIST="n[1-3]",
        SLURM_STEP_TASKS_PER_NODE="2(x2),1",
        SLURM_STEP_NUM_TASKS="5",
        SLURM_PROCID="4",
    )
    assert hosts(cluster) == ["n1", "n1", "n2", "n2", "n3"]
    first = ports(cluster)[0]
    assert ports(cluster) == [first, first + 1, first, first + 1, first]
    assert cluster.address == f"n3:{first}"


def test_slurm_jobs_have_different_ports_below_the_ephemeral_ones(slurm):
    some = [ports(slurm(SLURM_JOB_ID=str(job)))[0] for job in (1, 2, 3, 311, 10**9)]
    assert len(set(some)) == len(some)
    assert all(1024 < port < 32768 - 64 for port in some)


def test_slurm_tasks_dealt_out_in_turn_are_refused(slurm):
    with pytest.raises(ke.InputError, match="Slurm must fill one node after the other"):
        slurm(
            SLURM_STEP_NODELIST="n[1-2]",
            SLURM_STEP_TASKS_PER_NODE="2(x2)",
            SLURM_STEP_NUM_TASKS="4",
            SLURM_PROCID="1",
            SLURM_NODEID="1",
        )


def test_slurm_of_one_task(slurm):
    cluster = slurm(
        SLURM_STEP_NODELIST="login",
        SLURM_STEP_TASKS_PER_NODE="1",
        SLURM_STEP_NUM_TASKS="1",
        SLURM_PROCID="0",
    )
    assert len(cluster) == 1
    assert is_chief()


def test_a_slurm_batch_script_outside_of_a_step_is_no_cluster(slurm):
    assert slurm(SLURM_STEP_NODELIST=None) is None
    assert slurm(SLURM_PROCID=None) is None


def test_tf_config_wins_over_slurm(slurm, describe):
    slurm()
    assert describe(config()).source == "TF_CONFIG"


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"SLURM_JOB_ID": None}, "KeyError 'SLURM_JOB_ID'"),
        ({"SLURM_STEP_TASKS_PER_NODE": None}, "KeyError"),
        ({"SLURM_STEP_NUM_TASKS": None}, "KeyError"),
        ({"SLURM_PROCID": "x"}, "ValueError"),
        ({"SLURM_STEP_NODELIST": "n[2,"}, "ValueError Invalid hostlist"),
        ({"SLURM_STEP_TASKS_PER_NODE": "two"}, "ValueError Invalid tasks-per-node"),
    ],
)
def test_slurm_variables_missing_or_wrong(changes, received, slurm):
    with error(f"A Slurm step must set SLURM_STEP_NODELIST, .* Received: {received}"):
        slurm(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": "3"},
        {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
        {"SLURM_STEP_NODELIST": "n2"},
    ],
)
def test_slurm_counts_that_do_not_fit(changes, slurm):
    with error("A Slurm step must have the number of tasks that it states. Received: "):
        slurm(**changes)


@pytest.mark.parametrize("rank", ["2", "-1"])
def test_a_slurm_rank_out_of_range(rank, slurm):
    with error(
        f"index must lie from 0 to 1, as there are 2 workers. Received: {rank} in Slurm job"
    ):
        slurm(SLURM_PROCID=rank)


def test_upstream_slurm_resolver_still_gives_rank_0_another_nodes_address(slurm, monkeypatch):
    """If this fails, TensorFlow may have fixed it: see whether `_from_slurm` can go."""
    import tensorflow as tf

    ours = slurm(SLURM_PROCID="0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
    theirs = resolver.cluster_spec().task_address("worker", 0)
    assert hosts(ours)[0] == "n2"
    assert theirs.startswith("n10:")


def test_upstream_slurm_resolver_still_fails_without_gpus(slurm, monkeypatch):
    """If this fails, see the test above."""
    import tensorflow as tf

    slurm()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(FileNotFoundError, match="nvidia-smi"):
        tf.distribute.cluster_resolver.SlurmClusterResolver()
