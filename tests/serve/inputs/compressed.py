"""Sound and images in packets of codecs, and in files, as clients send them."""

from fractions import Fraction
from io import BytesIO

import av
import numpy as np


def tones(samples, rate=48000, channels=1, seed=0):
    """(channels, samples) float32 that codecs like: tones that come and go, and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    sound = [
        0.3
        * np.sin(2 * np.pi * (220 + 110 * c) * t * (1 + 0.2 * np.sin(3 * t)))
        * (0.5 + 0.5 * np.sin(5 * t))
        + 0.02 * rng.standard_normal(samples)
        for c in range(channels)
    ]
    return np.array(sound, np.float32)


def opus_packets(samples):
    """(channels, samples) at 48 kHz -> packets of 20 ms."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format = 48000, "flt"
    encoder.layout = "mono" if len(samples) == 1 else "stereo"
    encoder.bit_rate = 32000
    encoder.open()
    out = []
    for start in range(0, samples.shape[1] - 959, 960):
        data = np.ascontiguousarray(samples[:, start : start + 960].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(data, "flt", encoder.layout.name)
        frame.sample_rate, frame.pts = 48000, start
        out += [bytes(packet) for packet in encoder.encode(frame)]
    return out


def pictures(count, height, width, seed=0):
    """(count, height, width, 3), a pattern that moves."""
    y, x = np.mgrid[:height, :width]
    return np.array(
        [
            np.stack([(x * 3 + 5 * n + seed) % 256, (y * 2 + 7 * n) % 256, (x + y + n) % 256], -1)
            for n in range(count)
        ],
        np.uint8,
    )


def h264_units(images, every=10, bframes=0):
    """Access units of images (count, height, width, 3), a key frame every so many."""
    count, height, width, _ = images.shape
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = Fraction(1, 25)
    encoder.gop_size = every
    encoder.thread_count = 1
    encoder.options = {"preset": "ultrafast", "x264-params": f"bframes={bframes}:log-level=none"}
    if not bframes:
        encoder.options |= {"tune": "zerolatency"}
    units = []
    for number, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
        frame.pts = number
        units += [(packet.pts, bytes(packet)) for packet in encoder.encode(frame)]
    units += [(packet.pts, bytes(packet)) for packet in encoder.encode(None)]
    return units


def file_of(format, codec, samples=None, images=None, rate=48000, options=None, **more):
    """The bytes of a file of sound (channels, samples), or of images (count, height, width, 3)."""
    file = BytesIO()
    with av.open(file, "w", format=format, options=options or {}) as container:
        if samples is not None:
            stream = container.add_stream(codec, rate=rate, **more)
            stream.layout = "mono" if len(samples) == 1 else "stereo"
            size = 960
            for start in range(0, samples.shape[1], size):
                data = np.ascontiguousarray(samples[:, start : start + size])
                frame = av.AudioFrame.from_ndarray(data, "fltp", stream.layout.name)
                frame.sample_rate, frame.pts = rate, start
                frame.time_base = Fraction(1, rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if images is not None:
            stream = container.add_stream(codec, rate=25, **more)
            stream.height, stream.width = images.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(stream.encode(None))
    return file.getvalue()
