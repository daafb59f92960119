"""What callbacks remember from one epoch to the next, as plain data and arrays, and back."""

import sys
from collections import Counter

import numpy as np
import tensorflow as tf

#: The attributes in which the libraries' callbacks keep what they remember, by the name of the
#: class (or of one it inherits from). Any other callback names its own in `resumes`.
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


class _Unsavable(Exception):
    pass


def list_of(callback):
    """The `CallbackList` that is about to call `callback.set_model`, or None.

    Both libraries let the list call its callbacks, and tell them nothing of each other.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        members = getattr(owner, "callbacks", None)
        if isinstance(members, list) and any(callback is member for member in members):
            return owner
        frame = frame.f_back
    return None


def names(callback) -> tuple:
    """The attributes in which a callback keeps what it remembers."""
    known = [KNOWN[cls.__name__] for cls in type(callback).__mro__ if cls.__name__ in KNOWN]
    return (*getattr(type(callback), "resumes", ()), *(known[0] if known else ()))


def labelled(callbacks) -> dict:
    """`{"EarlyStopping.0": callback}` of those that remember something."""
    seen, found = Counter(), {}
    for callback in callbacks:
        kind = type(callback).__name__
        if names(callback):
            found[f"{kind}.{seen[kind]}"] = callback
        seen[kind] += 1
    return found


def state_of(callbacks):
    """What `callbacks` remember.

    Returns:
        A JSON value; a dict of the arrays and `tf.Variable`s it refers to; and a list of the
        attributes that are neither (they are left out).
    """
    state, arrays, unsavable = {}, {}, []
    for label, callback in labelled(callbacks).items():
        state[label] = {}
        for name in names(callback):
            if not hasattr(callback, name):
                continue
            mine = {}
            try:
                value = getattr(callback, name)
                state[label][name] = _plain(value, f"callbacks.{label}.{name}", mine)
                arrays |= mine
            except _Unsavable:
                unsavable.append(f"{label}.{name}")
    return state, arrays, unsavable


def restore(callbacks, state, arrays) -> dict:
    """Let `callbacks` remember what `state_of` found; `{name: tf.Variable}` that are to be set."""
    variables = {}
    for label, callback in labelled(callbacks).items():
        for name, value in state.get(label, {}).items():
            now = getattr(callback, name, None)
            of_now = {}
            _plain(now, f"callbacks.{label}.{name}", of_now, strict=False)
            held = {n: v for n, v in of_now.items() if isinstance(v, tf.Variable)}
            variables |= held
            if not held:
                setattr(callback, name, _value(value, arrays))
    return variables


def _plain(value, place, arrays, strict=True):
    if value is None or isinstance(value, bool | int | float | str):
        # (NumPy's float64 is a float.)
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tf.Variable | np.ndarray | tf.Tensor):
        array = value if isinstance(value, tf.Variable) else np.asarray(value)
        # (bfloat16 is a "V" to NumPy.)
        if strict and isinstance(array, np.ndarray) and array.dtype.kind not in "biufV":
            raise _Unsavable
        arrays[place] = array
        return {"array": place}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{place}.{i}", arrays, strict) for i, v in enumerate(value)]
    # (Keys that JSON has no word for would come back as something else.)
    if isinstance(value, dict) and all(isinstance(k, str | int | float) for k in value):
        pairs = enumerate(value.items())
        return {"dict": [[k, _plain(v, f"{place}.{i}", arrays, strict)] for i, (k, v) in pairs]}
    if strict:
        raise _Unsavable
    return None


def _value(plain, arrays):
    if isinstance(plain, list):
        return [_value(item, arrays) for item in plain]
    if isinstance(plain, dict) and "array" in plain:
        return np.array(arrays[plain["array"]])
    if isinstance(plain, dict):
        return {key: _value(item, arrays) for key, item in plain["dict"]}
    return plain
