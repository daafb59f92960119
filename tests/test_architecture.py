"""The shape of the package: who imports whom, and that importing it changes nothing."""

import ast
import functools
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
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
    "flavor/_hugging_face.py",
    "flavor/_hugging_face_loss.py",
    "flavor/_keras3.py",
    "flavor/_keras3_losses.py",
    "flavor/_keras3_multi_worker.py",
    "flavor/_keras3_replay.py",
    "flavor/_tf_keras.py",
    "flavor/_tf_keras_losses.py",
    "flavor/_tf_keras_replay.py",
    "generation/_causal_steps.py",
    "models/_hugging_face_masked_lm.py",
    "models/_kerashub.py",
    "models/_masked_language_model.py",
    "models/_hugging_face.py",
    "models/_sentence_encoder.py",
    "models/_span_classifier.py",
    "models/_token_classifier.py",
}
#: The packages in their order, and what each may import besides `flavor` and itself.
LAYERS = {
    "flavor": set(),
    "runtime": set(),
    "architecture": set(),
    "data": {"architecture"},
    "generation": set(),
    "layers": set(),
    "losses": set(),
    "metrics": {"data"},
    "distribute": set(),
    "dtype_policies": set(),
    "tasks": {"data", "generation", "metrics"},
    "models": {"data", "dtype_policies", "generation", "tasks"},
    "schedules": set(),
    "optimizers": {"schedules"},
    "parametrize": {"architecture"},
    "training": {"architecture", "data", "distribute", "losses", "optimizers", "parametrize"},
    "compression": {"architecture", "parametrize", "training"},
    "peft": {"architecture", "parametrize", "training"},
    "checkpoint": {"data", "distribute", "optimizers", "parametrize", "training"},
    "callbacks": {
        *("architecture", "checkpoint", "data", "distribute", "layers", "models", "optimizers"),
        *("parametrize", "schedules", "training"),
    },
    "exporters": {
        "architecture",
        "compression",
        "data",
        "distribute",
        "generation",
        "metrics",
        "models",
        "parametrize",
        "peft",
        "runtime",
        "tasks",
        "training",
    },
    "versions": {"exporters"},
    "serving": {"exporters", "runtime", "tasks", "versions"},
    "bench": {"architecture", "data", "exporters", "metrics", "runtime", "serving", "versions"},
    "distillation": {"architecture", "checkpoint", "runtime", "training"},
}
LAYERS["pipelines"] = {*LAYERS}
LAYERS["cli"] = {*LAYERS}


@functools.cache
def imports(file):
    """`(module, at module level?)` of every import in a file."""
    tree = ast.parse(file.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found.append((node.module, top))
            found += [(f"{node.module}.{alias.name}", top) for alias in node.names]
    return found


def relative(file):
    return file.relative_to(PACKAGE).as_posix()


def test_there_are_files_to_check():
    assert {"flavor/_keras3.py", "training/_train_step_hook.py", "data/_records.py"} <= set(
        map(relative, FILES)
    )


def test_only_flavor_and_the_loaders_import_a_model_library():
    """Inside functions too."""
    for file in FILES:
        imported = {name.split(".")[0] for name, _ in imports(file)}
        if relative(file) not in MAY_IMPORT_LIBRARIES:
            assert not imported & LIBRARIES, relative(file)


def test_only_flavor_compares_the_name_of_a_library():
    for file in FILES:
        if relative(file).startswith("flavor/"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
                names = [o for o in operands if isinstance(o, ast.Attribute) and o.attr == "name"]
                constants = {o.value for o in operands if isinstance(o, ast.Constant)}
                assert not (names and constants & {"keras", "tf_keras"}), ast.unparse(node)


def test_files_that_import_a_library_are_imported_lazily():
    for name in MAY_IMPORT_LIBRARIES:
        assert (PACKAGE / name).exists(), name
        module = "keras_efficient." + name.removesuffix(".py").replace("/", ".")
        for file in FILES:
            if relative(file) not in MAY_IMPORT_LIBRARIES:
                assert (module, True) not in imports(file), f"{relative(file)} imports {module}"


def test_a_package_imports_only_earlier_packages():
    """Inside functions too."""
    for file in FILES:
        package = relative(file).split("/")[0].removesuffix(".py")
        if package in ("__init__", "__main__"):
            continue
        allowed = LAYERS.get(package, set()) | {package, "flavor", "_errors", "__version__"}
        for name, _ in imports(file):
            parts = name.split(".")
            if parts[0] == "keras_efficient" and len(parts) > 1:
                assert parts[1] in allowed, f"{relative(file)} imports {name}"


def test_the_order_of_the_packages_has_no_cycle():
    order = list(LAYERS)
    for package, allowed in LAYERS.items():
        assert all(order.index(other) < order.index(package) for other in allowed - {package})


def test_every_package_has_its_place():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(LAYERS)


def run(code, **environment):
    """Run `code` in a fresh process; returns its output."""
    clean = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS",)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean | environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_the_package_and_its_subpackages_imports_no_library():
    lists = ("tensorflow", *sorted(LIBRARIES))
    out = run(f"""
import os, sys, time
start = time.process_time()
import keras_efficient as ke
seconds = time.process_time() - start
before = dict(os.environ)
for name in {PACKAGES!r}:
    getattr(ke, name)
print(sorted(set({lists!r}) & set(sys.modules)), dict(os.environ) == before, seconds < 0.15)
""")
    assert out.split() == ["[]", "True", "True"]


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


@pytest.mark.full
def test_our_package_before_tf_mot():
    pytest.importorskip("tensorflow_model_optimization")
    out = run(f"""
import os
import re
import keras_efficient as ke
{TRAIN_BOTH}
ke.prune, ke.accumulate
print(os.environ.get("TF_USE_LEGACY_KERAS"))
import tensorflow_model_optimization
train()
print(os.environ.get("TF_USE_LEGACY_KERAS"))
""")
    # We set nothing. Trap 30, upstream: importing TF-MOT does.
    assert out.split() == ["None", "1"]


@pytest.mark.full
def test_tf_mot_before_our_package():
    pytest.importorskip("tensorflow_model_optimization")
    run(f"""
import tensorflow_model_optimization
import keras_efficient as ke
{TRAIN_BOTH}
train()
""")


@pytest.mark.parametrize("module", ["", *PACKAGES])
def test_every_public_name_is_there_and_explained(module):
    module = getattr(ke, module) if module else ke
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), name


def test_a_misspelt_name_is_an_attribute_error():
    for module in (ke, *(getattr(ke, name) for name in PACKAGES)):
        with pytest.raises(AttributeError, match=f"No {module.__name__} attribute acumulate"):
            module.acumulate  # noqa: B018


def test_a_private_file_does_not_shadow_the_function_in_it():
    importlib.import_module("keras_efficient.compression._prune")
    importlib.import_module("keras_efficient.exporters._export")
    assert inspect.isfunction(ke.prune) and inspect.isfunction(ke.compression.prune)
    assert inspect.isfunction(ke.export) and inspect.ismodule(ke.exporters)


def test_type_checkers_see_signatures_and_refuse_misspelt_names(tmp_path):
    pytest.importorskip("pyright")
    (tmp_path / "script.py").write_text(
        "import keras_efficient as ke\nreveal_type(ke.prune)\nke.prnue\n"
    )
    settings = {"include": ["script.py"], "extraPaths": [str(PACKAGE.parent)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    found = {d["range"]["start"]["line"]: d for d in json.loads(done.stdout)["generalDiagnostics"]}
    assert "final_sparsity: " in found[1]["message"] and "PruneReport" in found[1]["message"]
    assert found[2]["severity"] == "error" and "prnue" in found[2]["message"]


#: Distributions that others which are declared cannot do without.
_TRANSITIVE = {
    "google": "protobuf, of tensorflow",
    "h5py": "keras",
    "markupsafe": "jinja2",
    "ml_dtypes": "keras",
}
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "official": "tf-models-official",
    "tensorflow_serving": "tensorflow-serving-api",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
}


def test_what_code_examples_and_benchmarks_import_is_declared():
    """TensorFlow 2.21 no longer depends on TensorBoard, which a callback of the libraries needs."""
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[\[<>=~ ]", requirement)[0].lower().replace("_", "-")
        for requirement in [*project["dependencies"], *itertools.chain(*extras.values())]
    }
    # What a benchmark installs into an environment of its own.
    for requirements in root.glob("benchmarks/*-requirements.txt"):
        declared |= {re.split(r"[<>=]", line)[0] for line in requirements.read_text().splitlines()}
    files = [*FILES, *root.glob("examples/*.py"), *root.glob("benchmarks/*.py")]
    own = {"keras_efficient", *(path.stem for path in files)}
    missing = {}
    for path in files:
        text = path.read_text()
        modules = {"tensorboard"} if "callbacks.TensorBoard(" in text else set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(str(node.module))
        for module in {module.split(".")[0] for module in modules} - own - set(_TRANSITIVE):
            distribution = _DISTRIBUTIONS.get(module, module).replace("_", "-")
            if module not in sys.stdlib_module_names and distribution not in declared:
                missing.setdefault(distribution, []).append(path.name)
    assert missing == {}
    # `make env` installs what the tests and examples need.
    (everything,) = [text for text in extras["dev"] if text.startswith("keras_efficient[")]
    assert "tensorboard" in everything
