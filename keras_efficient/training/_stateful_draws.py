"""`refused_draws`: an error for random numbers that cannot be drawn a second time."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from tensorflow.python.framework import op_callbacks

#: Ops that draw from TensorFlow's stateful generators.
_STATEFUL_DRAWS = re.compile(
    r"^(Random(Uniform|UniformInt|StandardNormal|Gamma|GammaGrad|Poisson|PoissonV2|Shuffle|Crop)"
    r"|(Parameterized)?TruncatedNormal|Multinomial|Stateful\w+|RngReadAndSkip)$"
)


@contextmanager
def refused_draws(rule: str, remedy: str, allowed: Collection[str] = ()) -> Iterator[None]:
    """Make an op whose random draws cannot be repeated an error, inside of the block.

    Args:
        rule: the subject of the message: what runs twice.
        remedy: what else helps.
        allowed: names of ops whose state the caller restores. Default: none.

    Raises:
        ValueError: there is such an op.
    """

    def refuse(op_type, inputs, attrs, outputs, op_name=None, graph=None):
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        if name in allowed or not _STATEFUL_DRAWS.match(name):
            return
        if not name.startswith("StatefulPartitionedCall"):
            raise ValueError(
                f"{rule} must draw its random numbers from the library's generators (a Dropout "
                "layer, keras.random with a SeedGenerator), which can repeat them. Received: a "
                f"layer that uses the op {name} (tf.random). Change that, or {remedy}."
            )

    op_callbacks.add_op_callback(refuse)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(refuse)
