"""What the documentation says is so: its examples run, its links, options and messages exist."""

import ast
import contextlib
import doctest
import importlib
import json
import re
import runpy
import sys
import tomllib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from cli import command_line
from in_process_export import serve_here

import keras_efficient as ke

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("saved_models/*.md")])
#: `quantize="int8"` is refused where int8 products saturate.
README = (ROOT / "README.md").read_text()
#: What the pages call the folder of a model.
MODEL = "models/all-MiniLM-L6-v2"


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder that holds what the pages name: a (tiny) model, and reviews in a CSV file."""
    folder = tmp_path_factory.mktemp("docs")
    # The pages cut texts at 128 tokens.
    with mock.patch.object(command_line, "POSITIONS", 128):
        command_line.write_bert(folder / MODEL, dropout=0.1)
    # Of about one length: a graph is traced for each padded length.
    rows = [row for row in command_line.review_rows(300) if 9 <= len(row[0].split()) <= 14]
    command_line.write_reviews(folder / "reviews.csv", rows[:60])
    return folder


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    """Run in a fresh folder that holds `tiny`'s files; leave no precision policy behind."""
    (tmp_path / "models").symlink_to(tiny / "models")
    (tmp_path / "reviews.csv").symlink_to(tiny / "reviews.csv")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for library in ("keras", "tf_keras"):
        ke.mixed_precision("float32", library=library)


@pytest.fixture
def quick_export(monkeypatch):
    """Serve in this process, and once: tests/serving has the bare process."""
    serve_here(monkeypatch)


# --- code on the pages ---------------------------------------------------------------------------


#: The pages whose code takes longest; `make test-all` runs it.
LONG = (
    "batch-normalisation.md",
    "compression.md",
    "language-models.md",
    "peft.md",
    "quickstart.md",
    "schedules.md",
    "shrink.md",
    "text-signature.md",
)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.full) if page.name in LONG else page
        for page in PAGES
        if blocks(page.read_text(), "python")
    ],
    ids=name,
)
def test_python_on_a_page_runs(page, here, quick_export):
    """The blocks of a page run one after the other, in one namespace."""
    namespace = {"__name__": "__docs__"}
    for number, block in enumerate(blocks(page.read_text(), "python"), 1):
        code = compile(block, f"{name(page)}, python block {number}", "exec")
        exec(code, namespace)
    assert "ke" in namespace


def test_the_diff_is_short():
    lines = blocks(README, "diff")[0].splitlines()
    assert len(lines) <= 10
    assert {line[0] for line in lines} <= set("+- ")


@pytest.mark.full
def test_the_diff_runs(here, quick_export):
    import keras

    lines = blocks(README, "diff")[0].splitlines()
    namespace = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    exec("\n".join(line[1:] for line in lines if line[0] != "-"), namespace)
    assert (here / "saved_models/reviews/1/report.json").exists()


# --- examples in docstrings ----------------------------------------------------------------------


#: The files whose examples take longest; `make test-all` runs them.
LONG_EXAMPLES = ("exporters/tokenizer_ops/text_tokenizer.py", "bench/_bench.py")
FILES_WITH_EXAMPLES = [
    pytest.param(path, marks=pytest.mark.full) if path.as_posix().endswith(LONG_EXAMPLES) else path
    for path in sorted((ROOT / "keras_efficient").rglob("*.py"))
    if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
]


def documented(path):
    """Every docstring of a file with an example in it."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.DocTestFinder().find(importlib.import_module(module), module)
    return [test for test in found if test.examples and test.filename == str(path)]


class OutputChecker(doctest.OutputChecker):
    """Where an example names no output, it may print what it likes (`fit` does)."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def example_names():
    """What examples take for granted: a compiled model, batches for it, and a loss."""
    import keras

    layers = [keras.Input((3,)), keras.layers.Dense(2)]
    model, loss = keras.Sequential(layers), keras.losses.SparseCategoricalCrossentropy(True)
    model.compile("adam", loss)
    data = tf.data.Dataset.from_tensor_slices((np.ones((16, 3), "float32"), np.zeros(16, "int32")))
    return {"ke": ke, "model": model, "loss": loss, "unbatched": data, "dataset": data.batch(8)}


@pytest.mark.parametrize("path", FILES_WITH_EXAMPLES, ids=name)
def test_docstring_examples(path, here, quick_export):
    examples = documented(path)
    assert examples
    for example in examples:
        names = example_names()
        if "dataset.batch(" in example.docstring:
            names["dataset"] = names["unbatched"]
        example.globs = {**example.globs, **names}
        printed = []
        runner = doctest.DocTestRunner(OutputChecker(), verbose=False)
        result = runner.run(example, out=printed.append)
        assert not result.failed, f"{example.name}: " + "".join(printed)
        # Examples are skipped only if they name a file, data made from one, or a download, or if
        # they change the settings of the process.
        skipped = [e for e in example.examples if e.options.get(doctest.SKIP)]
        assert len(skipped) in (0, len(example.examples)), example.name
        assert all(
            re.search(r'"\w|folder|train|tokenizer|demo_|tune_process', e.source)
            for e in skipped[:1]
        )


def test_generated_pages_are_current():
    """`python docs/generate.py` writes docs/api/ and the file tree of docs/architecture.md."""
    pages = runpy.run_path(str(ROOT / "docs/generate.py"))["pages"]()
    assert [name(path) for path, text in pages.items() if path.read_text() != text] == []


# --- what the pages name -------------------------------------------------------------------------


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_options_in_the_readme_are_those_of_finetune():
    help_text = command_line.keras_efficient("finetune", "--help").out
    existing = set(re.findall(r"--[a-z][a-z-]+", help_text)) - {"--help"}
    table = set(re.findall(r"^\| `(--[a-z-]+)`", README, re.MULTILINE))
    assert table == existing


def test_options_on_the_pages_exist():
    # Those of TensorFlow's saved_model_cli and model server.
    known = {"--dir", "--tag_set", "--signature_def", "--inputs", "--input_exprs"}
    known |= {"--port", "--rest_api_port"}
    known |= {"--model_config_file", "--model_config_file_poll_wait_seconds"}
    known |= {"--allow_version_labels_for_unavailable_models"}
    # Those of every command, `hf download`, pytest and Slurm.
    known |= {"--version", "--local-dir", "--durations", "--cpus-per-task"}
    for command in ("finetune", "demo", "compress", "launch", "serve", "predict", "bench"):
        shown = command_line.keras_efficient(command, "--help").out
        known |= set(re.findall(r"--[a-z][a-z-]+", shown))
    for script in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")):
        known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text()))
    for page in PAGES:
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", page.read_text())) <= known, page


def test_make_targets_on_the_pages_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for page in PAGES:
        text = page.read_text()
        spans = re.findall(r"`(make [^`]+)`", text) + re.findall(r"^make .*$", text, re.MULTILINE)
        for span in spans:
            words = re.sub(r'\w+=("[^"]*"|\S+)', "", span.partition("#")[0]).split()
            named |= set(words[1:])
    assert {"demo", "test"} <= named <= targets


def test_files_named_on_the_pages_exist():
    for page in PAGES:
        for path in re.findall(
            r"`(?:python )?((?:benchmarks|examples|docs)/[\w./]+)", page.read_text()
        ):
            assert (ROOT / path).exists(), path


def test_tests_named_on_the_pages_exist():
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    for page in PAGES:
        for test in re.findall(r"`(test_\w+)`", page.read_text()):
            assert re.search(rf"def {test}\b", tests), test


def strings():
    """The strings in the package's source, pieces joined; "{name}" where a value goes."""
    for path in (ROOT / "keras_efficient").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value
                    if isinstance(part, ast.Constant)
                    else "{" + ast.unparse(part.value) + "}"
                    for part in node.values
                )


def test_messages_in_troubleshooting_are_the_packages():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)
    source = list(strings())
    assert len(messages) > 30
    assert [m for m in messages if not any(m in string for string in source)] == []


def test_report_keys_in_the_docs_are_those_written(here, quick_export):
    names = example_names()
    report = ke.export(names["model"], here / "m", sample=np.ones((2, 3), "float32"))
    text = (ROOT / "docs/export.md").read_text()
    table = text[text.index("## report.json") : text.index("## Serving")]
    rows = re.findall(r"^\| (`.*?`) \| ", table, re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert documented == set(json.loads((report.directory / "report.json").read_text()))


def test_version_and_licence_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ke.__version__
    assert f"[{ke.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert project["license"] in README
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert " ".join(README.split("\n\n")[1].split()).startswith(
        project["description"].partition(", by")[0]
    )


def test_the_site_builds(tmp_path):
    """`mkdocs build --strict`: no dead link, no page that the navigation forgot."""
    commands = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    with contextlib.redirect_stderr(sys.stdout):
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
        commands.build(config)
    assert (tmp_path / "site/quickstart.html").exists()
    assert "fonts.googleapis" not in (tmp_path / "site/index.html").read_text()
