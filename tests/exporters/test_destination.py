"""The directory of a new version, which appears complete or not at all."""

import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from keras_efficient._errors import InputError
from keras_efficient.exporters import _destination as destination, check_destination


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
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = destination._host()
    dead = f".1.partial-{host}-{child.pid}-0a0b"
    alive = f".1.partial-{host}-{os.getpid()}-0a0b"
    elsewhere = f".1.partial-other{host}-{child.pid}-0a0b"
    refused = ".1.refused-0a0b"
    for name in (dead, alive, elsewhere, refused):
        (tmp_path / name).mkdir()
    with destination.staged(tmp_path, tmp_path / "1"):
        pass
    assert names(tmp_path) == sorted([alive, elsewhere, refused])


def test_refused_is_kept_aside(tmp_path):
    with destination.staged(tmp_path, tmp_path / "1") as staging:
        (staging.path / "file").write_text("")
        aside = staging.keep_aside()
    assert re.fullmatch(r"\.1\.refused-[0-9a-f]+", aside.name)
    assert names(aside) == ["file"]
    assert not destination.is_version(aside)
