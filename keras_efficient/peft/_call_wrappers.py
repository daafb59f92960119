"""Report of tuning methods that add computations to layers, and can be removed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_efficient.flavor import Layer, Model
from keras_efficient.parametrize._attach import attach_call_wrappers, detach_call_wrappers
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import CallWrapper
from keras_efficient.peft._report import TuningReport


@dataclass(frozen=True)
class CallWrapperReport(TuningReport):
    """A `TuningReport` of added computations, with a method to remove them.

    Attributes:
        method: name of the adapters or of the prefix.
        weights: tuple of the paths of the layers or weights they are attached to.
        trainable: number of trainable parameters, those of the head included.
        parameters: number of parameters of the model before.
        trainable_fraction: `trainable / parameters`.
        model: the model.
        wrappers: tuple of the `CallWrapper`s, in the order they were attached.
    """

    model: Any = field(default=None, repr=False, compare=False)
    wrappers: tuple[CallWrapper, ...] = field(default=(), repr=False, compare=False)

    def remove(self) -> None:
        """Remove the computations; the base stays frozen until `ke.peft.unfreeze(model)`."""
        check_model(self.model, "remove()")
        detach_call_wrappers(self.model, self.wrappers)


def attach_and_report(
    model: Model,
    method: str,
    paths: Sequence[str],
    wrappers: Sequence[tuple[str, Layer, CallWrapper]],
) -> CallWrapperReport:
    """Attach `(layer path, layer, wrapper)`s to a model and report them under `paths`."""
    attach_call_wrappers(model, wrappers)
    report = TuningReport.of(model, method, paths)
    return CallWrapperReport(
        **vars(report), model=model, wrappers=tuple(wrapper for *_, wrapper in wrappers)
    )
