"""`Communication`, the settings of the collectives between workers."""

from dataclasses import dataclass

import tensorflow as tf

from keras_efficient._errors import InputError


@dataclass(frozen=True)
class Communication:
    """Settings of the collectives that sum gradients over several workers.

    Args:
        implementation: "auto", "ring" or "nccl", which needs GPUs. Default: "auto".
        bytes_per_pack: int >= 0, bytes of gradients reduced in one collective; 0 leaves it to
            TensorFlow. Default: 0.
        timeout_seconds: float >= 0, seconds after which a collective fails, or None for no limit.
            It costs a thread per collective, so use it for debugging only: lost workers are noticed
            without it. Default: None.

    Raises:
        InputError: a value is out of its range.

    Examples:
        >>> ke.distribute.Communication("ring", bytes_per_pack=50 * 2**20).bytes_per_pack
        52428800

    Reference:
        `tf.distribute.experimental.CommunicationOptions`.
    """

    implementation: str = "auto"
    bytes_per_pack: int = 0
    timeout_seconds: float | None = None

    def __post_init__(self):
        if self.implementation not in ("auto", "ring", "nccl"):
            raise InputError(
                "`implementation` must be 'auto', 'ring' or 'nccl'. Received: "
                f"{self.implementation!r}. Use 'auto' to let TensorFlow choose."
            )
        for name in ("bytes_per_pack", "timeout_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(
                    f"`{name}` must not be negative. Received: {value!r}. Omit it to use the "
                    "default."
                )

    @property
    def options(self) -> tf.distribute.experimental.CommunicationOptions:
        """These settings as TensorFlow's `CommunicationOptions`."""
        return tf.distribute.experimental.CommunicationOptions(
            bytes_per_pack=self.bytes_per_pack,
            timeout_seconds=self.timeout_seconds,
            implementation=tf.distribute.experimental.CommunicationImplementation(
                self.implementation.upper()
            ),
        )
