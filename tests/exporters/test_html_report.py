"""The HTML report of a training run: one file, all charts, no external resources."""

import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from keras_efficient._errors import InputError
from keras_efficient.exporters import ExportReport, write_html_report
from keras_efficient.exporters._html_report import format_value

CHARTS = ("loss", "metrics", "learning-rate", "throughput", "tokens", "padding")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """The structure of a page: tags, attributes, ids, text, and which ids hold an SVG."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.ids, self.svg = [], [], [], [], {}
        self.text = []
        self.feed(Path(path).read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, *item) for item in attrs.items()]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "svg":
            chart = next(id for _, id in reversed(self.open) if id and id.startswith("chart-"))
            self.svg[chart.removeprefix("chart-")] = 0
        if tag == "path" and self.svg:
            self.svg[list(self.svg)[-1]] += 1
        if tag not in VOID:
            self.open.append((tag, attrs.get("id")))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append(data)


STEPS = [
    {
        "step": i,
        "loss": 1 / i,
        "learning_rate": 1e-5 * i,
        "examples_per_second": 20 + i % 3,
        "tokens_per_second": 500.0 + i,
        "tokens": 90,
        "padding_tokens": 10,
    }
    for i in range(1, 30)
]
EPOCHS = [
    {"epoch": e, "loss": 1 / e, "accuracy": 0.7, "val_loss": 0.8, "val_accuracy": 0.6 + e / 10}
    for e in (1, 2)
]
EVIL = "<script>alert('x')</script> & \"q\""


@pytest.fixture(scope="module")
def report():
    spec = {"dtype": "int32", "shape": [None, None]}
    return ExportReport(
        directory=Path("/models/reviews/3"),
        bytes=91_522_957,
        weight_bytes=90_855_944,
        max_abs_difference=4.1e-8,
        tolerance=1e-5,
        signature={"inputs": {"token_ids": spec}, "outputs": {}},
        versions={"tensorflow": "2.20.0"},
        created="2026-01-01T00:00:00+00:00",
        latency_ms={"batch_1": {"median": 8.25, "p95": 11.0}},
        facts={"note": EVIL},
    )


@pytest.fixture(scope="module")
def path(report, tmp_path_factory):
    facts = {"Accuracy": 0.8361, EVIL: EVIL} | {f"fact {i}": i for i in range(9)}
    target = tmp_path_factory.mktemp("page") / "runs" / "a.html"
    return write_html_report(
        target, title=EVIL, steps=STEPS, epochs=EPOCHS, facts=facts, report=report
    )


def test_every_chart_is_there(path):
    page = Page(path)
    assert [id for id in page.ids if id.startswith("chart-")] == [f"chart-{c}" for c in CHARTS]
    assert set(page.svg) == set(CHARTS) - {"padding"}
    assert min(page.svg.values()) > 3
    text = " ".join(page.text)
    assert "10.0% padding" in text and "real tokens 90.0%" in text
    assert "validation" in text and "Nothing was recorded" not in text


def test_facts_and_report_are_there(path):
    text = " ".join(Page(path).text)
    for part in ("0.8361", "91.52 MB", "8.25 ms (p95 11.00 ms)", "4.1e-08", "/models/reviews/3"):
        assert part in text
    for part in ("token_ids: int32 [any, any]", "tensorflow 2.20.0", "Settings", "fact 8"):
        assert part in text


def test_evaluation_is_shown_with_its_warning(report, tmp_path):
    """Majority baseline, scores per class and confusion matrix; names are not raw keys."""
    from dataclasses import replace

    from keras_efficient.metrics import classification_report

    found = classification_report([0] * 30 + [1] * 3, [0] * 33, ["ham", EVIL])
    facts = {
        "padding_share": 0.25,
        "peak_memory_bytes": 1_234_567_890,
        "tokens_per_second": 1234.5678,
        "labels": ["ham", "spam"],
        "mixed_precision": True,
    }
    shown = replace(report, accuracy=30 / 33, quality=found, facts=facts)
    page = Page(
        write_html_report(
            tmp_path / "a.html", title="a", steps=[], epochs=[], facts={}, report=shown
        )
    )
    text = " ".join(" ".join(page.text).split())
    assert {"evaluation", "classes", "confusion"} <= set(page.ids) and "script" not in page.tags
    for part in (
        "predicts one class only: 'ham'",
        "Majority baseline 90.91% (always 'ham')",
        "Evaluation on 33 examples",
        "Padding share 25.0%",
        "Peak memory 1,234.6 MB",
        "Tokens per second 1,234.6",
        "Labels ham, spam",
        "Mixed precision yes",
    ):
        assert part in text, part
    assert "_" not in text.replace("token_ids", "")

    many = classification_report(range(500), [0] * 500)
    shown = replace(report, quality=many)
    page = Page(
        write_html_report(
            tmp_path / "b.html", title="b", steps=[], epochs=[], facts={}, report=shown
        )
    )
    assert "confusion" not in page.ids and "mistakes" in page.ids
    assert "The 200 of 500 classes with the lowest F1." in " ".join(page.text)


def test_values_are_escaped(path):
    page = Page(path)
    assert "script" not in page.tags
    assert "".join(page.text).count("<script>alert") == 5  # title, h1, label, value, report


def test_no_external_resources(path):
    page = Page(path)
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert links and all(link.startswith("#") for link in links)
    assert not {"link", "script", "img", "iframe", "object"} & set(page.tags)
    source = path.read_text(encoding="utf-8")
    assert "http:" not in source and "https:" not in source and "@import" not in source
    assert "url(" not in source.replace("url(#", "")


def test_ids_are_unique_and_found(path):
    page = Page(path)
    assert len(page.ids) == len(set(page.ids))
    assert {v[1:] for _, n, v in page.attributes if n == "href"} <= set(page.ids)


def test_text_follows_the_theme(path):
    source = path.read_text(encoding="utf-8")
    assert "currentColor" in source and "#010203" not in source
    assert "prefers-color-scheme: dark" in source and 'name="viewport"' in source
    assert "DejaVu" not in source


@pytest.mark.parametrize(
    ("steps", "epochs", "drawn"),
    [
        ([], [], set()),
        ([{"step": 1, "loss": math.nan}], [{"epoch": 1, "accuracy": None}], set()),
        ([{"step": 1, "loss": 0.0}], [{"epoch": 1, "accuracy": 0.5}], {"loss", "metrics"}),
        ([{"step": 5, "loss": math.inf}, {"step": 6, "loss": 2.0}], [], {"loss"}),
        ([{"loss": 3.0}, {"loss": 3.0}], [], {"loss"}),
        ([], [{"epoch": 1, "val_loss": 0.5}], {"loss"}),
        ([{"step": 1, "learning_rate": -0.0}], [], {"learning-rate"}),
    ],
)
def test_few_points(tmp_path, steps, epochs, drawn):
    page = Page(
        write_html_report(tmp_path / "p.html", title="t", steps=steps, epochs=epochs, facts={})
    )
    assert set(page.svg) == drawn
    assert " ".join(page.text).count("Nothing was recorded") == len(CHARTS) - len(drawn)


def test_padding_from_facts(tmp_path):
    facts = {"padding_share": 0.25}
    page = Page(write_html_report(tmp_path / "p.html", title="t", steps=[], epochs=[], facts=facts))
    assert "25.0% padding" in " ".join(page.text)


def test_long_runs_stay_small(tmp_path):
    steps = [{"step": i, "loss": i % 7} for i in range(100_000)]
    path = write_html_report(tmp_path / "p.html", title="t", steps=steps, epochs=[], facts={})
    assert path.stat().st_size < 200_000


def test_users_matplotlib_is_left_alone(tmp_path):
    code = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 77\n"
        "before = matplotlib.rcParams.copy()\n"
        "from keras_efficient.exporters import write_html_report\n"
        f"write_html_report({str(tmp_path / 'p.html')!r}, title='t', steps=[{{'loss': 1}}],"
        " epochs=[], facts={})\n"
        "assert before == matplotlib.rcParams.copy()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_existing_page_is_replaced_whole(tmp_path):
    (tmp_path / "p.html").write_text("old")
    arguments = {"title": "t", "steps": [], "epochs": []}
    with pytest.raises(RuntimeError):
        write_html_report(tmp_path / "p.html", facts={"a": Unprintable()}, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]
    assert (tmp_path / "p.html").read_text() == "old"
    write_html_report(tmp_path / "p.html", facts={}, **arguments)
    assert "old" not in (tmp_path / "p.html").read_text()


class Unprintable:
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": {"loss": 1}}, "`steps` must be a list of dicts, one per step"),
        ({"epochs": [1]}, "`epochs` must be a list of dicts, one per epoch"),
        ({"steps": [{"loss": "low"}]}, "Values in `steps` must be numbers.*'loss': 'low'"),
        ({"facts": [("a", 1)]}, "`facts` must be a dict of labels"),
    ],
)
def test_bad_input(tmp_path, change, message):
    arguments = {"title": "t", "steps": [], "epochs": [], "facts": {}} | change
    with pytest.raises(InputError, match=message):
        write_html_report(tmp_path / "p.html", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_formatted_values():
    for value, text in [
        (7, "7"),
        (12_345, "12,345"),
        (0.83612, "0.8361"),
        (12_345.6, "12,346"),
        (math.nan, "nan"),
        (True, "True"),
        (None, "–"),
        ("x", "x"),
    ]:
        assert format_value(value) == text


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, BROWSERS)), reason=f"rendering needs one of {BROWSERS} on PATH"
)
def test_it_renders(path, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --hide-scrollbars "
        f"--user-data-dir={tmp_path}/profile --window-size=1000,1400"
    )
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, *flags.split(), f"--screenshot={shot}", path.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    import matplotlib.image

    pixels = (matplotlib.image.imread(shot)[..., :3] * 255).astype(int)
    assert pixels.shape[:2] == (1400, 1000)
    # The page's background, its cards, dark text, and the blue and orange of the charts.
    for colour, share in (
        ((246, 247, 249), 0.02),
        ((255, 255, 255), 0.3),
        ((27, 36, 48), 1e-3),
        ((59, 130, 246), 5e-4),
        ((240, 140, 46), 1e-4),
    ):
        found = (abs(pixels - colour).max(axis=-1) <= 3).mean()
        assert found > share, (colour, found)
