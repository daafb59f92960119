"""`write_html_report`: a self-contained HTML page about a training run and its export."""

import io
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.exporters._export_report import ExportReport
from keras_efficient.metrics._report_tables import worst_classes

#: Colours that are legible on light and dark pages; everything else has the colour of the text.
_BLUE, _ORANGE, _GREEN = "#3b82f6", "#f08c2e", "#22a06b"
#: Placeholder for the colour of the text in Matplotlib's output, unused otherwise.
_INK = "#010203"
#: Points drawn per line; more are not visible at this width and slow the page down.
_POINTS = 1500
#: Number of facts shown as tiles; the others are listed in a table.
_TILES = 8


def write_html_report(
    path: str | os.PathLike,
    *,
    title: str,
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    report: ExportReport | None = None,
) -> Path:
    """Write an HTML file about a training run: key figures, charts and the export's report.

    The file contains its styles and charts (inline SVG) and needs no network. It follows the
    reader's light or dark setting and fits small screens.

    Args:
        path: str or path of the file; its folder is created. An existing file is replaced by a
            rename, so that readers never see an incomplete page.
        title: str, title of the page.
        steps: list of dicts, one per training step, with the key `step` and any of `loss`,
            `learning_rate`, `examples_per_second`, `tokens_per_second`, and the counts `tokens`
            and `padding_tokens`; values may be None.
        epochs: list of dicts, one per epoch, with the key `epoch` and any of `loss`, `val_loss`,
            metrics with their validation, such as `accuracy` and `val_accuracy`, of which two are
            drawn, and `step`, the last step of the epoch, at which the validation loss is drawn.
            Without `step` the epochs are spaced evenly.
        facts: dict of labels to strings or numbers. The first 8 are shown as tiles, the others in
            a table of settings. "padding_share", from 0 to 1, is drawn as a bar of real tokens and
            padding if the steps do not count them.
        report: `ExportReport` to show as a table, with its `quality` as tables of the scores, those
            per class and the confusion matrix. Default: None, no table.

    Returns:
        The absolute path of the file.

    Raises:
        InputError: `steps` or `epochs` is not a list of dicts, a value is not a number, or `facts`
            is not a dict.

    Examples:
        >>> import tempfile
        >>> page = ke.exporters.write_html_report(
        ...     tempfile.mkdtemp() + "/run.html",
        ...     title="Reviews",
        ...     steps=[{"step": 1, "loss": 0.7}],
        ...     epochs=[],
        ...     facts={"Accuracy": 0.83},
        ... )
        >>> page.name
        'run.html'

    Reference:
        Matplotlib, "SVG backend", which draws the charts:
        https://matplotlib.org/stable/api/backend_svg_api.html
    """
    import jinja2

    _check_records("steps", steps)
    _check_records("epochs", epochs)
    if not isinstance(facts, dict):
        raise InputError(
            "`facts` must be a dict of labels to strings or numbers. Received: "
            f"{type(facts).__name__}. Give for instance {{'Accuracy': 0.83}}."
        )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = Path(__file__).with_name("_html_report.html").read_text(encoding="utf-8")
    share = _padding_share(steps, facts)
    facts = {label: value for label, value in facts.items() if not _is_padding(label)}
    shown = [(str(label), format_value(value)) for label, value in facts.items()]
    html = environment.from_string(template).render(
        title=str(title),
        tiles=shown[:_TILES],
        settings=shown[_TILES:],
        charts=_charts(steps, epochs),
        padding=None if share is None else round(100 * share, 1),
        report=report,
        report_rows=[] if report is None else _report_rows(report),
        found=None if report is None else _quality(report),
    )
    path = Path(path).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(html, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def format_value(value) -> str:
    """Format a number in few digits, and anything else with `str`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return "–" if value is None else str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


#: Classes in the page's table of scores.
_CLASSES = 200
#: Classes in the page's confusion matrix, which scrolls in its own frame.
_MATRIX = 30


def _report_rows(report):
    # The section of the evaluation shows these.
    names = {"Warning", *(label for label, _ in report.quality.rows())} if report.quality else ()
    return [(label, value) for label, value in report.rows() if label not in names]


def _quality(report):
    """Return the values of the page's section about the evaluation, or None."""
    found = report.quality
    if found is None:
        return None
    # Only some tasks have classes, which are confused with each other only if one excludes others.
    classes: Any = getattr(found, "classes", ())
    matrix: Any = getattr(found, "confusion", None) if len(classes) <= _MATRIX else None
    rows: Any = matrix or ()
    largest = [max(row) or 1 for row in rows]
    return {
        "report": found,
        "classes": worst_classes(classes, _CLASSES),
        "mistakes": getattr(found, "mistakes", ()),
        "labels": [entry["label"] for entry in classes],
        # Shares of the row, as the strength of a cell's colour.
        "matrix": [
            [(format_value(n), round(100 * n / most)) for n in row]
            for row, most in zip(rows, largest, strict=True)
        ],
    }


def _check_records(name, records):
    if not isinstance(records, list | tuple) or not all(isinstance(r, dict) for r in records):
        raise InputError(
            f"`{name}` must be a list of dicts, one per {name.removesuffix('s')}. Received: "
            f"{records!r:.200}. Give for instance [{{'{name.removesuffix('s')}': 1, 'loss': 0.7}}]."
        )
    for record in records:
        for key, value in record.items():
            if value is not None and not isinstance(value, numbers.Real):
                raise InputError(
                    f"Values in `{name}` must be numbers or None. Received: {key!r}: {value!r}. "
                    "Convert it with float(), or leave it out."
                )


def _is_padding(label):
    return str(label).lower().replace(" ", "_") == "padding_share"


def _padding_share(steps, facts):
    counted = [s for s in steps if _number(s, "tokens") is not None]
    padding = sum(_number(s, "padding_tokens") or 0.0 for s in counted)
    total = padding + sum(_number(s, "tokens") or 0.0 for s in counted)
    if total > 0:
        return padding / total
    for label, value in facts.items():
        if _is_padding(label) and isinstance(value, numbers.Real) and 0 <= float(value) <= 1:
            return float(value)
    return None


def _number(record, key):
    value = record.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _series(records, x, y, default=None):
    """Return the finite points `(x, y)`; records without x are numbered from 1."""
    points = []
    for i, record in enumerate(records, 1):
        at = _number(record, x)
        value = _number(record, y)
        if value is not None:
            points.append((at if at is not None else (default(i) if default else i), value))
    return points


def _charts(steps, epochs):
    """Return `(key, title, svg)` of each chart; svg is None if there is nothing to draw."""
    last = max([at for at, _ in _series(steps, "step", "loss")], default=0)

    def end_of_epoch(i):
        return last * i / len(epochs) if last else i

    # The validation loss is known once per epoch and drawn at the epoch's last step.
    at_step = [{**e, "at": e.get("step")} for e in epochs]
    losses = [
        ("training", _series(steps, "step", "loss"), _BLUE, "line"),
        ("validation", _series(at_step, "at", "val_loss", end_of_epoch), _ORANGE, "dots"),
    ]
    main, *others = _metrics(epochs)
    metrics = [
        ("training", _series(epochs, "epoch", main), _BLUE, "dots"),
        ("validation", _series(epochs, "epoch", f"val_{main}"), _ORANGE, "dots"),
        *(
            (f"validation {_title(name)}", _series(epochs, "epoch", f"val_{name}"), _GREEN, "dots")
            for name in others[:1]
        ),
    ]
    rate = [("learning rate", _series(steps, "step", "learning_rate"), _GREEN, "line")]
    examples = [("examples/s", _series(steps, "step", "examples_per_second"), _BLUE, "line")]
    tokens = [("tokens/s", _series(steps, "step", "tokens_per_second"), _ORANGE, "line")]
    return [
        ("loss", "Loss", _chart(losses, "step")),
        ("metrics", _title(main).capitalize(), _chart(metrics, "epoch")),
        ("learning-rate", "Learning rate", _chart(rate, "step")),
        ("throughput", "Examples per second", _chart(examples, "step", from_zero=True)),
        ("tokens", "Tokens per second", _chart(tokens, "step", from_zero=True)),
    ]


def _metrics(epochs):
    """Return the names of the metrics that were computed in training and validation."""
    names = dict.fromkeys(name for epoch in epochs for name in epoch if f"val_{name}" in epoch)
    return [name for name in names if name != "loss"] or ["accuracy"]


def _title(name):
    return name.replace("_", " ")


def _chart(lines, xlabel, from_zero=False):
    """Draw `(label, points, colour, style)` lines as inline SVG; None if there are no points."""
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    # Neither pyplot nor global settings are used, so that the user's Matplotlib is unchanged.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # Matplotlib's default style, with text written as text instead of paths.
    settings: dict[Any, Any] = {
        **matplotlib.rcParamsDefault,
        "svg.fonttype": "none",
        "font.size": 10.5,
    }
    settings["font.family"] = ["DejaVu Sans"]  # For measuring only; Matplotlib ships it.
    settings["svg.hashsalt"] = "keras_efficient"
    settings.pop("backend", None)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for label, points, colour, style in lines:
            points = sorted(points)
            points = points[:: math.ceil(len(points) / _POINTS)]
            dots = style == "dots" or len(points) == 1
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linewidth=1.8,
                marker="o" if dots else None,
                markersize=5,
                label=label,
                clip_on=False,
            )
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(y)))
        xs, ys = zip(*(point for _, points, *_ in lines for point in points), strict=True)
        if len(set(xs)) == 1:
            axes.set_xlim(xs[0] - 1, xs[0] + 1)
        if len(set(ys)) == 1:
            axes.set_ylim(*(y + margin for y in ys[:1] for margin in _margins(y)))
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=_INK, alpha=0.14, linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set(color=_INK, alpha=0.4)
        axes.tick_params(color=_INK, labelcolor=_INK, length=0)
        axes.xaxis.label.set_color(_INK)
        if len(lines) > 1:
            # The legend is above the axes, where it hides no line.
            place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
            axes.legend(frameon=False, labelcolor=_INK, ncols=3, **place)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), "-".join(label for label, *_ in lines) + xlabel)


def _margins(y):
    """Return the margins below and above a flat line at `y`, such that ticks are round numbers."""
    return -abs(y) / 2 or -1, abs(y) / 2 or 1


def _tick(y):
    if y and abs(y) < 1e-3:
        return re.sub(r"\.?0*e-0?", "e-", f"{y:.2e}")
    return f"{y:,.0f}" if abs(y) >= 1000 else f"{y:.4g}"


def _inline(svg, prefix):
    """Convert Matplotlib's SVG file to a part of a page, in the page's colour and font."""
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]
    # Metadata and XML namespaces have no meaning inside HTML, and look like links.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor")
    # The list of fonts ends at the next declaration or at the end of the style.
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    # Ids must be unique within the page, but Matplotlib numbers each chart from the start.
    prefix = re.sub(r"[^a-z]", "", prefix)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    return Markup(svg)
