"""A version's manifest: its content, and that missing, added and changed files are found."""

import dataclasses
import hashlib
import json
import os

import pytest
import text_models

from keras_efficient._errors import InputError
from keras_efficient.exporters import ExportReport
from keras_efficient.exporters._files import regular_files
from keras_efficient.exporters._manifest import write_manifest
from keras_efficient.versions import _check_manifest as check_manifest_module
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version


@pytest.fixture
def version(tmp_path):
    """Return a small version with a manifest."""
    folder = tmp_path / "reviews" / "1"
    (folder / "variables").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    (folder / "nothing").write_bytes(b"")
    return text_models.sign(folder)


def rewrite(version, change):
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_content(version):
    manifest = check_manifest(version)
    assert manifest["format"] == 1
    assert manifest["files"]["saved_model.pb"] == {
        "sha256": hashlib.sha256(b"graph").hexdigest(),
        "bytes": 5,
    }
    assert set(manifest["files"]) == {"saved_model.pb", "variables/variables.index", "nothing"}
    assert manifest["created"] == text_models.REPORT.created
    assert manifest["versions"] == text_models.REPORT.versions
    assert manifest["data_fingerprint"] == "abc"
    assert manifest["metrics"] == {"accuracy": 0.75, "bytes": 123}
    assert manifest["recipe"] == {"quantize": None}


def test_the_fields_it_takes_from_a_report_exist():
    names = {field.name for field in dataclasses.fields(ExportReport)}
    assert set(vars(text_models.REPORT)) <= names


def test_the_html_report_may_be_added_later(version):
    (version / "report.html").write_text("<html>")
    check_manifest(version)
    (version / "variables" / "report.html").write_text("<html>")
    with pytest.raises(InputError, match=r"'variables/report\.html' is not in the manifest"):
        check_manifest(version)


def test_it_is_written_once(version):
    with pytest.raises(InputError, match="manifest is written once"):
        write_manifest(version, report=text_models.REPORT, recipe={})


@pytest.mark.parametrize("recipe", [{"a": float("nan")}, {"a": object()}, {(1, 2): 3}])
def test_recipe_is_json(recipe, version):
    (version / "manifest.json").unlink()
    with pytest.raises(InputError, match="`recipe` must hold what JSON does"):
        write_manifest(version, report=text_models.REPORT, recipe=recipe)
    with pytest.raises(InputError, match="`recipe` must be a dict"):
        write_manifest(version, report=text_models.REPORT, recipe=[1])
    assert not (version / "manifest.json").exists()


DAMAGES = {
    "missing": (lambda v: (v / "variables/variables.index").unlink(), "'variables.*' is missing"),
    "added": (lambda v: (v / "model.pkl").write_bytes(b"x"), r"'model\.pkl' is not in the manif"),
    "truncated": (lambda v: (v / "saved_model.pb").write_bytes(b"gra"), "3 bytes instead of 5"),
    "changed": (lambda v: text_models.flip_a_byte(v / "saved_model.pb"), "its SHA-256 differs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage, version):
    apply, message = DAMAGES[damage]
    apply(version)
    with pytest.raises(InputError, match=f"{message}.*Copy the version again"):
        check_manifest(version)


@pytest.mark.parametrize("target", ["file", "folder", "nowhere"])
def test_links_are_refused(target, version, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (version / "link").symlink_to(tmp_path / target)
    for call in (check_manifest, text_models.sign):
        with pytest.raises(InputError, match="a symbolic link at 'link'"):
            call(version)


def test_a_link_in_place_of_a_listed_file(version, tmp_path):
    (version / "saved_model.pb").rename(tmp_path / "elsewhere.pb")
    (version / "saved_model.pb").symlink_to(tmp_path / "elsewhere.pb")
    with pytest.raises(InputError, match=r"a symbolic link at 'saved_model\.pb'"):
        check_manifest(version)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_named_pipe_is_not_opened(version):
    (version / "saved_model.pb").unlink()
    os.mkfifo(version / "saved_model.pb")
    with pytest.raises(InputError, match="no regular file at"):
        check_manifest(version)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "./a", "a//b", "", "a\\b", "C:/x", "a\x00b"]
)
def test_names_that_leave_the_folder(name, version):
    entry = {"sha256": "0" * 64, "bytes": 0}
    rewrite(version, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(InputError, match="may only list files inside its folder"):
        check_manifest(version)


ENTRIES = [
    None,
    "x",
    {},
    {"sha256": "0" * 64},
    {"sha256": "0" * 64, "bytes": -1},
    {"sha256": "0" * 64, "bytes": True},
    {"sha256": "0" * 64, "bytes": 5.0},
    {"sha256": "0" * 63, "bytes": 5},
    {"sha256": ["0"] * 64, "bytes": 5},
    {"sha256": "G" * 64, "bytes": 5},
]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_malformed_entries(entry, version):
    rewrite(version, lambda manifest: manifest["files"].update({"saved_model.pb": entry}))
    with pytest.raises(InputError, match="must have its sha256"):
        check_manifest(version)


MANIFESTS = {
    "empty": (b"", "must be JSON"),
    "no text": (b"\xff\xfe", "must be JSON"),
    "deep": (b"[" * 200_000, "must be JSON"),
    "a long number": (b'{"format": ' + b"9" * 10_000 + b"}", "must be JSON"),
    "a list": (b"[]", "object of format 1"),
    "another format": (b'{"format": 2}', "object of format 1.*format 2"),
    "true": (b'{"format": true}', "object of format 1"),
    "no files": (b'{"format": 1}', "must list the version's files"),
    "files in a list": (b'{"format": 1, "files": ["a"]}', "must list the version's files"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_malformed_manifests(kind, version):
    text, message = MANIFESTS[kind]
    (version / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        check_manifest(version)


def test_a_huge_manifest_is_not_read(version):
    with open(version / "manifest.json", "wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(InputError, match=r"at most .* bytes. Received: 5,000,000,000"):
        check_manifest(version)


def test_no_manifest(version):
    (version / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"without one\. Export the model with this version"):
        check_manifest(version)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"must be a folder.*does not exist"):
        check_manifest(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"must be a folder.*is a file"):
        check_manifest(tmp_path / "file")


def test_too_many_files(version, monkeypatch):
    monkeypatch.setattr("keras_efficient.exporters._files._MAX_FILES", 3)
    with pytest.raises(InputError, match="at most 3 files"):
        regular_files(version)


def test_unreadable_parts(version, monkeypatch):
    def closed(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match="Every folder of a version must be readable"):
        check_manifest(version)
    monkeypatch.undo()
    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(InputError, match="Every file of a version must be readable"):
        check_manifest_module.sha256(version / "saved_model.pb")


# --- find_version ---------------------------------------------------------------------------------


def test_the_newest_or_the_named_version(version):
    base = version.parent
    for name in ("2", "10", ".11.partial-x", "latest"):
        (base / name).mkdir()
    (base / "12").write_text("")
    assert find_version(base) == base / "10"
    assert find_version(str(version)) == version


def test_a_model_may_be_named_by_a_number(version):
    base = version.parent.rename(version.parent.with_name("2024"))
    assert find_version(base) == base / "1"
    assert find_version(base / "1") == base / "1"


def test_an_empty_version_is_found(tmp_path):
    (tmp_path / "3").mkdir()
    assert find_version(tmp_path / "3") == tmp_path / "3"


def test_no_path():
    for directory in (None, "", " ", 3):
        with pytest.raises(InputError, match="folder must be a path"):
            find_version(directory)


def test_no_version(tmp_path):
    with pytest.raises(InputError, match=r"folder must exist.*which does not exist"):
        find_version(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"folder must exist.*which is a file"):
        find_version(tmp_path / "file")
    with pytest.raises(InputError, match="must hold versions"):
        find_version(tmp_path)
