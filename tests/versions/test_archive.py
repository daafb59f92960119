"""Archives: complete, reproducible, and unable to write outside their folder."""

import io
import os
import shutil
import tarfile
import zipfile

import pytest
import text_models

from keras_efficient._errors import InputError
from keras_efficient.exporters import _archive as archive_module
from keras_efficient.versions._archive import archive
from keras_efficient.versions._unpack import unpack


@pytest.fixture
def version(tmp_path):
    folder = tmp_path / "reviews" / "3"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph" * 1000)
    (folder / "variables" / "data").write_bytes(bytes(100_000))
    (folder / ("long" * 40)).write_bytes(b"")
    text_models.sign(folder)
    (folder / "report.html").write_text("<html>")
    return folder


@pytest.fixture(params=[".zip", ".tar.zst"])
def suffix(request, monkeypatch):
    """Run the test with each archive format that is installed."""
    if request.param == ".zip":
        monkeypatch.setattr(archive_module, "zstandard", lambda: None)
    else:
        pytest.importorskip("zstandard")
    return request.param


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(version, suffix, tmp_path):
    path, size = archive(version)
    assert path == version.with_name(f"3{suffix}")
    assert size == path.stat().st_size < 50_000
    assert names(version.parent) == ["3", path.name]
    assert unpack(path, tmp_path / "other") == tmp_path / "other" / "3"
    assert contents(tmp_path / "other" / "3") == contents(version)
    assert names(tmp_path / "other") == ["3"]


def test_the_same_version_gives_the_same_bytes(version, suffix, tmp_path):
    one = archive(version)[0].read_bytes()
    again = tmp_path / "again" / "3"
    again.mkdir(parents=True)
    for name in sorted(contents(version), reverse=True):
        (again / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(version / name, again / name)
    os.utime(again / "saved_model.pb", (0, 10**9))
    (again / "saved_model.pb").chmod(0o600)
    assert archive(again)[0].read_bytes() == one


def test_nothing_is_overwritten(version, suffix):
    path = version.with_name(f"3{suffix}")
    path.write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        archive(version)
    assert path.read_text() == "mine"


def test_a_lost_race(version, suffix, monkeypatch):
    path = version.with_name(f"3{suffix}")
    link = os.link

    def late(source, target):
        path.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(InputError, match="never overwritten"):
        archive(version)
    assert path.read_text() == "theirs"
    assert names(version.parent) == ["3", path.name]


def test_a_filesystem_without_hard_links(version, suffix, tmp_path, monkeypatch):
    def unsupported(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    path, _ = archive(version)
    assert names(version.parent) == ["3", path.name]
    assert contents(unpack(path, tmp_path / "other")) == contents(version)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_behind(error, version, monkeypatch):
    def broken(*args):
        args[0].write_bytes(b"half")
        raise error

    monkeypatch.setattr(archive_module, "_zip", broken)
    monkeypatch.setattr(archive_module, "zstandard", lambda: None)
    with pytest.raises(type(error)):
        archive(version)
    assert names(version.parent) == ["3"]


def test_a_damaged_version_is_not_archived(version):
    text_models.flip_a_byte(version / "saved_model.pb")
    with pytest.raises(InputError, match="SHA-256"):
        archive(version)


def test_only_versions_can_be_archived(version):
    with pytest.raises(InputError, match="Only a version can be archived"):
        archive(version.parent)


# --- unpack --------------------------------------------------------------------------------------


def test_an_existing_version_is_not_overwritten(version, suffix):
    path, _ = archive(version)
    with pytest.raises(InputError, match="never overwrites a version"):
        unpack(path, version.parent)


@pytest.mark.parametrize("name", ["none.zip", "3.tar", "x.tar.zst", "3.tar.gz"])
def test_no_archive(name, tmp_path):
    if name != "none.zip":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"such as 3\.tar\.zst or 3\.zip"):
        unpack(tmp_path / name, tmp_path / "m")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "garbage"])
def test_damaged_archives(damage, version, suffix, tmp_path):
    path, size = archive(version)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: size // 2]
    elif damage == "flipped":
        data[size // 3] ^= 0xFF
    else:
        data = b"" if damage == "empty" else b"garbage" * 100
    path.write_bytes(data)
    with pytest.raises(InputError):
        unpack(path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_tar_without_zstandard(version, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_efficient.versions._unpack.zstandard", lambda: None)
    (tmp_path / "3.tar.zst").write_bytes(b"x")
    with pytest.raises(InputError, match="needs zstandard"):
        unpack(tmp_path / "3.tar.zst", tmp_path / "m")


BAD_NAMES = ["../evil", "/evil", "3/../../evil", "4/evil", "3", "evil", "3//evil", "3/a\\..\\evil"]


def zip_of(path, *members):
    with zipfile.ZipFile(path, "w") as packed:
        for info, data in members:
            packed.writestr(info, data)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_in_a_zip_that_lead_elsewhere(name, tmp_path):
    zip_of(tmp_path / "3.zip", (name, b"evil"))
    with pytest.raises(InputError, match="below the folder of its version"):
        unpack(tmp_path / "3.zip", tmp_path / "a/b/m")
    assert names(tmp_path) == ["3.zip"]


def test_a_link_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("3/link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    zip_of(tmp_path / "3.zip", (info, b"/etc/passwd"))
    with pytest.raises(InputError, match="not a regular file"):
        unpack(tmp_path / "3.zip", tmp_path / "m")


def test_a_repeated_name(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zip_of(tmp_path / "3.zip", ("3/a", b"1"), ("3/a", b"2"))
    with pytest.raises(InputError, match="must be complete"):
        unpack(tmp_path / "3.zip", tmp_path / "m")


def test_an_archive_without_a_manifest(tmp_path):
    zip_of(tmp_path / "3.zip", ("3/saved_model.pb", b"graph"))
    with pytest.raises(InputError, match="without one"):
        unpack(tmp_path / "3.zip", tmp_path / "m")
    assert names(tmp_path) == ["3.zip"]


def test_more_data_than_fits_on_the_disk(version, suffix, tmp_path, monkeypatch):
    path, _ = archive(version)
    usage = shutil.disk_usage(tmp_path)._replace(free=99_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="must have space"):
        unpack(path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "device", *BAD_NAMES])
def test_a_tar_with_other_members(kind, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    types = {
        "link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    info = tarfile.TarInfo("3/x" if kind in types else kind)
    info.type = types.get(kind, tarfile.REGTYPE)
    info.linkname = "/etc/passwd" if kind == "link" else "3/x" if kind == "hard link" else ""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(info)
    packed = zstandard.ZstdCompressor().compress(buffer.getvalue())
    (tmp_path / "3.tar.zst").write_bytes(packed)
    with pytest.raises(InputError, match="regular files below the folder of its version"):
        unpack(tmp_path / "3.tar.zst", tmp_path / "a/b/m")
    assert names(tmp_path) == ["3.tar.zst"]
