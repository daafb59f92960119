"""`keras-efficient predict`: run an exported model on a few texts."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_efficient._errors import InputError
from keras_efficient.cli._printable import printable

#: Characters of a text or a label that the table shows.
_SHOWN = 80
#: Largest file of texts.
_MAX_BYTES = 50_000_000


@dataclass(frozen=True)
class Settings:
    """The options of `predict`."""

    directory: Path
    text: tuple
    second_text: tuple
    file: Path | None
    pairs: bool
    signature: str
    as_json: bool


def show(settings: Settings) -> None:
    """Run the model on the texts, and print a table or JSON.

    Raises:
        InputError: there are no texts, or `predict` raises it.
    """
    from keras_efficient.serving import predict

    texts = _texts(settings)
    if not texts:
        raise InputError(
            'predict needs at least one text. Received: none. Add --text "...", or --file with '
            "one text per line."
        )
    predictions = predict(settings.directory, texts, signature=settings.signature)
    if settings.as_json:
        print(printable(json.dumps(predictions, indent=2, ensure_ascii=False)))
        return
    # What is given by class is left to --json.
    shown = [name for name, value in predictions[0].items() if not isinstance(value, dict)]
    table = Table()
    for name in shown:
        number = isinstance(predictions[0][name], float)
        title = name.replace("_", " ").capitalize()
        table.add_column(title, justify="right" if number else "left")
    for row in predictions:
        # Text does not interpret markup.
        table.add_row(*(Text(_cell(row[name])) for name in shown))
    Console().print(table)


def _texts(settings):
    """Return the texts, or pairs of them, of the options."""
    texts = list(settings.text)
    if settings.second_text:
        if len(settings.second_text) != len(texts):
            raise InputError(
                "There must be a --second-text for each --text. Received: "
                f"{len(texts)} and {len(settings.second_text)}. Give both for each pair."
            )
        texts = list(zip(texts, settings.second_text, strict=True))
    lines = _lines(settings.file) if settings.file else []
    if not settings.pairs:
        return [*texts, *lines]
    for number, line in enumerate(lines, 1):
        if line.count("\t") != 1:
            raise InputError(
                "With --pairs each line of --file must have two texts, with one tab between. "
                f"Received: {line.count(chr(9))} tabs in {str(settings.file)!r}, text {number}. "
                "Correct the line."
            )
    return [*texts, *(tuple(line.split("\t")) for line in lines)]


def _cell(value):
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        # What was found in a text: its values without their names.
        return " ".join(map(_cell, value.values()))
    if isinstance(value, list):
        if any(isinstance(part, list) for part in value):
            # What was found in several places of a text.
            return "\n".join(", ".join(map(_cell, part)) for part in value)
        # Each on a line of its own if it has several values.
        if any(isinstance(part, dict) for part in value):
            return "\n".join(map(_cell, value))
        value = ", ".join(map(str, value))
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _lines(path):
    try:
        if not path.is_file():
            state = "is a pipe or a device" if path.exists() else "does not exist"
            state = "is a folder" if path.is_dir() else state
            raise InputError(
                f"--file must name a file with one text per line. Received: {str(path)!r}, which "
                f"{state}. Correct the path."
            )
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(
                f"--file may have at most {_MAX_BYTES // 10**6} MB. Received: {str(path)!r}, which "
                "has more. Serve the model for that many texts: see `keras-efficient serve`."
            )
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"--file must be readable UTF-8 text. Received: {str(path)!r} ({error}). Save it as "
            "UTF-8."
        ) from error
    # splitlines would also split at separators that occur within texts, such as U+2028.
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
