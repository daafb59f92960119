"""The form of a model in which its Transformer blocks compute rows of tokens, for an export."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.architecture._describe import describe
from keras_efficient.architecture._run_block import for_inference
from keras_efficient.architecture._verify import Comparison
from keras_efficient.compression._activation_quantization import unrounded_inputs
from keras_efficient.flavor import Model
from keras_efficient.training._flat_model import (
    FlatModel,
    disagreeing_blocks,
    find_first_token_only,
    leave_out_unused,
    reads_padding,
    unpadded_model,
)


@dataclass
class FlatForm:
    """How the exported graph computes the Transformer blocks of a model.

    Attributes:
        model: the `FlatModel`, or None if no block is computed on rows.
        unchanged: dict from the path of each block that is computed by its layers' own code to the
            reason why.
        join: the function of `for_inference` for graphs whose blocks multiply floats, or None.
    """

    model: FlatModel | None
    unchanged: dict[str, str] = field(default_factory=dict)
    join: Callable | None = None

    @property
    def blocks(self) -> list:
        """The blocks that are computed on rows."""
        return [] if self.model is None else self.model.blocks

    @contextmanager
    def on(self) -> Iterator[None]:
        """Compute the model in this form, within the context."""
        with ExitStack() as stack:
            if self.model is not None:
                stack.enter_context(self.model.on())
            if self.join is not None:
                stack.enter_context(for_inference(self.join))
            yield

    def leave_out(self, reason: str) -> None:
        """Compute no block on rows, for this reason."""
        self.unchanged |= {block.block.path: reason for block in self.blocks}
        if self.model is not None:
            self.model.keep([])
        self.model = None

    def facts(self) -> dict[str, Any]:
        """Return what a report says about the form, as JSON values."""
        holder = self.model
        skips = holder is not None and holder.masked and not holder.everywhere
        return {
            "blocks": len(self.blocks),
            "rows": "real tokens" if skips else "all tokens",
            "first_token_only": holder is not None and holder.first_token_only,
            "unchanged": self.unchanged,
        }


@contextmanager
def flat_form(model: Model, features: Any) -> Iterator[FlatForm]:
    """Find the form of a model, which computes in it only inside of its context manager `on`.

    Blocks that are described are computed on rows of real tokens, or of all tokens if the model
    reads the outputs of padding. The outputs are compared with the model's own before, on made-up
    texts with padding, or on the sample if the model's inputs are unknown.

    Args:
        model: the model.
        features: the `Features` of the sample.
    """
    if not model.weights:
        yield FlatForm(None)
        return
    architecture = describe(model)
    if not architecture.blocks:
        yield FlatForm(None, dict(architecture.unknown))
        return
    holder = FlatModel(model, architecture.blocks, compiled=False)
    form = FlatForm(holder, dict(architecture.unknown))
    with ExitStack() as stack:
        stack.enter_context(flavors.of(model).untraced(model))
        present = unpadded_model(model)
        if present is not None:
            present.uninstall()
            stack.callback(present.install)
        holder.install()
        stack.callback(holder.uninstall)
        with unrounded_inputs(model):
            form.unchanged |= _verified(holder, features)
        if not holder.blocks:
            form.model = None
        holder.active = False
        yield form


def _verified(holder, features):
    """Settle the form of the blocks; return those that keep their own code, and why."""
    every = [block.block.path for block in holder.blocks]
    try:
        compare = Comparison(holder.model, None, False)
    except ValueError:
        compare = Comparison(holder.model, features.inputs(), False)
    try:
        with holder.off():
            compare.begin(gradients=False)
        for everywhere in (False, True):
            holder.everywhere = everywhere
            holder.keep(holder.all_blocks)
            wrong, difference = disagreeing_blocks(holder, compare, gradients=False)
            if holder.blocks and not difference:
                wrong |= leave_out_unused(holder)
                if not holder.blocks:
                    return wrong
                # A sample without padding does not show whether padding is read.
                unknown = holder.masked and not compare.made_up and not holder.padding
                if everywhere or not (unknown or reads_padding(holder, compare)):
                    find_first_token_only(holder, compare, gradients=False)
                    return wrong
    except Exception as error:
        # The form is an advantage, not a condition of an export.
        wrong, difference = {}, f"{type(error).__name__}: {error}"
    holder.keep([])
    reason = f"does not agree with the model: {difference}"
    return {path: wrong.get(path, reason) for path in every}
