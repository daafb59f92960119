"""What a model was compiled with, as JSON values, and how it differs from an earlier start."""

import json
import warnings
from typing import Any

from keras_efficient import flavor as flavors

#: Names that do not change what is trained; some are counted up when a model is made twice.
_IGNORED = {"name", "module", "registered_name", "build_config", "jit_compile"}


def compile_settings(model: Any) -> dict[str, Any]:
    """Return the optimizer's and the loss's settings.

    Args:
        model: a compiled model.

    Returns:
        `{path: JSON value}`, such as `{"optimizer.learning_rate": 0.001}`.
    """
    config = getattr(getattr(model, "_compile_config", None), "config", None) or {}
    parts = {"optimizer": model.optimizer, "loss": config.get("loss", model.loss)}
    parts["loss_weights"] = config.get("loss_weights")
    serialize = flavors.of(model).keras.saving.serialize_keras_object
    found: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            with warnings.catch_warnings():
                # Lambdas are unsafe to load, which is not done here.
                warnings.simplefilter("ignore")
                serialized = serialize(part)
        except Exception:
            # The user's own loss or optimizer, which need not be serializable.
            serialized = getattr(part, "__qualname__", type(part).__name__)
        _flatten(name, serialized, found)
    return json.loads(json.dumps(found, default=str))


def warn_of_changes(saved: dict[str, Any] | None, now: dict[str, Any]):
    """Name the settings that differ from those of the start that saved the run."""
    if saved is None:
        return
    paths = [path for path in {**saved, **now} if saved.get(path) != now.get(path)]
    # A class says it all about settings that only one of two classes has.
    paths = [p for p in paths if p in saved and p in now] or paths
    if paths:
        listed = "; ".join(f"{p}: was {saved.get(p)!r}, now {now.get(p)!r}" for p in paths[:6])
        more = f"; and {len(paths) - 6} more" if len(paths) > 6 else ""
        warnings.warn(
            f"The run resumes with other settings than it was started with: {listed}{more}. A "
            "learning rate that is a number continues at its saved value; everything else takes "
            "effect now. Restore the settings, or start a new run in another folder.",
            stacklevel=3,
        )


def _flatten(path, value, found):
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = {str(index): part for index, part in enumerate(value)}
    if isinstance(value, dict) and value.get("class_name") == "__lambda__":
        # Its code holds the number of its line, which changes with the lines above.
        found[path] = "lambda"
    elif isinstance(value, dict) and value:
        for name, part in value.items():
            if name == "class_name":
                found[path] = part
            elif name not in _IGNORED:
                # The settings of an object follow its own name, and that of a function replaces
                # its class, "function".
                _flatten(path if name == "config" else f"{path}.{name}", part, found)
    else:
        # Variables hold a rate of 0.001 as 0.0010000000474974513.
        found[path] = float(f"{value:.7g}") if isinstance(value, float) else value
