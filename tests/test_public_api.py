"""Every public name: exists, is annotated, and documents its arguments, results and errors."""

import ast
import dataclasses
import enum
import inspect
import re
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

import keras_efficient as ke

PACKAGE = Path(ke.__file__).parent
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))
#: Sections that Google style knows, which end the section before.
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields", "Example", "Examples", "Reference")


def public(stub):
    """`package.name` of each name in a stub."""
    package = stub.parent.relative_to(PACKAGE).as_posix()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{package}.{alias.asname}" for alias in node.names)


# The root's names are those of its packages.
NAMES = [name for stub in STUBS if stub.parent != PACKAGE for name in public(stub)]


@pytest.fixture
def value(request):
    """The class or function of a public name; constants have no docstring to look at."""
    package, name = request.param.split(".")
    value = getattr(getattr(ke, package), name)
    if not documented(value):
        assert re.search(rf"^#: .*(\n#.*)*\n{name}\b", _source(package), re.MULTILINE), "no `#:`"
        pytest.skip("a constant: its comment is checked, and it has no arguments")
    return value


def _source(package):
    return "\n".join(path.read_text() for path in (PACKAGE / package).glob("*.py"))


def documented(value):
    return isinstance(value, type | types.FunctionType) and value is not Any


def is_report(value):
    """A class whose instances users receive and do not make."""
    return isinstance(value, type) and (
        value.__name__.endswith("Report") or issubclass(value, tuple | enum.Enum)
    )


def sections(doc):
    """`{section: text}` of a Google-style docstring."""
    found, current = {"": []}, ""
    for line in inspect.cleandoc(doc or "").splitlines():
        match = re.match(rf"({'|'.join(SECTIONS)}):\s*(.*)$", line)
        if match:
            current = match.group(1)
            found[current] = [match.group(2)]
        else:
            found[current].append(line)
    return {name: textwrap.dedent("\n".join(lines)) for name, lines in found.items()}


def arguments(text):
    """`{argument: text}` of an `Args:` section; several may share a line, as in `a, b: ...`."""
    found, names = {}, []
    for line in text.splitlines():
        match = re.match(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*)\s*(?:\([^)]*\))?:(?!:)\s?(.*)$", line)
        if match:
            names = [n.strip().lstrip("*") for n in match.group(1).split(",")]
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}"
    return found


def parameters(value):
    return [
        p for p in inspect.signature(value).parameters.values() if p.name not in ("self", "cls")
    ]


def source_of(value):
    return ast.parse(textwrap.dedent(inspect.getsource(value)))


def own_doc(value):
    return value.__doc__ or ""


@pytest.mark.parametrize("value", NAMES, indirect=True)
def test_annotated(value):
    if is_report(value) or (isinstance(value, type) and "__init__" not in vars(value)):
        return
    missing = [p.name for p in parameters(value) if p.annotation is inspect.Parameter.empty]
    assert not missing, f"no annotation: {missing}"
    if not isinstance(value, type):
        returned = inspect.signature(value).return_annotation
        assert returned is not inspect.Signature.empty, "no annotation of what it returns"


@pytest.mark.parametrize("value", NAMES, indirect=True)
def test_documented(value):
    doc = sections(own_doc(value))
    assert doc[""].strip(), "no summary"
    if is_report(value) or dataclasses.is_dataclass(value):
        fields = (
            [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
            if dataclasses.is_dataclass(value)
            else getattr(value, "_fields", ())
        )
        explained = {**arguments(doc.get("Attributes", "")), **arguments(doc.get("Args", ""))}
        # A report made from another documents its own fields; the rest stand in its base.
        for base in value.__mro__[1:]:
            explained |= arguments(sections(own_doc(base)).get("Attributes", ""))
        assert not set(fields) - set(explained), "undocumented fields"
        return
    explained = arguments(doc.get("Args", ""))
    wanted = parameters(value)
    assert not {p.name for p in wanted} - set(explained), "undocumented arguments"
    silent = [
        p.name
        for p in wanted
        if p.default is not inspect.Parameter.empty
        and not re.search(r"default|optional", explained[p.name], re.IGNORECASE)
    ]
    assert not silent, f"arguments whose default is not documented: {silent}"
    if not isinstance(value, type):
        returned = inspect.signature(value).return_annotation
        assert returned in (None, "None") or "Returns" in doc or "Yields" in doc, "no Returns"
    tree = (
        source_of(value if not isinstance(value, type) else value.__init__)
        if (not isinstance(value, type) or "__init__" in vars(value))
        else ast.parse("")
    )
    if any(isinstance(node, ast.Raise) for node in ast.walk(tree)):
        assert "Raises" in doc, "it raises, and no section Raises says when"


@pytest.mark.parametrize("value", NAMES, indirect=True)
def test_example_and_reference(value):
    if is_report(value) or dataclasses.is_dataclass(value):
        return
    if isinstance(value, type) and issubclass(value, Exception):
        return
    doc = sections(own_doc(value))
    example = doc.get("Example", doc.get("Examples", ""))
    assert ">>>" in example, "no example that runs"
    assert doc.get("Reference", "").strip(), "no reference"


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_every_public_name_is_in_the_api_reference(stub):
    """One page per package, whose names mkdocstrings reads from the stub's imports."""
    if stub.parent == PACKAGE:
        return
    package = stub.parent.relative_to(PACKAGE).parts[0]
    page = (PACKAGE.parent / "docs" / "api" / f"{package}.md").read_text()
    listed = set(re.findall(r"^::: keras_efficient\.(?:\w+\.)*(\w+)$", page, re.MULTILINE))
    names = {name.split(".")[1] for name in public(stub)}
    assert names == listed
