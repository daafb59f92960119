"""Settings that a resumed run must share with the run that was started."""

import json
from typing import Any

from keras_efficient._errors import InputError


def json_settings(settings: dict[str, Any] | None) -> dict[str, Any]:
    """Return `settings` as they will be read from a JSON file.

    Raises:
        ValueError: they are not JSON values.
    """
    try:
        return json.loads(json.dumps(settings or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`settings` must be a dict of numbers, strings, lists and dicts. Received: "
            f"{settings!r} ({error})."
        ) from error


def check_settings(saved: dict[str, Any], settings: dict[str, Any]):
    """Refuse to continue a run with other settings than it was started with.

    Raises:
        InputError: a value differs.
    """
    names = [name for name in settings if saved.get(name) != settings[name]]
    if names:
        listed = "; ".join(f"{n}: was {saved.get(n)!r}, now {settings[n]!r}" for n in names)
        raise InputError(
            f"A run resumes with the settings it was started with. Received: {listed}. "
            "Resume with the same settings, or start a new run: without --resume on the command "
            "line, in another folder elsewhere."
        )
