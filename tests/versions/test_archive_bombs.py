"""Small archives that expand to much are refused before a file is written or memory is taken."""

import struct
import tarfile
import tracemalloc
import zipfile

import pytest
import text_models

from keras_efficient._errors import InputError
from keras_efficient.exporters import _archive as archive_module
from keras_efficient.versions import _unpack
from keras_efficient.versions._archive import archive
from keras_efficient.versions._unpack import unpack

GB = 10**9


def header(kind, size, name="3/x"):
    """One block of 512 bytes that claims `size` bytes of data."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(*records):
    """An extended header with `key=value` records."""
    data = b""
    for record in records:
        length = len(record) + 2
        while len(f"{length} {record}\n") != length:
            length += 1
        data += f"{length} {record}\n".encode()
    return header(tarfile.XHDTYPE, len(data)) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def regular(size, name="3/x"):
    return header(tarfile.REGTYPE, size, name)


SPARSE = "is a sparse file"
TARS = {
    "a long name of 3 GB": (header(tarfile.GNUTYPE_LONGNAME, 3 * GB), "not a regular file"),
    "a long link of 3 GB": (header(tarfile.GNUTYPE_LONGLINK, 3 * GB), "not a regular file"),
    "an extended header of 3 GB": (header(tarfile.XHDTYPE, 3 * GB), "header of 3,000,000,000"),
    "a global header of 3 GB": (header(tarfile.XGLTYPE, 3 * GB), "not a regular file"),
    "a header of Solaris": (header(tarfile.SOLARIS_XHDTYPE, 3 * GB), "not a regular file"),
    "a header of negative size": (header(tarfile.XHDTYPE, -512), "header of -512 bytes"),
    "GNU sparse": (header(tarfile.GNUTYPE_SPARSE, 0), "not a regular file"),
    "sparse 0.0": (pax(f"GNU.sparse.size={8 * GB}") + regular(0), SPARSE),
    "sparse 0.1": (pax(f"GNU.sparse.map=0,{8 * GB}") + regular(0), SPARSE),
    "sparse 1.0": (
        pax("GNU.sparse.major=1", "GNU.sparse.minor=0", f"GNU.sparse.realsize={8 * GB}")
        + regular(GB)
        + b"9999999\n"
        + b"0\n" * 1_000_000,
        SPARSE,
    ),
    "a file of 8 GB": (regular(8 * GB), "8,000,000,000 in total"),
    "the size in an extended header": (pax(f"size={8 * GB}") + regular(0), "8,000,000,000 in tot"),
    "10^18 bytes": (pax(f"size={10**18}") + regular(0), "in total"),
    "a negative size": (regular(-1), "of -1 bytes"),
    "headers without end": (pax("path=3/y") * 2_000 + regular(0), "must be complete"),
    "a deep folder": (pax(f"path=3/{'a/' * 20}x") + regular(0), "the name '3/a/a"),
    "a long path": (pax(f"path=3/{'a' * 1000}") + regular(0), "the name '3/aaa"),
}


def packed(path, data, **parameters):
    zstandard = pytest.importorskip("zstandard")
    settings = zstandard.ZstdCompressionParameters.from_level(3, **parameters)
    with (
        open(path, "wb") as raw,
        zstandard.ZstdCompressor(compression_params=settings).stream_writer(raw) as out,
    ):
        out.write(data)
    return path


def refused(path, message):
    """Assert that nothing was written, and that little memory was taken."""
    before = sorted(path.parent.iterdir())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            unpack(path, path.parent / "m")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("case", TARS)
def test_a_small_tar_that_expands_to_much(case, tmp_path, monkeypatch):
    monkeypatch.setattr(_unpack, "staged", None)  # Nothing may be written: not even this is called.
    data, message = TARS[case]
    refused(packed(tmp_path / "3.tar.zst", data + bytes(1024)), message)


def test_a_tar_of_300_000_empty_files(tmp_path, monkeypatch):
    assert _unpack.MAX_FILES == 10_000
    monkeypatch.setattr(_unpack, "MAX_FILES", 1_000)
    data = b"".join(regular(0, f"3/{number}") for number in range(1_001))
    refused(packed(tmp_path / "3.tar.zst", data + bytes(1024)), "more than 1,000 files")


def test_a_zip_of_300_000_empty_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_unpack, "MAX_FILES", 1_000)
    path = tmp_path / "3.zip"
    with zipfile.ZipFile(path, "w") as made:
        for number in range(1_001):
            made.writestr(f"3/{number}", b"")
    refused(path, "more than 1,000 files")
    # The directory of a zip is not even read if it is too large.
    directory = bytes(4_000_001)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 0, 0)
    path.write_bytes(directory + end)
    refused(path, "more than 1,000 files")


def test_a_large_total_of_small_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_unpack, "_MAX_BYTES", 10_000)
    monkeypatch.setattr(_unpack, "_MAX_RATIO", 10)
    path = tmp_path / "3.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(10):
            made.writestr(f"3/{number}", bytes(5_000))
    assert 10 * path.stat().st_size < 50_000 - 10_000
    refused(path, "in total, in an archive of")


def test_compression_that_takes_much_memory(tmp_path):
    path = tmp_path / "3.zip"
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", method) as made:
            made.writestr("3/x", bytes(1000))
        refused(path, "not compressed by deflate")
    path.unlink()
    refused(packed(tmp_path / "3.tar.zst", bytes(1024), window_log=27), "too much memory")


def test_what_is_too_much_to_unpack_is_not_archived(tmp_path, monkeypatch):
    folder = tmp_path / "3"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    text_models.sign(folder)
    monkeypatch.setattr(archive_module, "MAX_FILES", 1)
    with pytest.raises(InputError, match="at most 1 files"):
        archive(folder)


def test_the_largest_pruned_weights_unpack(tmp_path):
    """99.9% of zeros compress to a fiftieth and less, which is no bomb."""
    folder = tmp_path / "3"
    folder.mkdir()
    weights = bytearray(4_000_000)
    weights[::4000] = b"\x3f" * 1000
    (folder / "variables").write_bytes(weights)
    text_models.sign(folder)
    path, size = archive(folder)
    assert size < len(weights) / 50
    assert (unpack(path, tmp_path / "m") / "variables").read_bytes() == weights
