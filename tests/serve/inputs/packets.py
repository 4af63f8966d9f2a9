"""Packets as a client makes them, models that take them, and an input that is asked for."""

from fractions import Fraction

import numpy as np

from streamenc.io.network import wire
from streamenc.io.network.websocket.livemessages import Open
from streamenc.serve.inputs.making import make_input
from streamenc.serve.limits import Limits
from streamenc.spec import ImageSize, Port, Steps, StreamSpec

CODES = Port("codes", Fraction(50), 8, "uint16")


def spec_of(port, output=CODES, **more):
    return StreamSpec("model", port, output, Steps(), "offline", **more)


def sound_model(rate, channels=1):
    return spec_of(Port("audio", Fraction(rate), channels), codebook_size=1024)


def image_model(size=None, unit=1, shortest=0):
    image = ImageSize(unit, size, shortest, "bilinear")
    return spec_of(Port("video", Fraction(25), 3, "uint8", 2, image))


def code_model(codebooks=8, entries=1024, axes=0, scaled=False):
    port = Port("codes", Fraction(25, 2), codebooks, "uint16", axes)
    return spec_of(port, Port("audio", Fraction(24000), 1), codebook_size=entries, scaled=scaled)


def made(spec, limits=None, **asked):
    return make_input(Open(model="model", **asked), spec, limits or Limits())


def sound(samples, pts, cut=False):
    """(channels, samples), int16 or float32."""
    return wire.decode(wire.encode_samples(samples, 0, pts, wire.DISCONTINUITY * cut))


def packed(payload, pts=0, duration=0, cut=False):
    return wire.decode(wire.encode_bytes(payload, 0, pts, duration, wire.DISCONTINUITY * cut))


def array(data, pts=0, duration=0, cut=False, scale=1.0):
    return wire.Data(0, 0, 0, pts, duration, cut, 0, scale, np.asarray(data))


def again(input, spec, blob=None, **asked):
    """Another input that goes on where this one is."""
    other = made(spec, **asked)
    other.restore(input.state() if blob is None else blob)
    return other


def told(chunks):
    """Everything of chunks, to be compared."""
    return [
        (
            chunk.data if isinstance(chunk.data, list) else chunk.data.tobytes(),
            chunk.items,
            chunk.pts,
            chunk.duration,
            chunk.discontinuity,
            chunk.scale,
        )
        for chunk in chunks
    ]


def joined(chunks):
    return np.concatenate([chunk.data for chunk in chunks], axis=2)[0]
