"""One self-contained HTML page about a training run and what it exported."""

import io
import math
import numbers
import os
import re
from pathlib import Path

from keras_efficient._errors import InputError

#: Fixed hues that read on a light and on a dark page; everything else takes the text's colour.
_BLUE, _ORANGE, _GREEN = "#3b82f6", "#f08c2e", "#22a06b"
#: Stands for the text's colour inside Matplotlib, and for no colour of the charts.
_INK = "#010203"
#: Points drawn per line: more are not seen at this width, and make the page slow.
_POINTS = 1500
#: Facts shown as tiles; the others make a table.
_TILES = 8


def write_html_report(path, *, title, steps, epochs, facts, report=None) -> Path:
    """Write one HTML file about a training run: tiles, charts and the export's table.

    The file needs no network: styles and charts (inline SVG) are inside it. It follows the
    reader's light or dark setting and fits a phone.

    Args:
        path: str or path of the file; its folder is created. An existing file is replaced, in one
            rename, so that a reader never sees half a page.
        title: str.
        steps: list of dicts, one per training step, with `step` and any of `loss`,
            `learning_rate`, `examples_per_second`, `tokens_per_second`, `tokens` and
            `padding_tokens` (counts), each of which may be absent or None.
        epochs: list of dicts, one per epoch, with `epoch` and any of `loss`, `accuracy`,
            `val_loss`, `val_accuracy`; `step`, the last step of the epoch, places the validation
            loss among the steps (else the epochs are spread evenly).
        facts: dict of label to str or number, in order: the first 8 are the tiles at the top, the
            others a table of settings. "padding_share" or "Padding share" (0 to 1) draws the bar
            of real tokens against padding, where the steps do not count them.
        report: `ExportReport` or None (default), shown as a table.

    Returns:
        The path of the file, absolute.

    Raises:
        InputError: `steps` or `epochs` is no list of dicts, a value is no number, or `facts` is no
            dict.

    Example:
        >>> import tempfile
        >>> from keras_efficient.exporters import write_html_report
        >>> page = write_html_report(
        ...     tempfile.mkdtemp() + "/run.html",
        ...     title="Reviews",
        ...     steps=[{"step": 1, "loss": 0.7}],
        ...     epochs=[],
        ...     facts={"Accuracy": 0.83},
        ... )
        >>> page.name
        'run.html'
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
        report_rows=[] if report is None else report.rows(),
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
    """A number in few digits, anything else as it prints."""
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
    total = padding + sum(_number(s, "tokens") for s in counted)
    if total > 0:
        return padding / total
    for label, value in facts.items():
        if _is_padding(label) and isinstance(value, numbers.Real) and 0 <= value <= 1:
            return float(value)
    return None


def _number(record, key):
    value = record.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _series(records, x, y, default=None):
    """Finite points `(x, y)`; a record without an x counts from 1."""
    points = []
    for i, record in enumerate(records, 1):
        at = _number(record, x)
        value = _number(record, y)
        if value is not None:
            points.append((at if at is not None else (default(i) if default else i), value))
    return points


def _charts(steps, epochs):
    """`(key, title, svg or None)` of each chart; None where there is nothing to draw."""
    last = max([at for at, _ in _series(steps, "step", "loss")], default=0)

    def end_of_epoch(i):
        return last * i / len(epochs) if last else i

    # Validation is known once per epoch: at its last step, among the steps' losses.
    at_step = [{**e, "at": e.get("step")} for e in epochs]
    losses = [
        ("training", _series(steps, "step", "loss"), _BLUE, "line"),
        ("validation", _series(at_step, "at", "val_loss", end_of_epoch), _ORANGE, "dots"),
    ]
    accuracies = [
        ("training", _series(epochs, "epoch", "accuracy"), _BLUE, "dots"),
        ("validation", _series(epochs, "epoch", "val_accuracy"), _ORANGE, "dots"),
    ]
    rate = [("learning rate", _series(steps, "step", "learning_rate"), _GREEN, "line")]
    examples = [("examples/s", _series(steps, "step", "examples_per_second"), _BLUE, "line")]
    tokens = [("tokens/s", _series(steps, "step", "tokens_per_second"), _ORANGE, "line")]
    return [
        ("loss", "Loss", _chart(losses, "step")),
        ("accuracy", "Accuracy", _chart(accuracies, "epoch")),
        ("learning-rate", "Learning rate", _chart(rate, "step")),
        ("throughput", "Examples per second", _chart(examples, "step", from_zero=True)),
        ("tokens", "Tokens per second", _chart(tokens, "step", from_zero=True)),
    ]


def _chart(lines, xlabel, from_zero=False):
    """An inline SVG of `(label, points, colour, style)` lines, or None if no line has a point."""
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    # Figure without pyplot, and a context of its own: the user's Matplotlib is left as it is.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    # Not the user's style but Matplotlib's own, and text as text.
    settings = {**matplotlib.rcParamsDefault, "svg.fonttype": "none", "font.size": 10.5}
    settings["font.family"] = ["DejaVu Sans"]  # Measures only: Matplotlib brings this one.
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
            # Above the axes, where no line passes.
            place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
            axes.legend(frameon=False, labelcolor=_INK, ncols=2, **place)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), "-".join(label for label, *_ in lines) + xlabel)


def _margins(y):
    """Room below and above a line that is flat at `y`, so that the ticks are round."""
    return -abs(y) / 2 or -1, abs(y) / 2 or 1


def _tick(y):
    if y and abs(y) < 1e-3:
        return re.sub(r"\.?0*e-0?", "e-", f"{y:.2e}")
    return f"{y:,.0f}" if abs(y) >= 1000 else f"{y:.4g}"


def _inline(svg, prefix):
    """Matplotlib's SVG file as a part of a page, in the page's own colour and font."""
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]
    # Metadata and the XML namespaces mean nothing inside HTML, and look like links.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor")
    # The list of fonts ends at the next declaration or at the end of the style.
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    # Ids are shared by a whole page, and each chart starts counting anew.
    prefix = re.sub(r"[^a-z]", "", prefix)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    return Markup(svg)
