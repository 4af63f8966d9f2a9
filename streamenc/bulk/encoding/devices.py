"""The devices that a run encodes on, one process for each of them."""

from __future__ import annotations

from streamenc import registry
from streamenc.errors import UsageError


def devices_of(asked: str) -> list[str]:
    """What `--device` asks for, as `streamenc.load` takes them: ["cpu"], ["cuda:0", "cuda:1"].

    Args:
        asked: "auto" for all GPUs that torch can compute on, and else the CPU; "all" for those
            GPUs, of which there has to be one; "cpu", "cuda", "cuda:1".

    Raises UsageError where there is no such device.
    """
    found = registry.compute_devices()
    if asked in ("auto", "all"):
        usable = [device.name for device in found if device.name != "cpu" and not device.cannot]
        if usable or asked == "auto":
            return usable or ["cpu"]
        reasons = "; ".join(f"{device.name}: {device.cannot}" for device in found if device.cannot)
        raise UsageError(
            f"device={asked}: there is no GPU that torch can compute on"
            f"{f' ({reasons})' if reasons else ''}; auto takes the CPU then"
        )
    return [str(registry.device_of(asked))]
