"""Which Input takes what a client wants to send, to a given model."""

from __future__ import annotations

from fractions import Fraction

from streamenc.errors import UsageError
from streamenc.io.network.websocket.livemessages import Open
from streamenc.serve.inputs.codeinput import LatentInput, TextInput
from streamenc.serve.inputs.h264input import H264Input
from streamenc.serve.inputs.imageinput import ImageInput
from streamenc.serve.inputs.inputbase import Input
from streamenc.serve.inputs.mediainput import MediaImages, MediaSound
from streamenc.serve.inputs.opusinput import RATE, OpusInput
from streamenc.serve.inputs.soundinput import PcmInput
from streamenc.serve.limits import Limits
from streamenc.spec import Port, StreamSpec

# By what a model takes; the first one where `open` names none.
FORMATS = {
    "audio": ("s16", "f32", "opus", "media"),
    "video": ("jpeg", "rgb", "h264", "media"),
    "codes": ("codes",),
    "features": ("features",),
    "text": ("text",),
}
MIN_IMAGE_RATE = Fraction(1, 1000)


def make_input(asked: Open, spec: StreamSpec, limits: Limits) -> Input:
    """The input of a model of `spec`, of which nothing was taken yet.

    The first one of a pair of sample rates looks for up to a second how that can be gone on with:
    call it in a thread.

    Raises:
        UsageError: Where the format does not fit the model, or what it needs was not said.
    """
    port = spec.input
    format = asked.format or FORMATS[port.kind][0]
    if format not in FORMATS[port.kind]:
        raise UsageError(
            f"{spec.name} takes {port.kind}, which comes as {', '.join(FORMATS[port.kind])}; got "
            f"format {format!r}"
        )
    if port.kind in ("codes", "features"):
        return LatentInput(format, spec, asked.codebooks, limits.max_pixels)
    if port.kind == "text":
        return TextInput()
    if port.kind == "video":
        rate = port.rate if asked.rate is None else Fraction(asked.rate).limit_denominator(1001)
        if rate < MIN_IMAGE_RATE:
            raise UsageError(f"got rate {asked.rate}; wanted {MIN_IMAGE_RATE} images a second")
        if format == "media":
            return MediaImages(rate, spec, asked.size, limits.max_pixels)
        if format == "h264":
            return H264Input(rate, spec, asked.size, limits.max_pixels)
        return ImageInput(format, rate, spec, asked.size, limits.max_pixels)
    channels = asked.channels or 1
    if format == "media":
        return MediaSound(port.rate, port.channels, limits.max_pixels)
    if format == "opus":
        if asked.rate not in (None, RATE):
            raise UsageError(f"got rate {asked.rate}; Opus is decoded to {RATE} samples a second")
        return OpusInput(channels, port.rate, port.channels)
    return PcmInput(format, _sample_rate(asked, port), channels, port.rate, port.channels)


def _sample_rate(asked: Open, port: Port) -> int:
    rate = float(port.rate) if asked.rate is None else asked.rate
    if rate != int(rate):
        raise UsageError(f"got rate {rate}; wanted a whole number of samples a second")
    return int(rate)
