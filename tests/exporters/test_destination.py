"""The directory of a new version, which appears complete or not at all."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from keras_efficient._errors import InputError
from keras_efficient.exporters import (
    _archive as archive,
    _destination as destination,
    _partial as partial,
    check_destination,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_next_free_version(tmp_path):
    assert check_destination(tmp_path / "new") == tmp_path / "new" / "1"
    for name in ("2", "10", "latest", ".11.partial-x"):
        (tmp_path / "m" / name).mkdir(parents=True)
    assert check_destination(tmp_path / "m") == tmp_path / "m" / "11"
    assert check_destination(str(tmp_path / "m" / "3")) == tmp_path / "m" / "3"
    assert not (tmp_path / "new").exists()


def test_existing_version_is_refused_and_the_next_named(tmp_path):
    (tmp_path / "m" / "3").mkdir(parents=True)
    with pytest.raises(InputError, match=r"never overwrites a version.*m/4 or just"):
        check_destination(tmp_path / "m" / "3")


@pytest.mark.parametrize("directory", [None, "", "  ", 3])
def test_no_path(directory):
    with pytest.raises(InputError, match="`directory` must be a path"):
        check_destination(directory)


def test_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Every part of an export's path must be a folder"):
        check_destination(tmp_path / "file" / "m" / "1")


def test_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match="folder must be writable"):
        check_destination(tmp_path / "m")


def test_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(119))
    assert check_destination(tmp_path / "m", needed_bytes=99)
    with pytest.raises(InputError, match=r"needs about .* MB of free disk"):
        check_destination(tmp_path / "m", needed_bytes=100)


def test_published_complete(tmp_path):
    version = tmp_path / "m" / "1"
    with destination.staged(tmp_path / "m", version) as staging:
        (staging.path / "file").write_text("x")
        assert names(tmp_path / "m") == [staging.path.name]
        assert staging.path.name.startswith(".")
        assert staging.publish() == version
    assert names(tmp_path / "m") == ["1"]
    assert names(version) == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    # Servers may run as other users.
    assert version.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error), destination.staged(tmp_path / "a/m", tmp_path / "a/m/1") as staging:
        (staging.path / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_failure_leaves_other_versions(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(RuntimeError), destination.staged(tmp_path / "m", tmp_path / "m/2"):
        raise RuntimeError
    assert names(tmp_path / "m") == ["1"]


@pytest.mark.parametrize("winner", ["empty folder", "with files"])
def test_lost_race_takes_the_next_version(tmp_path, winner):
    with destination.staged(tmp_path / "m", tmp_path / "m/1") as staging:
        (staging.path / "mine").write_text("")
        (tmp_path / "m/1").mkdir()
        if winner == "with files":
            (tmp_path / "m/1/theirs").write_text("")
        assert staging.publish() == tmp_path / "m/2"
    assert names(tmp_path / "m") == ["1", "2"]
    assert names(tmp_path / "m/1") == (["theirs"] if winner == "with files" else [])
    assert names(tmp_path / "m/2") == ["mine"]


def test_race_lost_between_look_and_rename(tmp_path, monkeypatch):
    rename = os.rename

    def late(source, target):
        if target.name == "1":
            target.mkdir()
            (target / "theirs").write_text("")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with destination.staged(tmp_path / "m", tmp_path / "m/1") as staging:
        assert staging.publish() == tmp_path / "m/2"
    assert names(tmp_path / "m/1") == ["theirs"]


def test_lost_race_for_an_exact_version(tmp_path):
    with (
        pytest.raises(InputError, match="another export wrote meanwhile"),
        destination.staged(tmp_path / "m/1", tmp_path / "m/1") as staging,
    ):
        (tmp_path / "m/1").mkdir()
        (tmp_path / "m/1/theirs").write_text("")
        staging.publish()
    assert names(tmp_path / "m") == ["1"]
    assert names(tmp_path / "m/1") == ["theirs"]


def test_failing_rename_is_not_taken_for_a_race(tmp_path, monkeypatch):
    def broken(source, target):
        raise PermissionError("no")

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(PermissionError), destination.staged(tmp_path, tmp_path / "1") as staging:
        staging.publish()
    assert names(tmp_path) == []


def test_killed_runs_are_cleaned_up_but_not_running_ones(tmp_path):
    """Folders of versions, and files of archives that were being compressed."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = partial._host()
    dead, alive = f"partial-{host}-{child.pid}-0a0b", f"partial-{host}-{os.getpid()}-0a0b"
    elsewhere = f"partial-other{host}-{child.pid}-0a0b"
    kept = [".1.refused-0a0b", ".x.partial-a"]
    for form in (".1.", ".2.tar.zst.", ".3.zip."):
        for writer in (dead, alive, elsewhere):
            if form == ".1.":
                (tmp_path / (form + writer)).mkdir()
                (tmp_path / (form + writer) / "file").write_text("")
            else:
                (tmp_path / (form + writer)).write_text("")
        kept += [form + alive, form + elsewhere]
    for name in kept[:2]:
        (tmp_path / name).mkdir()
    with destination.staged(tmp_path, tmp_path / "1"):
        pass
    assert names(tmp_path) == sorted(kept)


def test_a_number_of_a_process_that_is_used_again(tmp_path):
    """A container that is restarted has its name, and often its process numbers, again."""
    mine = tmp_path / f".1.partial-{partial._host()}-{os.getpid()}-0a0b"
    mine.mkdir()
    os.utime(mine, (1e9, 1e9))
    partial.remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_a_killed_compression_is_cleaned_up_by_the_next(tmp_path):
    """Its file had another form of name, which no export removed."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "file").write_bytes(bytes(9))
    child = os.fork()
    if child == 0:
        archive._publish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        archive.write_archive(tmp_path / "1")
    os.waitpid(child, 0)
    (left,) = set(names(tmp_path)) - {"1"}
    assert re.fullmatch(r"\.1\.(tar\.zst|zip)\.partial-\w+-\d+-[0-9a-f]+", left)
    path, _ = archive.write_archive(tmp_path / "1")
    assert names(tmp_path) == ["1", path.name]


HOSTILE = {
    # TensorFlow loaded no SavedModel from a[1], and several folders' from a*.
    **dict.fromkeys(("a[1]", "a[", "a*", "a?", "a\\b"), r"must not hold \*, \?, \[ or a backslash"),
    **dict.fromkeys(("a\0b", "a\udcffb", "\ud800"), "must be UTF-8 text without a NUL"),
    **dict.fromkeys(("a" * 256, "é" * 128, "a" * 256 + "/m/3"), "names of at most 255 bytes"),
    "/".join(["a" * 200] * 25): "longest name has 200 bytes of",
    "m/" + "9" * 19: "must be at most 9223372036854775807",
    "m/" + "9" * 5000: "of 5000 digits",
}


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_that_are_refused_before_any_work(name, tmp_path):
    with pytest.raises(InputError, match=HOSTILE[name]):
        check_destination(f"{tmp_path}/{name}")
    assert names(tmp_path) == []


def test_unusual_names_that_are_accepted(tmp_path):
    for name in ("é" * 127, "a b", "a]", "{a,b}", "a\nb", "%20", "-x", "m/" + "9" * 18):
        assert check_destination(tmp_path / name).is_relative_to(tmp_path)


def test_errors_that_mean_a_full_disk():
    full = OSError(errno.ENOSPC, "text")
    outer = RuntimeError("failed")
    outer.__cause__ = full
    quota = RuntimeError("UNKNOWN: x; Disk quota exceeded")
    for error in (full, outer, quota, RuntimeError("a; No space left on device")):
        assert destination.is_full(error)
    for error in (None, OSError(errno.EIO, "text"), RuntimeError("failed")):
        assert not destination.is_full(error)


def test_a_disk_that_becomes_full_keeps_nothing(tmp_path):
    with (
        pytest.raises(InputError, match=r"whose disk became full, .* Nothing was exported or kept"),
        destination.staged(tmp_path / "a/m", tmp_path / "a/m/1") as staging,
    ):
        (staging.path / "file").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_an_archive_for_which_the_disk_is_too_small(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "file").write_bytes(bytes(9))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_publish", full)
    with pytest.raises(InputError, match=r"1 itself is complete and kept. Free some space"):
        archive.write_archive(tmp_path / "1")
    assert names(tmp_path) == ["1"]


def test_refused_is_kept_aside(tmp_path):
    with destination.staged(tmp_path, tmp_path / "1") as staging:
        (staging.path / "file").write_text("")
        aside = staging.keep_aside()
    assert re.fullmatch(r"\.1\.refused-[0-9a-f]+", aside.name)
    assert names(aside) == ["file"]
    assert not destination.is_version(aside)
