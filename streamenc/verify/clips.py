"""What is encoded to compare with: speech that comes with streamenc, moving images, sentences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.errors import UsageError
from streamenc.spec import ImageSize, StreamSpec

# Six seconds of synthetic speech, 22.05 kHz mono, free to use for anything (CC0).
SPEECH = Path(__file__).parent / "speech.flac"
IMAGE_PIXELS = 256
IMAGES, VIDEO_SECONDS = 4, 1.0
TEXTS = [
    "A microphone, a camera, a file or a network stream goes in.",
    "Codec tokens, features or latents come out, frame by frame!",
    "Сколько будет 2 + 2?",
    "",
    "one",
]


def clip_for(spec: StreamSpec, seconds: float, path: Path | None = None) -> Any:
    """What an encoder takes, (1, channels, samples) or (1, 3, frames, height, width) in [-1, 1], or
    a list of texts.

    Args:
        seconds: Of sound; what is longer than the clip repeats it.
        path: A file of sound in place of the bundled one.

    Raises UsageError where there is no clip for the kind.
    """
    kind = spec.input.kind
    if kind == "text":
        return list(TEXTS)
    if kind == "video":
        image = spec.input.image or ImageSize()
        height, width = image.size or image.nearest((IMAGE_PIXELS, IMAGE_PIXELS))
        frames = IMAGES
        if spec.hop > 1 or spec.lead > 1:
            frames = spec.lead + spec.hop * math.ceil(VIDEO_SECONDS * 16 / spec.hop)
        return scene(frames, height, width)[None]
    if kind == "audio":
        return speech(int(spec.input.rate), spec.input.channels, seconds, path)[None]
    raise UsageError(f"{spec.name} encodes {kind}; there is no clip of that to verify it with")


def speech(rate: int, channels: int, seconds: float, path: Path | None = None) -> Tensor:
    """(channels, samples) float32 in [-1, 1]; of mono each channel is a little later and softer."""
    import av
    import soxr

    with av.open(str(path or SPEECH)) as container:
        stream = container.streams.audio[0]
        pieces = [frame.to_ndarray() for frame in container.decode(stream)]
        planar, own_rate = stream.format.is_planar, stream.rate
        heard = stream.channels
    sound = torch.cat([torch.from_numpy(piece) for piece in pieces], dim=1)
    if not planar:
        sound = sound.view(-1, heard).T
    if not sound.is_floating_point():
        sound = sound.double() / (1 << (8 * sound.element_size() - 1))
    mono = torch.from_numpy(soxr.resample(sound.double().mean(dim=0).numpy(), own_rate, rate))
    wanted = max(1, round(seconds * rate))
    mono = mono.repeat(-(-wanted // len(mono)))[:wanted].float().clamp(-1, 1)
    return torch.stack([0.9**i * F.pad(mono, (7 * i, 0))[:wanted] for i in range(channels)])


def scene(frames: int, height: int, width: int) -> Tensor:
    """(3, frames, height, width) in [-1, 1], multiples of bytes: textures of all scales that move,
    the coarser the slower."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(frames, 3, height, width)
    for octave in range(6):
        cells = 4 << octave
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        texture = F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0]
        for frame in range(frames):
            shift = (frame * (octave + 1) // 2, -frame * octave // 2)
            total[frame] += texture.roll(shift, (-2, -1)) * 0.6**octave
    levels = (127.5 * (1 + torch.tanh(0.6 * total))).round()
    return levels.transpose(0, 1) / 127.5 - 1
