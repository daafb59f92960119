"""The package's shape: who imports whom, and that importing it changes nothing."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_efficient as ke

PACKAGE = Path(ke.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.pyi"))
LIBRARIES = {
    "keras",
    "tf_keras",
    "keras_hub",
    "transformers",
    "official",
    "tensorflow_model_optimization",
}
MAY_IMPORT_LIBRARIES = {
    "flavor/_keras3.py",
    "flavor/_tf_keras.py",
    "models/_kerashub.py",
    "models/_hugging_face.py",
}
#: The packages in their order, and what each may import besides `flavor` and itself.
LAYERS = {
    "flavor": set(),
    "runtime": set(),
    "data": set(),
    "layers": set(),
    "distribute": set(),
    "dtype_policies": set(),
    "models": {"data", "dtype_policies"},
    "schedules": set(),
    "optimizers": {"schedules"},
    "parametrize": set(),
    "training": {"data", "distribute", "parametrize"},
    "compression": {"parametrize", "training"},
    "peft": {"parametrize", "training"},
    "checkpoint": {"data", "distribute", "optimizers", "parametrize", "training"},
    "callbacks": {
        *("checkpoint", "data", "distribute", "models", "optimizers", "parametrize", "schedules"),
        "training",
    },
    "exporters": {
        "compression",
        "data",
        "distribute",
        "models",
        "parametrize",
        "peft",
        "runtime",
        "training",
    },
    "versions": {"exporters"},
    "serving": {"exporters", "runtime", "versions"},
    "bench": {"exporters", "runtime", "serving", "versions"},
}
LAYERS["cli"] = {*LAYERS}


def imports(file):
    """`(module, at module level?)` of every import in a file."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield node.module, top
            yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)


def relative(file):
    return file.relative_to(PACKAGE).as_posix()


def test_there_are_files_to_check():
    assert {"flavor/_keras3.py", "training/_train_step_hook.py", "data/_records.py"} <= set(
        map(relative, FILES)
    )


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_only_the_flavours_and_the_loaders_import_a_model_library(file):
    imported = {name.split(".")[0] for name, top in imports(file) if top}
    if relative(file) not in MAY_IMPORT_LIBRARIES:
        assert not imported & LIBRARIES


@pytest.mark.parametrize("name", sorted(MAY_IMPORT_LIBRARIES))
def test_files_that_import_a_library_are_imported_lazily(name):
    module = "keras_efficient." + name.removesuffix(".py").replace("/", ".")
    found = {top for file in FILES for imported, top in imports(file) if imported == module}
    assert found == {False}


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_a_room_imports_only_rooms_to_its_left(file):
    room = relative(file).split("/")[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    allowed = LAYERS.get(room, set()) | {room, "flavor", "_errors"}
    if room == "flavor":
        allowed = {"flavor", "_errors"}
    for name, _ in imports(file):
        parts = name.split(".")
        if parts[0] == "keras_efficient" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{relative(file)} imports {name}"


def test_every_room_has_its_place():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(LAYERS)


def run(code):
    """Run `code` in a fresh process; returns its output."""
    clean = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS",)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_and_its_rooms_imports_no_library():
    lists = ("tensorflow", *sorted(LIBRARIES))
    out = run(f"""
import os, sys
before = dict(os.environ)
import keras_efficient as ke
for name in {PACKAGES!r}:
    getattr(ke, name)
print(sorted(set({lists!r}) & set(sys.modules)), dict(os.environ) == before)
""")
    assert out.split() == ["[]", "True"]


TRAIN_BOTH = """
import numpy as np
def train():
    import keras, tf_keras
    for library in (keras, tf_keras):
        model = library.Sequential([library.layers.Input((3,)), library.layers.Dense(1)])
        assert ke.flavor.of(model).name == library.__name__
        assert ke.flavor.of(model).keras is library
        before = model.get_weights()[0].copy()
        model.compile("sgd", "mse")
        ke.accumulate(model, 2)
        model.fit(np.ones((4, 3)), np.ones((4, 1)), batch_size=4, verbose=0)
        assert int(model.optimizer.iterations) == 1
        assert abs(model.get_weights()[0] - before).max() > 0
"""


def test_our_package_before_tf_mot():
    pytest.importorskip("tensorflow_model_optimization")
    out = run(f"""
import os
import keras_efficient as ke
{TRAIN_BOTH}
train()
print(os.environ.get("TF_USE_LEGACY_KERAS"))
import tensorflow_model_optimization
train()
print(os.environ.get("TF_USE_LEGACY_KERAS"))
""")
    # We set nothing. Trap 30, upstream: importing TF-MOT does.
    assert out.split() == ["None", "1"]


def test_tf_mot_before_our_package():
    pytest.importorskip("tensorflow_model_optimization")
    run(f"""
import tensorflow_model_optimization
import keras_efficient as ke
{TRAIN_BOTH}
train()
""")


MODULES = [ke, *(getattr(ke, name) for name in PACKAGES)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_explained(module):
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), name


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_misspelt_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match="has no attribute 'acumulate'"):
        module.acumulate  # noqa: B018


def test_export_stays_the_function():
    importlib.import_module("keras_efficient.exporters._export")
    assert inspect.isfunction(ke.export)
    assert inspect.ismodule(ke.serving)
