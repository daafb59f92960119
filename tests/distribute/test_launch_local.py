"""Workers on this machine: their environment, their output and the exit code."""

import io
import json
import os
import sys

import pytest
from launching import launch, script

import keras_efficient.distribute.launcher.console as console_file
from keras_efficient.distribute.launcher.log_tail import LogTail

SHOW = """
print(json.dumps({"tf": json.loads(os.environ["TF_CONFIG"]), "words": sys.argv[1:],
                  "environment": dict(os.environ), "leader": os.getsid(0) == os.getpid(),
                  "cores": sorted(os.sched_getaffinity(0))
                  if hasattr(os, "sched_getaffinity") else []}))
"""


def shown(ended, workers):
    return [json.loads(ended.lines(index)[0]) for index in range(workers)]


def test_every_worker_gets_the_cluster_and_its_place_in_it(tmp_path):
    ended = launch("--workers", 3, script(tmp_path, SHOW))
    assert ended.code == 0, ended
    found = shown(ended, 3)
    addresses = found[0]["tf"]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    for index, one in enumerate(found):
        assert one["tf"] == {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        assert one["environment"]["KERAS_EFFICIENT_RESTART"] == "0"
        assert one["leader"]
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_words_after_the_script_are_not_ours(tmp_path):
    words = ["--workers", "7", "-m", "--help", "--", "a b", "--grace=x", "", "*"]
    ended = launch("--workers", 1, script(tmp_path, SHOW), *words)
    assert shown(ended, 1)[0]["words"] == words


def test_a_module_is_started_with_its_own_options(tmp_path):
    (tmp_path / "some_module.py").write_text("import sys; print(__name__, sys.argv[1:])")
    words = ("-m", "some_module", "--workers", "7", "--dry-run")
    ended = launch("--workers", 1, *words, PYTHONPATH=str(tmp_path))
    assert ended.lines(0) == ["__main__ ['--workers', '7', '--dry-run']"]


def test_an_option_may_hold_its_value_behind_an_equals_sign(tmp_path):
    ended = launch("--workers=1", "--grace=3", script(tmp_path, SHOW), "--workers=2")
    assert shown(ended, 1)[0]["words"] == ["--workers=2"]


def test_gpus_are_shared_out(tmp_path):
    def visible(*words, **variables):
        ended = launch("--workers", 2, *words, script(tmp_path, SHOW), **variables)
        return [one["environment"].get("CUDA_VISIBLE_DEVICES") for one in shown(ended, 2)]

    assert visible() == [None, None]
    assert visible("--gpus-per-worker", 2) == ["0,1", "2,3"]
    assert visible("--gpus-per-worker", 0) == ["-1", "-1"]
    assert visible("--gpus-per-worker", 1, CUDA_VISIBLE_DEVICES="5, GPU-a,7") == ["5", "GPU-a"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_threads_are_limited_and_pinned_where_there_are_cores(tmp_path):
    path = script(tmp_path, SHOW)
    enough = len(os.sched_getaffinity(0)) >= 2
    ended = launch("--workers", 2, "--threads-per-worker", 1, path)
    first, second = shown(ended, 2)
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        assert first["environment"][name] == second["environment"][name] == "1"
    if enough:
        assert len(first["cores"]) == len(second["cores"]) == 1
        assert first["cores"] != second["cores"]
        assert f"pinned to cores: worker 0 on {first['cores'][0]}; worker 1 on" in ended.err
    ended = launch("--workers", 1, "--threads-per-worker", 4096, path)
    assert shown(ended, 1)[0]["cores"] == sorted(os.sched_getaffinity(0))
    assert "not pinned to cores: 4096 cores are needed and" in ended.err


def test_ports_follow_the_first(tmp_path):
    ended = launch("--workers", 2, "--port", 39517, script(tmp_path, SHOW))
    if ended.code == 2 and "is not (" in ended.err:
        pytest.skip("something else on this machine has the port")
    addresses = shown(ended, 2)[0]["tf"]["cluster"]["worker"]
    assert addresses == ["127.0.0.1:39517", "127.0.0.1:39518"]


def test_streams_are_kept_apart_and_odd_output_comes_through(tmp_path):
    body = r"""
out, err = sys.stdout.buffer, sys.stderr.buffer
if task == 0:
    out.write("é\n".encode()); out.write(b"\xff\xfe\n\n"); err.write(b"to stderr\n")
    out.write(b"1/2\r2/2\n"); out.write(b"x" * 200_000 + b"\n"); out.write(b"no end")
"""
    ended = launch("--workers", 2, script(tmp_path, body), PYTHONUTF8="1")
    lines = ended.lines(0)
    assert lines[:4] == ["é", "\ufffd\ufffd", "", "2/2"]
    assert "".join(lines[4:-1]) + lines[-1] == "x" * 200_000 + "no end"
    assert ended.lines(0, "err") == ["to stderr"]
    assert ended.lines(1) == []


def test_a_terminal_that_knows_only_ascii_stops_nothing(tmp_path):
    body = "sys.stdout.buffer.write('é\\n'.encode())"
    ended = launch("--workers", 1, script(tmp_path, body), PYTHONIOENCODING="ascii")
    assert (ended.code, ended.lines(0)) == (0, ["?"])


def test_lines_of_workers_that_write_at_once_stay_whole(tmp_path):
    body = """
meet()
for number in range(2000):
    print(f"{number} " + "ab"[task] * 100)
"""
    ended = launch("--workers", 2, script(tmp_path, body))
    for index in range(2):
        assert ended.lines(index) == [f"{n} " + "ab"[index] * 100 for n in range(2000)]
    assert len(ended.out.splitlines()) == 4000


def test_a_reader_that_goes_away_stops_nothing(tmp_path):
    path = script(tmp_path, "[print(n) for n in range(20_000)]; (here / 'done').write_text('')")
    command = f'"{sys.executable}" -c "from keras_efficient.cli import main; main()" launch'
    assert os.system(f'{command} --workers 1 "{path}" 2>&1 | head -1 >/dev/null') == 0
    assert (tmp_path / "done").exists()


def test_log_files_hold_what_the_workers_wrote(tmp_path):
    body = "print('out', task); print('err', file=sys.stderr); sys.exit(1 - restart)"
    logs = tmp_path / "logs" / "run"
    options = ("--max-restarts", 1, "--log-dir", logs)
    assert launch("--workers", 1, *options, script(tmp_path, body)).code == 0
    names = sorted(path.name for path in logs.iterdir())
    assert names == ["worker-0.attempt-0.log", "worker-0.attempt-1.log"]
    assert sorted((logs / names[1]).read_text().splitlines()) == ["err", "out 0"]


def test_dry_run_starts_nothing(tmp_path):
    path = script(tmp_path, "ready()")
    words = ("--threads-per-worker", 3, "--dry-run", path, "a b")
    ended = launch("--workers", 2, *words)
    assert ended.code == 0 and not ended.err
    assert "worker 1 on this machine" in ended.out
    assert '"task": {"type": "worker", "index": 1}' in ended.out
    assert f"-u {path} 'a b'" in ended.out and "OMP_NUM_THREADS=3" in ended.out
    assert not list(tmp_path.glob("pid*"))


def test_names_are_coloured_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    styled = console_file.styled
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        assert "\x1b[" in styled(Terminal(), "[worker 0] ", "cyan")
    with open(os.devnull, "w") as file:
        assert styled(file, "[worker 0] ", "cyan") == "[worker 0] "


def test_launching_imports_no_tensorflow(tmp_path):
    ended = launch("--workers", 1, script(tmp_path, ""), PYTHONVERBOSE="1")
    imported = ended.err[: ended.err.index("launcher.supervisor")]
    assert "import 'rich" in imported and "import 'tensorflow" not in ended.err


# The excerpt of a worker's output.


def words(*lines, stream="stderr"):
    tail = LogTail()
    for line in lines:
        tail.add(stream, line)
    return tail.excerpt()


HEAD = "Traceback (most recent call last):"
DURING = "During handling of the above exception, another exception occurred:"


def test_the_last_traceback_is_found():
    old = (HEAD, "  File old", "OldError", "retrying")
    assert words(*old, HEAD, "  File new", "NewError") == [HEAD, "  File new", "NewError"]


def test_a_chain_of_exceptions_is_shown_whole():
    chain = (HEAD, "  File a", "AError", "", DURING, "", HEAD, "  File b", "BError")
    assert words("before", *chain) == list(chain)


def test_a_flood_is_not_printed_again():
    """A worker's last output was reprinted as 1.3 MB."""
    flood = words(HEAD, *("x" * 60_000 for _ in range(5000)), "ValueError: last")
    assert len(flood) <= 101 and sum(map(len, flood)) < 110_000 and flood[-1] == "ValueError: last"
    long = words(HEAD, *map(str, range(500)), "Error")
    assert long[:2] == [HEAD, "0"] and long[20] == "  [402 lines left out]"
    assert long[21:] == [*map(str, range(421, 500)), "Error"]
    many = [line for _ in range(60) for line in (HEAD, "  File a", "AError", "", DURING, "")]
    assert len(words(*many, HEAD, "  File b", "BError")) == 101
    assert sum(map(len, words(*["y" * 60_000] * 30, stream="stdout"))) < 21_000


def test_without_a_traceback_the_last_lines_are_shown():
    assert words(*map(str, range(100)), stream="stdout") == list(map(str, range(80, 100)))
    assert words() == []
