"""TPU chips of this machine, and the hosts of the slice that they belong to."""

import os
import re
import urllib.request
from pathlib import Path

_ROOT = Path("/")
#: Google's number as a vendor of PCI devices, and its devices that are TPUs behind VFIO.
_VENDOR = "0x1ae0"
_TPUS = {"0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "v7"}
#: Environment variables that name a TPU for TensorFlow's resolver.
_NAMES = ("TPU_NAME", "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS")
_ENDPOINTS = "computeMetadata/v1/instance/attributes/worker-network-endpoints"
#: Seconds to wait for Google's metadata server, which answers within milliseconds.
_TIMEOUT = 2.0


def named_tpu() -> bool:
    """Return whether the environment names a TPU for TensorFlow's resolver."""
    return any(name in os.environ for name in _NAMES)


def local_tpu() -> bool:
    """Return whether this machine has TPU chips.

    Up to v4 they are /dev/accel0 and so on. Later ones are behind VFIO, which other machines have
    too, so there must also be a TPU among the PCI devices.
    """
    if (_ROOT / "dev/accel0").exists():
        return True
    groups = (_ROOT / "dev/vfio").glob("[0-9]*")
    return any(groups) and any(map(_is_tpu, (_ROOT / "sys/bus/pci/devices").glob("*")))


def slice_hosts() -> list[str]:
    """Return the hosts of the slice that this machine is one of; empty if nothing tells.

    Kubernetes lists them in TPU_WORKER_HOSTNAMES, a TPU VM's metadata server elsewhere.
    """
    names = os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and not os.environ.get("TPU_SKIP_MDS_QUERY"):
        # "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"
        names = re.sub(r"[^,]*:", "", _metadata())
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _is_tpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
        return False
    return vendor == _VENDOR and kind in _TPUS


def _metadata() -> str:
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/{_ENDPOINTS}", headers={"Metadata-Flavor": "Google"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT) as answer:
            return answer.read(1 << 20).decode()
    # Not a machine of Google's, or not one host of several.
    except (OSError, ValueError):
        return ""
