"""Choose and set the precision in which layers compute."""

from dataclasses import dataclass
from pathlib import Path

from keras_efficient import flavor as flavors

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Precision:
    """The dtype policy in force and why it was chosen."""

    policy: str
    reason: str

    def __str__(self):
        return f"{self.policy}: {self.reason}"


def mixed_precision(policy="auto", *, library="keras") -> Precision:
    """Set the dtype policy for the layers created from now on.

    Variables stay float32; products run in the compute dtype. LayerNormalization computes in
    float32 in both libraries, and `ke.models.load` keeps softmax and logits in float32
    (`ke.dtype_policies.keep_float32` does so for a model of your own), so the loss is float32 too.
    With "mixed_float16", `compile` wraps the optimizer in the library's dynamic loss scaling.

    Args:
        policy: "auto" or one of "float32", "mixed_bfloat16", "mixed_float16". "auto" takes
            bfloat16 on TPUs, on GPUs of compute capability 8.0 (Ampere) or later and on CPUs with
            AMX or AVX512 bfloat16 instructions; float16 on GPUs of capability 7.x (Volta,
            Turing); float32 elsewhere.
        library: "keras" (default) or "tf_keras"; their policies are separate.

    Returns:
        What was set, and why: `print(ke.mixed_precision("auto"))`.

    Raises:
        ValueError: unknown policy or library.

    Reference:
        Micikevicius et al. 2018, "Mixed Precision Training".
    """
    if policy == "auto":
        chosen = choose()
    elif policy in POLICIES:
        chosen = Precision(policy, "as asked")
    else:
        raise ValueError(
            f"`policy` must be 'auto' or one of {POLICIES}. Received: {policy!r}. "
            "For bfloat16 compute with float32 variables use 'mixed_bfloat16'."
        )
    flavors.get(library).keras.mixed_precision.set_global_policy(chosen.policy)
    return chosen


def choose() -> Precision:
    """The policy "auto" takes on this machine."""
    import tensorflow as tf

    if tf.config.list_logical_devices("TPU"):
        return Precision("mixed_bfloat16", "TPUs multiply bfloat16")
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return for_gpus([detail.get("compute_capability", (0, 0)) for detail in details])
    return for_cpu(_cpu_flags())


def for_gpus(capabilities) -> Precision:
    """The policy for GPUs of these compute capabilities; the weakest decides."""
    weakest = min(capabilities)
    version = ".".join(map(str, weakest))
    if weakest >= (8, 0):
        return Precision("mixed_bfloat16", f"GPUs of compute capability {version} have bfloat16")
    if weakest >= (7, 0):
        return Precision("mixed_float16", f"GPUs of compute capability {version} have float16 only")
    return Precision("float32", f"GPUs of compute capability {version} have no tensor cores")


def for_cpu(flags) -> Precision:
    """The policy for a CPU with these feature flags (as /proc/cpuinfo names them)."""
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
