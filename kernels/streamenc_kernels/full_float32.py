"""Products of float32 in full, while a step runs: no TF32 on a GPU, no bfloat16 on a CPU.

torch computes convolutions and recurrent layers on a GPU in TF32 unless it is told otherwise, which
keeps ten bits of each factor: latents are off by 1e-3, and codes differ in one to three frames of a
hundred. Programs ask for the same in linear layers (`torch.set_float32_matmul_precision("high")`),
and on CPUs with AMX "medium" takes bfloat16. So steps switch it off, and on again behind them: what
else runs in the process keeps what it asked for, between the steps.

The switches are the process's, not a thread's. Those who step at the same time are counted, the
first switches off and the last puts back; another thread that computes meanwhile does so in full.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch

# Products that say nothing of their own, and nothing above them does, are in full.
_FULL = ("ieee", "none", False)
_PARTS = ("convolutions", "recurrent layers", "linear layers")


class _Switch(NamedTuple):
    """One of torch's: `attribute` of `holder`."""

    part: str
    holder: Any
    attribute: str
    off: str | bool

    @property
    def value(self) -> str | bool:
        value: str | bool = getattr(self.holder, self.attribute)
        return value

    def set(self, value: str | bool) -> None:
        setattr(self.holder, self.attribute, value)


class _Switches:
    """Those of one kind of device, and who wants them off."""

    def __init__(self, switches: list[_Switch]) -> None:
        self.switches = switches
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[_Switch, str | bool]] = []

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                for switch in self.switches:
                    value = switch.value
                    if value not in _FULL:
                        switch.set(switch.off)
                        self._before.append((switch, value))
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside:
                return
            for switch, value in self._before:
                if switch.value == switch.off:  # else somebody has chosen anew meanwhile
                    switch.set(value)
            self._before.clear()


def _found() -> dict[str, _Switches]:
    """By the type of device."""
    backends: Any = torch.backends  # whose types know less than it has
    if not hasattr(backends, "fp32_precision"):  # torch 2.8 and older
        matmul = _Switch("linear layers", backends.cuda.matmul, "allow_tf32", False)
        cudnn = _Switch("convolutions and recurrent layers", backends.cudnn, "allow_tf32", False)
        return {"cuda": _Switches([cudnn, matmul])}
    cuda = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    cpu = (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul)
    return {
        device: _Switches(
            [
                _Switch(part, holder, "fp32_precision", "ieee")
                for part, holder in zip(_PARTS, holders, strict=True)
            ]
        )
        for device, holders in (("cuda", cuda), ("cpu", cpu))
    }


_SWITCHES = _found()


class FullFloat32:
    """Within it, products of float32 on such a device are float32's; see the module.

    Scopes may lie within each other and in several threads at once. Of types of devices that have
    no such switch it does nothing.

    Args:
        device: "cuda" or "cpu": the `type` of a torch.device.
    """

    __slots__ = ("_switches",)

    def __init__(self, device: str) -> None:
        self._switches = _SWITCHES.get(device)

    def __enter__(self) -> None:
        if self._switches is not None:
            self._switches.enter()

    def __exit__(self, *error: object) -> None:
        if self._switches is not None:
            self._switches.leave()


def reduced_products(device: str) -> dict[str, str]:
    """What this process now computes with less than float32 on such a device: {"convolutions":
    "tf32"}, as torch has it by default on a GPU, outside of `FullFloat32`."""
    switches = _SWITCHES.get(device)
    found = [] if switches is None else [(s.part, s.value) for s in switches.switches]
    return {
        part: value if isinstance(value, str) else "tf32"
        for part, value in found
        if value not in _FULL
    }
