"""`keras-efficient predict`: what an exported model says of some texts."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_efficient._errors import InputError

#: Of a text, in the table.
_SHOWN = 80
#: A file of texts for a quick look.
_MOST_BYTES = 50_000_000


@dataclass(frozen=True)
class Settings:
    """The options of `predict`."""

    directory: Path
    text: tuple
    file: Path | None
    signature: str
    as_json: bool


def show(settings):
    """Ask the model, and print a table or JSON.

    Raises:
        InputError: no texts, or what `predict` refuses.
    """
    from keras_efficient.serving._predict import predict

    texts = [*settings.text, *(_lines(settings.file) if settings.file else ())]
    if not texts:
        raise InputError(
            'predict must be given a text. Received: none. Add --text "...", or --file with one '
            "text on each line."
        )
    answers = predict(settings.directory, texts, signature=settings.signature)
    if settings.as_json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
        return
    table = Table()
    for name in ("Text", "Label", "Probability"):
        table.add_column(name, justify="right" if name == "Probability" else "left")
    for answer in answers:
        text = " ".join(answer["text"].split())
        text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        # Text: what looks like markup is not markup.
        table.add_row(Text(text), Text(answer["label"]), f"{answer['probability']:.4f}")
    Console().print(table)


def _lines(path):
    try:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "no file"
            raise InputError(
                f"--file must name a file, with one text on each line. Received: {str(path)!r}, "
                f"which is {what}. Correct the path."
            )
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"--file may have {_MOST_BYTES // 10**6} MB at most. Received: {str(path)!r}, with "
                "more. Serve the model for that many texts: see `keras-efficient serve`."
            )
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"--file must be readable UTF-8 text. Received: {str(path)!r} ({error}). Save it as "
            "UTF-8."
        ) from error
    # (Not splitlines: it also divides at what some texts have in them.)
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
