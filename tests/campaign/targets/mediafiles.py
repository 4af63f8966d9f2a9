"""Files of sound and images: changed ones of many formats, and headers that promise too much."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import av
import numpy as np
from PIL import Image

from streamenc import io as streams
from streamenc.errors import MediaError, StreamencError
from streamenc.graph.node import BlockingSource
from tests.campaign.target import mutated

# ending: encoder of sound, of images; and of those that Pillow writes.
ENCODED = {
    "wav": ("pcm_s16le", ""), "flac": ("flac", ""), "ogg": ("flac", ""), "mp3": ("mp3", ""),
    "opus": ("libopus", ""), "m4a": ("aac", ""), "aac": ("aac", ""), "w64": ("pcm_s24le", ""),
    "caf": ("pcm_s16be", ""), "aiff": ("pcm_s16be", ""), "au": ("pcm_mulaw", ""),
    "mp4": ("aac", "mpeg4"), "mov": ("pcm_s16le", "mpeg4"), "mkv": ("flac", "ffv1"),
    "webm": ("libopus", "libvpx"), "ts": ("mp2", "mpeg2video"), "avi": ("", "mjpeg"),
    "apng": ("", "apng"), "nut": ("", "rawvideo"),
}  # fmt: skip
PICTURES = ("png", "gif", "webp", "jpg", "tiff", "bmp", "ppm", "tga", "ico", "avif")
RATES = (0, 1, 2, 5, 10, 19, 20, 99, 8000, 655_350, 2**31 - 1, 2**32 - 1)
SIDES = (0, 1, 2, 16_383, 16_384, 32_767, 46_340, 65_535, 2**31 - 1)
TEXTS = (
    "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
    "ffconcat version 1.0\nfile file.wav\n", "ffconcat version 1.0\n" + "file a.wav\n" * 20_000,
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n", "RIFF", "OggS",
    "<?xml version='1.0'?><MPD/>", "fLaC", "ID3", "\0" * 50_000, "[playlist]\nFile1=http://127.0.0.1:9\n",
)  # fmt: skip


@cache
def encoded(ending: str) -> bytes:
    """A tenth of a second of sound, three images, or both."""
    sound_codec, video_codec = ENCODED[ending]
    rate = 48_000 if sound_codec in ("libopus", "mp2") else 16_000
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"seed.{ending}"
        with av.open(str(path), "w") as container:
            sound = container.add_stream(sound_codec, rate=rate) if sound_codec else None
            video = container.add_stream(video_codec, rate=25) if video_codec else None
            if video is not None:
                video.width = video.height = 32
                video.pix_fmt = {"mjpeg": "yuvj420p", "apng": "rgb24", "rawvideo": "rgb24"}.get(
                    video_codec, "yuv420p"
                )
                for number in range(3):
                    pixels = np.full((32, 32, 3), 40 * number, np.uint8)
                    image = av.VideoFrame.from_ndarray(pixels, "rgb24")
                    container.mux(video.encode(image))
                container.mux(video.encode(None))
            if sound is not None:
                resampler = av.AudioResampler(sound.format, sound.layout, rate, 1152)
                tone = (9000 * np.sin(np.arange(rate // 10) / 9)).astype(np.int16)[None]
                frame = av.AudioFrame.from_ndarray(tone, "s16", "mono")
                frame.sample_rate, frame.pts = rate, 0
                for made in (*resampler.resample(frame), *resampler.resample(None)):
                    container.mux(sound.encode(made))
                container.mux(sound.encode(None))
        return path.read_bytes()


@cache
def picture(ending: str) -> bytes:
    image = Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3))
    out = io.BytesIO()
    form = {"jpg": "jpeg"}.get(ending, ending)
    several = {"append_images": [image.rotate(90)] * 2} if ending in ("gif", "webp", "tiff") else {}
    image.save(out, form, save_all=bool(several), **several)
    return out.getvalue()


def crafted(rng: Random) -> tuple[str, bytes]:
    """A header that is right, and says what nothing can be."""
    width, height, rate = rng.choice(SIDES), rng.choice(SIDES), rng.choice(RATES)
    channels = rng.choice((0, 1, 2, 255, 65_535))
    match rng.randrange(8):
        case 0:
            bits = rng.choice((0, 1, 8, 16, 32, 64))
            form = struct.pack("<HHIIHH", rng.choice((1, 3, 7)), channels, rate, rate, 2, bits)
            body = (
                b"fmt "
                + struct.pack("<I", 16)
                + form
                + b"data"
                + struct.pack("<I", 4000)
                + bytes(4000)
            )
            return "wav", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body
        case 1:
            moves = rng.random() < 0.5
            chunks = [
                (
                    b"IHDR",
                    struct.pack(
                        ">IIBBBBB",
                        width,
                        height,
                        rng.choice((1, 8, 16)),
                        rng.choice((0, 2, 3, 6)),
                        0,
                        0,
                        0,
                    ),
                )
            ]
            if moves:
                chunks += [(b"acTL", struct.pack(">II", rng.choice((1, 3, 2**31 - 1)), 0))]
                chunks += [
                    (b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 25, 0, 0))
                ]
            chunks += [
                (b"IDAT", zlib.compress(bytes(rng.choice((0, 100, 3_000_000))))),
                (b"IEND", b""),
            ]
            packed = b"".join(map(_chunk, chunks))
            return rng.choice(("png", "apng")), b"\x89PNG\r\n\x1a\n" + packed
        case 2:
            head = (
                b"GIF89a"
                + struct.pack("<HHBBB", width % 65536, height % 65536, 0x80, 0, 0)
                + bytes(6)
            )
            one = (
                b","
                + struct.pack("<HHHHB", 0, 0, width % 65536, height % 65536, 0)
                + b"\x02\x02\x4c\x01\x00"
            )
            return "gif", head + one * rng.choice((1, 50)) + b";"
        case 3:
            tags = [
                (256, width),
                (257, height),
                (258, 8),
                (259, 1),
                (262, 1),
                (273, 8),
                (278, height),
                (279, 2**31),
            ]
            entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
            return "tiff", b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
        case 4:
            seed = bytearray(picture("bmp"))
            struct.pack_into("<ii", seed, 18, width, height)
            return "bmp", bytes(seed)
        case 5:
            seed = bytearray(picture("jpg"))
            at = seed.index(b"\xff\xc0") + 5
            struct.pack_into(">HH", seed, at, height % 65536, width % 65536)
            return "jpg", bytes(seed)
        case 6:
            seed = bytearray(encoded("flac"))
            said = int.from_bytes(seed[18:22], "big") & 0xFFF
            seed[18:22] = ((rate & 0xFFFFF) << 12 | said).to_bytes(4, "big")
            return "flac", bytes(seed)
        case _:
            return rng.choice(("m3u8", "ffconcat", "sdp", "wav", "pls", "mpd", "bin")), rng.choice(
                TEXTS
            ).encode()


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    """Of a PNG."""
    kind, data = chunk
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


class MediaFiles:
    """A file whose first line is its ending: read as sound, as images, and as both."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def case(self, rng: Random) -> bytes:
        if rng.random() < 0.3:
            ending, data = crafted(rng)
        else:
            ending = rng.choice((*ENCODED, *PICTURES))
            data = mutated(encoded(ending) if ending in ENCODED else picture(ending), rng)
        return ending.encode() + b"\n" + data

    def take(self, data: bytes) -> None:
        ending, _, content = data.partition(b"\n")
        path = self._folder / f"file.{ending.decode(errors='replace')[:8].replace('/', '')}"
        path.write_bytes(content)
        refusal: StreamencError | None = None
        taken = 0
        try:
            for kind in ("audio", "video", "av"):
                try:
                    _read(str(path), kind)
                    taken += 1
                except MediaError as error:
                    refusal = error
        finally:
            path.unlink()
        if refusal is not None and not taken:
            raise refusal


def _read(path: str, kind: str) -> None:
    source = streams.source(path, kind)
    assert isinstance(source, BlockingSource)
    try:
        source.open_blocking()
        for _ in range(50):
            if source.read() is None:
                break
    finally:
        source.close_blocking()


def target(folder: Path) -> MediaFiles:
    return MediaFiles(folder)
