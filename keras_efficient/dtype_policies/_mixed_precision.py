"""Choose and set the dtype policy for mixed precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficient import flavor as flavors

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Precision:
    """The dtype policy that `mixed_precision` set, and the reason for it.

    Attributes:
        policy: "float32", "mixed_bfloat16" or "mixed_float16".
        reason: Sentence fragment for messages.
    """

    policy: str
    reason: str

    def __str__(self):
        return f"{self.policy}: {self.reason}"


def mixed_precision(policy: str = "auto", *, library: Any = "keras") -> Precision:
    """Set the global dtype policy, which applies to layers created afterwards.

    Variables remain float32; matrix products run in the compute dtype. LayerNormalization computes
    in float32 in both libraries. `ke.models.load` keeps softmax and logits, and thereby the loss,
    in float32; for your own models use `ke.dtype_policies.keep_float32`. With "mixed_float16",
    `compile` wraps the optimizer in the library's dynamic loss scaling.

    Args:
        policy: "auto", "float32", "mixed_bfloat16" or "mixed_float16". "auto" chooses bfloat16 on
            TPUs, on GPUs of compute capability 8.0 (Ampere) or later and on CPUs with AMX or
            AVX512 bfloat16 instructions, float16 on GPUs of capability 7.x (Volta, Turing), and
            float32 elsewhere. Default: "auto".
        library: "keras" or "tf_keras", which have separate policies, or a model of either.
            Default: "keras".

    Returns:
        The policy and the reason for it, for `print(ke.mixed_precision("auto"))`.

    Raises:
        ValueError: The policy or library is unknown.

    Examples:
        >>> print(ke.mixed_precision("float32"))
        float32: as requested

    Reference:
        Micikevicius et al. 2018, "Mixed Precision Training".
    """
    if policy == "auto":
        chosen = choose()
    elif policy in POLICIES:
        chosen = Precision(policy, "as requested")
    else:
        raise ValueError(
            f"`policy` must be 'auto' or one of {POLICIES}. Received: {policy!r}. "
            "For bfloat16 compute with float32 variables use 'mixed_bfloat16'."
        )
    flavors.get(library).keras.mixed_precision.set_global_policy(chosen.policy)
    return chosen


def choose() -> Precision:
    """Return the policy that "auto" chooses on this machine."""
    import tensorflow as tf

    if tf.config.list_logical_devices("TPU"):
        return Precision("mixed_bfloat16", "TPUs multiply bfloat16")
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return for_gpus([detail.get("compute_capability", (0, 0)) for detail in details])
    return for_cpu(_cpu_flags())


def for_gpus(capabilities: list[tuple[int, int]]) -> Precision:
    """Return the policy for GPUs of these compute capabilities; the lowest one decides."""
    weakest = min(capabilities)
    version = ".".join(map(str, weakest))
    if weakest >= (8, 0):
        return Precision("mixed_bfloat16", f"GPUs of compute capability {version} have bfloat16")
    if weakest >= (7, 0):
        return Precision("mixed_float16", f"GPUs of compute capability {version} have float16 only")
    return Precision("float32", f"GPUs of compute capability {version} have no tensor cores")


def for_cpu(flags: set[str]) -> Precision:
    """Return the policy for a CPU with these feature flags, named as in /proc/cpuinfo."""
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return Precision("mixed_bfloat16", f"this CPU multiplies bfloat16 natively ({flag})")
    return Precision("float32", "this CPU has no bfloat16 instructions")


def _cpu_flags():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
