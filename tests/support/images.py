"""What the tests of image models share: random images, deliveries, real frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.stream import Stream

DTYPES = pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)


def images(
    count: int, height: int, width: int, dtype: torch.dtype, *, batch: int = 1, channels: int = 3
) -> Tensor:
    """Noise in [-1, 1], (batch, channels, images, height, width)."""
    generator = torch.Generator().manual_seed(count + height)
    shape = (batch, channels, count, height, width)
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(dtype)


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images, 3, height, width) in [-1, 1] as a published preparation gives it."""
    shift, scale = (torch.tensor(v, dtype=x.dtype).view(3, 1, 1) for v in (mean, std))
    return ((x + 1) / 2 - shift) / scale


def delivered(stream: Stream, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """What a stream gives for x in pieces of these sizes, time being the third axis."""
    parts, start = [], 0
    while start < x.shape[2]:
        size = sizes[len(parts) % len(sizes)]
        part = stream.push(x[:, :, start : start + size])
        assert isinstance(part, Tensor)
        parts.append(part)
        start += size
    last = stream.flush()
    assert isinstance(last, Tensor)
    return torch.cat([*parts, last], dim=2)


def weights(folder: str) -> Path:
    """A folder of real weights; skips where STREAMENC_WEIGHTS does not name one that has it."""
    path = Path(os.environ.get("STREAMENC_WEIGHTS", "")) / folder
    if "STREAMENC_WEIGHTS" not in os.environ or not path.exists():
        pytest.skip(f"wants real weights: STREAMENC_WEIGHTS names a folder with {folder}")
    return path


def real_frames(
    *, size: tuple[int, int] | None = None, count: int = 4, every: int = 10
) -> Iterator[tuple[str, Tensor]]:
    """Frames of the clips in the folder that STREAMENC_VIDEOS names: (3, frames, height, width)
    bytes, scaled to `size` where given. Skips where it names none."""
    import av

    folder = os.environ.get("STREAMENC_VIDEOS", "")
    clips = sorted(Path(folder).glob("*.mp4")) if folder else []
    if not clips:
        pytest.skip("wants real frames: STREAMENC_VIDEOS names a folder of .mp4 files")
    for clip in clips:
        frames: list[Tensor] = []
        with av.open(str(clip)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i % every == 0:
                    frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(frames) == count:
                    break
        x = torch.stack(frames).permute(0, 3, 1, 2)
        if size is not None:
            scaled = F.interpolate(x.float(), size=size, mode="bicubic", antialias=True)
            x = scaled.round().clamp(0, 255).to(torch.uint8)
        yield clip.stem, x.transpose(0, 1)
