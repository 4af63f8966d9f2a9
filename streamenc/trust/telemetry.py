"""Telemetry of the packages that streamenc imports: off before any of them is there."""

from __future__ import annotations

import os

# What each package reads when it is imported or started; what the user has set stays.
OFF = {
    # ONNX Runtime leaves a device's id in ~/.cache/Microsoft and asks for Microsoft's servers.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub, and transformers, diffusers and datasets, which send by it.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ray counts clusters.
    "RAY_USAGE_STATS_ENABLED": "0",
}


def telemetry_off() -> None:
    """For this process and those that it starts: called by `import streamenc`, before all else."""
    for variable, value in OFF.items():
        os.environ.setdefault(variable, value)
