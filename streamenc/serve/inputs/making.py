"""Which Input takes what a client wants to send, to a given model."""

from __future__ import annotations

from streamenc.errors import UsageError
from streamenc.io.network.websocket.livemessages import Open
from streamenc.serve.inputs.inputbase import Input
from streamenc.serve.inputs.soundinput import PcmInput
from streamenc.serve.limits import Limits
from streamenc.spec import Port, StreamSpec

# Where `open` names none.
DEFAULT_FORMATS = {
    "audio": "s16", "video": "jpeg", "codes": "codes", "features": "features", "text": "text",
}  # fmt: skip
FORMATS = {
    "audio": ("s16", "f32"),
    "video": (),
    "codes": (),
    "features": (),
    "text": (),
}


def make_input(asked: Open, spec: StreamSpec, limits: Limits) -> Input:
    """The input of a model of `spec`, of which nothing was taken yet.

    The first one of a pair of sample rates looks for up to a second how that can be gone on with:
    call it in a thread.

    Raises:
        UsageError: Where the format does not fit the model, or what it needs was not said.
    """
    port = spec.input
    format = asked.format or DEFAULT_FORMATS[port.kind]
    if format not in FORMATS[port.kind]:
        raise UsageError(
            f"{spec.name} takes {port.kind}, which comes as {', '.join(FORMATS[port.kind])}; got "
            f"format {format!r}"
        )
    return PcmInput(
        format, _sample_rate(asked, port), asked.channels or 1, port.rate, port.channels
    )


def _sample_rate(asked: Open, port: Port) -> int:
    rate = float(port.rate) if asked.rate is None else asked.rate
    if rate != int(rate):
        raise UsageError(f"got rate {rate}; wanted a whole number of samples a second")
    return int(rate)
