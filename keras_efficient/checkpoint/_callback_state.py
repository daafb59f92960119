"""State of callbacks between epochs, as JSON values and arrays, and its restoration."""

from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf

#: Attributes in which the libraries' callbacks keep their state, by the name of the class or of a
#: base class. Any other callback names its own attributes in `resumes`.
KNOWN = {
    "History": ("epoch", "history"),
    "EarlyStopping": ("best", "best_epoch", "wait", "stopped_epoch", "best_weights"),
    "ReduceLROnPlateau": ("best", "wait", "cooldown_counter"),
    "ModelCheckpoint": (
        "best",
        "epochs_since_last_save",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
        "_current_epoch",
    ),
}


class _UnsupportedValue(Exception):
    pass


def state_attributes(callback: Any) -> tuple[str, ...]:
    """Return the names of the attributes in which a callback keeps its state."""
    known = [KNOWN[cls.__name__] for cls in type(callback).__mro__ if cls.__name__ in KNOWN]
    return (*getattr(type(callback), "resumes", ()), *(known[0] if known else ()))


def labelled_callbacks(callbacks: list) -> dict[str, Any]:
    """Return the callbacks that have state, as `{"EarlyStopping.0": callback}`."""
    counts, found = Counter(), {}
    for callback in callbacks:
        name = type(callback).__name__
        if state_attributes(callback):
            found[f"{name}.{counts[name]}"] = callback
        counts[name] += 1
    return found


def callback_state(callbacks: list) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Collect the state of `callbacks`.

    Returns:
        A JSON value; a dict of the arrays and `tf.Variable`s it refers to; and the names of the
        attributes that are left out because they are neither.
    """
    state, arrays, unsupported = {}, {}, []
    for label, callback in labelled_callbacks(callbacks).items():
        state[label] = {}
        for name in state_attributes(callback):
            if not hasattr(callback, name):
                continue
            found = {}
            try:
                value = getattr(callback, name)
                state[label][name] = _to_json(value, f"callbacks.{label}.{name}", found)
                arrays |= found
            except _UnsupportedValue:
                unsupported.append(f"{label}.{name}")
    return state, arrays, unsupported


def restore_callback_state(
    callbacks: list, state: dict[str, Any], arrays: dict[str, np.ndarray]
) -> dict[str, tf.Variable]:
    """Set the attributes of `callbacks` to a state collected by `callback_state`.

    Returns:
        The callbacks' variables by name, which the caller has to assign.
    """
    variables = {}
    for label, callback in labelled_callbacks(callbacks).items():
        for name, value in state.get(label, {}).items():
            present = {}
            current = getattr(callback, name, None)
            _to_json(current, f"callbacks.{label}.{name}", present, strict=False)
            held = {n: v for n, v in present.items() if isinstance(v, tf.Variable)}
            variables |= held
            if not held:
                setattr(callback, name, _from_json(value, arrays))
    return variables


def _to_json(value: Any, place: str, arrays: dict[str, Any], strict: bool = True) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        # NumPy's float64 is a subclass of float.
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tf.Variable | np.ndarray | tf.Tensor):
        array = value if isinstance(value, tf.Variable) else np.asarray(value)
        # NumPy's kind of a bfloat16 is "V".
        if strict and isinstance(array, np.ndarray) and array.dtype.kind not in "biufV":
            raise _UnsupportedValue
        arrays[place] = array
        return {"array": place}
    if isinstance(value, list | tuple):
        return [_to_json(v, f"{place}.{i}", arrays, strict) for i, v in enumerate(value)]
    # A dict is kept as pairs, because JSON would turn numeric keys into strings.
    if isinstance(value, dict) and all(isinstance(k, str | int | float) for k in value):
        pairs = enumerate(value.items())
        return {"dict": [[k, _to_json(v, f"{place}.{i}", arrays, strict)] for i, (k, v) in pairs]}
    if strict:
        raise _UnsupportedValue
    return None


def _from_json(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_from_json(item, arrays) for item in value]
    if isinstance(value, dict) and "array" in value:
        return np.array(arrays[value["array"]])
    if isinstance(value, dict):
        return {key: _from_json(item, arrays) for key, item in value["dict"]}
    return value
