"""Time several model processes in turns."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from keras_efficient.runtime._model_process import ModelProcess

#: Turns of each model per case, and calls per turn at most. Taking turns spreads temporary load of
#: the machine evenly over the models.
_ROUNDS, _CALLS = 5, 50


def time_in_turns(
    processes: Mapping[str, ModelProcess],
    cases: Mapping[str, Mapping[str, str]],
    seconds: float,
    guard: Callable[[str], AbstractContextManager],
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return durations and processor times of calls, in milliseconds.

    Args:
        processes: `{model: process}`.
        cases: `{case: {model: path of an .npz file of its inputs}}`.
        seconds: float, time that each model runs per case, at most; it makes at least 5 calls.
        guard: function of a model's name that returns the context in which it runs.

    Returns:
        `{model: {case: {"times": durations, "processor": processor times}}}`.
    """
    times: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in processes}
    order = list(processes)
    for turn in range(_ROUNDS):
        for case, files in cases.items():
            # The order rotates, so that no model always runs after the same one.
            start = turn % len(order)
            for name in order[start:] + order[:start]:
                with guard(name):
                    answer = processes[name].ask(
                        time=files[name], calls=_CALLS, seconds=seconds / _ROUNDS
                    )
                measured = times[name].setdefault(case, {"times": [], "processor": []})
                for kind, durations in measured.items():
                    durations.extend(answer[kind])
    return times
