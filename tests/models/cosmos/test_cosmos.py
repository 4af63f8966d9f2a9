"""Cosmos: equal to diffusers over whole clips, window by window and clip by clip; its layouts."""

from __future__ import annotations

import asyncio
import math
import re
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import streamenc
from streamenc import state as states
from streamenc.engine.engine import Engine
from streamenc.engine.lanes import Lanes
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.layers.fsq import FSQ
from streamenc.registry import LISTED, published_spec
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.compare import assert_close, poisoned_memory

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

DTYPES = pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
# Temporal and spatial factor, and what else differs.
CONFIGS: dict[str, dict[str, Any]] = {
    "4x8x8": {"temporal_compression_ratio": 4},
    "8x8x8": {},
    "8x16x16": {"spatial_compression_ratio": 16},
    "blocks": {"num_layers": 2, "attention_resolutions": (128,)},
    "small patches": {"patch_size": 2, "attention_resolutions": ()},
}
configs = pytest.mark.parametrize("config", CONFIGS)
FEW = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def pair(folder: Path, config: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """diffusers' model, and ours from its folder."""
    theirs = zoo.cosmos_reference(**CONFIGS[config])
    theirs.save_pretrained(folder)
    return theirs.to(dtype), streamenc.load(folder, dtype=dtype, **options)


def video(frames: int, height: int, width: int, dtype: torch.dtype, *, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    shape = (batch, 3, frames, height, width)
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(dtype)


def encoded(theirs: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        latents: Tensor = theirs.encode(x).latent_dist.mode()
        return latents


def decoded(theirs: Any, z: Tensor) -> Tensor:
    with torch.inference_mode():
        frames: Tensor = theirs.decode(z).sample
        return frames


def delivered(stream: Stream, x: Tensor, sizes: list[int]) -> Tensor:
    parts, start = [], 0
    while start < x.shape[2]:
        size = sizes[len(parts) % len(sizes)]
        parts.append(stream.push(x[:, :, start : start + size]))
        start += size
    return torch.cat([*parts, stream.flush()], dim=2)


def completed(x: Tensor, hop: int) -> Tensor:
    """With its last frame repeated, up to 1 + n * hop frames."""
    return torch.cat((x, x[:, :, -1:].expand(-1, -1, (1 - x.shape[2]) % hop, -1, -1)), dim=2)


@configs
@DTYPES
def test_any_delivery_equals_diffusers_over_the_whole_clip(tmp_path, config, dtype, rel):
    theirs, codec = pair(tmp_path, config, dtype)
    hop, unit = codec.spec.hop, codec.encoder.shape.spatial

    @FEW
    @given(
        frames=st.integers(1, 5 * hop),
        sizes=st.lists(st.integers(1, 2 * hop + 1), min_size=1, max_size=4),
        height=st.integers(1, 3),
        width=st.integers(2, 3),
        hops=st.sampled_from([1, 1, 2]),
        batch=st.sampled_from([1, 2]),
    )
    def check(frames, sizes, height, width, hops, batch):
        x = video(frames, height * unit, width * unit, dtype, batch=batch)
        z = delivered(codec.stream(batch=batch, hops=hops), x, sizes)
        wanted = encoded(theirs, completed(x, hop))
        assert_close(z, wanted, rel)
        y = delivered(codec.decode_stream(batch=batch, hops=hops), wanted, sizes)
        assert_close(y, decoded(theirs, wanted), rel)

    check()


@DTYPES
def test_window_equals_diffusers_with_attention_in_that_window(tmp_path, monkeypatch, dtype, rel):
    from diffusers.models.autoencoders import autoencoder_kl_cosmos as published

    context = 3
    theirs, codec = pair(tmp_path, "8x8x8", dtype, mode="window", context=context)
    temporal = published.CosmosTemporalAttentionProcessor2_0
    whole = temporal.__call__

    def in_window(self: Any, attn: Any, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        # In this model attention stands before time is halved, or after it.
        frames = hidden_states.shape[2]
        span = context * (2 if frames > latents else 1)
        mask = attention_mask & ~torch.ones_like(attention_mask).tril(-span)
        result: Tensor = whole(self, attn, hidden_states, mask)
        return result

    latents = 12
    x = video(1 + 8 * (latents - 1), 8, 16, dtype)
    full = encoded(theirs, x)
    monkeypatch.setattr(temporal, "__call__", in_window)
    wanted = encoded(theirs, x)
    assert_close(wanted[:, :, :context], full[:, :, :context], rel)
    assert (wanted - full)[:, :, context + 1 :].abs().max() > 1e-4
    for hops in (1, 4):
        z = delivered(codec.stream(hops=hops), x, [5, 1, 30])
        assert_close(z, wanted, rel)
        y = delivered(codec.decode_stream(hops=hops), wanted, [1, 3])
        assert_close(y, decoded(theirs, wanted), rel)


@pytest.mark.parametrize("config", ["4x8x8", "8x8x8"])
def test_reference_mode_equals_each_clip_by_itself(tmp_path, config):
    theirs, codec = pair(tmp_path, config, torch.float64, mode="reference", clip=17)
    x = video(3 * 17 + 11, 16, 8, torch.float64, batch=2)
    hop = codec.encoder.shape.temporal
    clips = [completed(clip, hop) for clip in x.split(17, dim=2)]
    wanted = torch.cat([encoded(theirs, clip) for clip in clips], dim=2)
    for hops in (1, 2):
        assert_close(delivered(codec.stream(batch=2, hops=hops), x, [3, 40]), wanted, 1e-10)
    stream = codec.stream(batch=2)
    assert stream.push(x[:, :, :16]).shape[2] == 0
    assert stream.push(x[:, :, 16:17]).shape[2] == 1 + 16 // hop

    frames = [decoded(theirs, z) for z in wanted.split(1 + 16 // hop, dim=2)]
    y = delivered(codec.decode_stream(batch=2), wanted, [2, 5])
    assert_close(y, torch.cat(frames, dim=2), 1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "window", "context": 2}], ids=["offline", "window"]
)
def test_a_prefix_has_the_first_latents(tmp_path, options):
    _, codec = pair(tmp_path, "8x8x8", torch.float64, **options)
    x = video(41, 8, 8, torch.float64)
    whole = codec.encode(x)
    frames = codec.decode(whole)
    for latents in range(1, 6):
        assert_close(codec.encode(x[:, :, : 1 + 8 * (latents - 1)]), whole[:, :, :latents], 1e-12)
        some = codec.decode(whole[:, :, :latents])
        assert_close(some, frames[:, :, : 1 + 8 * (latents - 1)], 1e-12)


@pytest.mark.parametrize("frames", [8, 16])
def test_lengths_at_which_the_published_model_is_wrong(tmp_path, frames):
    """It takes them without a word, and its last latent is not that of the frames."""
    theirs, codec = pair(tmp_path, "8x8x8", torch.float64)
    x = video(frames, 8, 8, torch.float64)
    published, right = encoded(theirs, x), encoded(theirs, completed(x, 8))
    assert published.shape[2] != right.shape[2] or (published - right).abs().max() > 1e-3
    assert_close(codec.encode(x), right, 1e-10)


def test_first_latent_comes_with_the_first_frame(tmp_path):
    _, codec = pair(tmp_path, "8x8x8", torch.float32)
    stream = codec.stream()
    x = video(9, 8, 16, torch.float32)
    shapes = [tuple(stream.push(x[:, :, i : i + 1]).shape) for i in range(9)]
    assert shapes == [(1, 5, 1, 1, 2)] + [(1, 5, 0, 1, 2)] * 7 + [(1, 5, 1, 1, 2)]
    assert codec.decode_stream().push(torch.zeros(1, 5, 2, 1, 2)).shape == (1, 3, 9, 8, 16)


# NVIDIA's names, from diffusers': what its modules are called in modules/layers3d.py.
NVIDIA = [
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.attentions\.(\d)", r"down.\1.attn.\2.0"),
    (r"down_blocks\.(\d)\.temp_attentions\.(\d)", r"down.\1.attn.\2.1"),
    (r"down_blocks\.(\d)\.downsamplers\.0\.(conv\d)", r"down.\1.downsample.\2.conv3d"),
    (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{2 - int(m[1])}.block"),
    (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"up.{2 - int(m[1])}.attn.{m[2]}.0"),
    (r"up_blocks\.(\d)\.temp_attentions\.(\d)", lambda m: f"up.{2 - int(m[1])}.attn.{m[2]}.1"),
    (
        r"up_blocks\.(\d)\.upsamplers\.0\.(conv\d)",
        lambda m: f"up.{2 - int(m[1])}.upsample.{m[2]}.conv3d",
    ),
    (r"mid_block\.attentions\.0", "mid.attn_1.0"),
    (r"mid_block\.temp_attentions\.0", "mid.attn_1.1"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"conv_shortcut", "nin_shortcut.conv3d"),
    (r"conv_s\.", "0.conv3d."),
    (r"conv_t\.", "1.conv3d."),
    (r"to_([qkv])\.", r"\1.conv3d."),
    (r"to_out\.0\.", "proj_out.conv3d."),
    (r"quant_conv\.", "quant_conv.conv3d."),
]


class Holder(nn.Module):
    """Parameters under any dotted names, as an archive holds them."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_archive(path: Path, tensors: dict[str, Tensor]) -> None:
    root = Holder()
    for name, tensor in tensors.items():
        *modules, last = name.split(".")
        at: nn.Module = root
        for part in modules:
            if part not in dict(at.named_children()):
                at.add_module(part, Holder())
            at = getattr(at, part)
        at.register_buffer(last, tensor.clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))


def nvidia_tensors(theirs: Any) -> dict[str, Tensor]:
    """With all convolutions of each sampler, as NVIDIA's modules have them, used or not."""
    tensors = {}
    for side, stage, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        for i in (0, 1) if side == "encoder" else (1, 2):
            for conv in ("conv1", "conv2", "conv3"):
                name = f"{side}.{stage}.{i}.{sampler}.{conv}.conv3d"
                tensors[f"{name}.weight"] = torch.randn(10, 10, 3, 1, 1)
                tensors[f"{name}.bias"] = torch.randn(10)
    for name, tensor in theirs.state_dict().items():
        for pattern, to in NVIDIA:
            name = re.sub(pattern, to, name)
        tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("config", "factors"),
    [("4x8x8", "4x8x8"), ("8x8x8", "8x8x8"), ("8x16x16", "8x16x16"), ("blocks", "8x8x8")],
)
def test_nvidia_archives(tmp_path, config, factors):
    theirs, _ = pair(tmp_path / "diffusers", config, torch.float32)
    tensors = nvidia_tensors(theirs)
    assert "encoder.down.0.block.0.conv1.0.conv3d.weight" in tensors
    wavelets = {
        "patcher3d.wavelets": torch.full((2,), 0.5**0.5),
        "patcher3d._arange": torch.ones(2),
    }
    encoder = {n: t for n, t in tensors.items() if n.startswith(("encoder.", "quant_conv."))}
    decoder = {n: t for n, t in tensors.items() if n not in encoder}
    folder = tmp_path / f"Cosmos-Tokenizer-CV{factors}"
    folder.mkdir()
    save_archive(folder / "encoder.jit", encoder | {f"encoder.{k}": v for k, v in wavelets.items()})
    save_archive(folder / "decoder.jit", decoder)
    save_archive(folder / "autoencoder.jit", tensors)
    x = video(17, 16, 16, torch.float64)
    z = encoded(theirs.double(), x)
    for where in (folder, folder / "autoencoder.jit"):
        codec = streamenc.load(where, dtype=torch.float64)
        assert_close(codec.encode(x), z, 1e-6)  # its wavelet is float64's, rounded to float32
        assert_close(codec.decode(z), decoded(theirs, z), 1e-10)
    (folder / "decoder.jit").unlink()
    assert_close(streamenc.load(folder, part="encoder").encode(x.float()), z, 1e-5)
    folder.rename(tmp_path / "renamed")
    folder = tmp_path / "renamed"
    with pytest.raises(UsageError, match="does not say by which factors"):
        streamenc.load(folder, part="encoder")
    for wrong in ("8x8", "8x8x16", "2x8x8", "32x64x64", "12x8x8", 8):
        with pytest.raises(UsageError, match="factors"):
            streamenc.load(folder, part="encoder", factors=wrong)
            pytest.fail(f"factors={wrong!r} was taken")
    assert_close(streamenc.load(folder, part="encoder", factors=factors).encode(x), z, 1e-5)
    with pytest.raises(CheckpointError, match="no decoder"):
        streamenc.load(folder, factors=factors)


def test_a_wavelet_in_half_precision_is_taken_as_it_is(tmp_path):
    """An archive in bfloat16 rounds it; the published model then computes with that."""
    theirs, _ = pair(tmp_path / "diffusers", "4x8x8", torch.float32)
    rounded = torch.full((2,), 0.5**0.5).bfloat16()
    save_archive(
        tmp_path / "encoder.jit",
        {**nvidia_tensors(theirs), "encoder.patcher3d.wavelets": rounded},
    )
    theirs.encoder.patch_embed.wavelets.copy_(rounded)
    x = video(5, 8, 8, torch.float64)
    codec = streamenc.load(
        tmp_path / "encoder.jit", part="encoder", dtype=torch.float64, factors="4x8x8"
    )
    assert_close(codec.encode(x), encoded(theirs.double(), x), 1e-10)


def test_codes_are_the_rounded_latents_and_decode_to_what_these_give(tmp_path):
    zoo.save_cosmos_codes(tmp_path)
    codec = streamenc.load(tmp_path, dtype=torch.float64)
    assert codec.spec.codebook_size == 64_000 and codec.spec.output.channels == 1
    x = video(21, 16, 24, torch.float64)
    codes = codec.encode(x)
    assert codes.shape == (1, 1, 6, 2, 3) and codes.dtype == torch.int64
    latents = codec.encoder(codec.encoder.before(x))
    assert torch.equal(codes, FSQ((8, 8, 8, 5, 5, 5)).encode(latents))
    assert codec.decode(codes).shape == (1, 3, 21, 16, 24)
    every = torch.randint(64_000, (1, 1, 7, 2, 3), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(every)
    assert_close(delivered(codec.decode_stream(), every, [1, 2]), whole, 1e-12)
    other = streamenc.load(tmp_path, levels=(8, 5, 5, 4, 3, 3))
    assert other.spec.codebook_size == 7200
    path = tmp_path / "model.safetensors"
    stored = {"quantizer._levels": torch.tensor([4, 4, 4, 3, 3, 3], dtype=torch.int32)}
    save_file({**load_file(path), **stored}, path)
    assert streamenc.load(tmp_path).decoder.spec.codebook_size == 1728
    for levels in [(8, 8), (8, 8, 8, 5, 5, 1), ("x",) * 6, "8,8"]:
        with pytest.raises(UsageError, match="levels"):
            streamenc.load(tmp_path, levels=levels)


def haar(x: Tensor) -> Tensor:
    """One level of the image transform, by convolutions: width outside, height inside."""
    s = 0.5**0.5
    bands = []
    for w in (1.0, -1.0):
        for h in (1.0, -1.0):
            kernel = torch.tensor([[s * s, w * s * s], [h * s * s, w * h * s * s]]).to(x)
            kernel = kernel.expand(x.shape[1], 1, 2, 2)
            bands.append(F.conv2d(x, kernel, stride=2, groups=x.shape[1]) / 2)
    return torch.cat(bands, dim=1)


class Images:
    """The image model written down plainly, over (images, channels, height, width)."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.t = {name: tensor.double() for name, tensor in tensors.items()}

    def conv(self, x: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"], **how)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.t[f"{name}.weight"], self.t[f"{name}.bias"], 1e-6)

    def block(self, x: Tensor, name: str) -> Tensor:
        y = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        return x + self.conv(F.silu(self.norm(y, f"{name}.norm2")), f"{name}.conv2", padding=1)

    def middle(self, x: Tensor, side: str) -> Tensor:
        x = self.block(x, f"{side}.mid.block_1")
        at = f"{side}.mid.attn_1"
        normed = self.norm(x, f"{at}.norm")
        q, k, v = (self.conv(normed, f"{at}.{part}").flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=-1)
        y = (v @ weights.transpose(1, 2)).reshape(x.shape)
        x = x + self.conv(y, f"{at}.proj_out")
        return self.block(x, f"{side}.mid.block_2")

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv(haar(haar(x)), "encoder.conv_in", padding=1)
        x = self.block(x, "encoder.down.0.block.0")
        x = self.conv(F.pad(x, (0, 1, 0, 1)), "encoder.down.0.downsample.conv", stride=2)
        x = F.silu(self.norm(self.middle(x, "encoder"), "encoder.norm_out"))
        return self.conv(self.conv(x, "encoder.conv_out", padding=1), "quant_conv")

    def decode(self, z: Tensor) -> Tensor:
        """As wavelet bands: `haar(haar(images))`."""
        x = self.conv(self.conv(z, "post_quant_conv"), "decoder.conv_in", padding=1)
        x = self.middle(x, "decoder")
        for j in range(2):
            x = self.block(x, f"decoder.up.0.block.{j}")
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv(x, "decoder.up.0.upsample.conv", padding=1)
        return self.conv(F.silu(self.norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)


def test_images_equal_the_plain_model(tmp_path):
    tensors = zoo.cosmos_image_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    codec, plain = streamenc.load(tmp_path, dtype=torch.float64), Images(tensors)
    x = video(3, 16, 24, torch.float64, batch=2)
    z = codec.encode(x)
    assert z.shape == (2, 4, 3, 2, 3)
    images = x.transpose(1, 2).flatten(0, 1)
    # The published wavelet is rounded to float32.
    assert_close(z.transpose(1, 2).flatten(0, 1), plain.encode(images), 1e-6)
    y = codec.decode(z)
    assert y.shape == x.shape
    bands = haar(haar(y.transpose(1, 2).flatten(0, 1)))
    assert_close(bands, plain.decode(z.transpose(1, 2).flatten(0, 1)), 1e-6)


def test_images_to_codes(tmp_path):
    save_file(zoo.cosmos_image_tensors(embedding=6, latent=20), tmp_path / "model.safetensors")
    codec = streamenc.load(tmp_path)
    codes = codec.encode(video(2, 8, 16, torch.float32))
    assert codes.shape == (1, 1, 2, 1, 2) and codec.spec.codebook_size == 64_000
    assert codec.decode(codes).shape == (1, 3, 2, 8, 16)
    with pytest.raises(UsageError, match="each image alone"):
        streamenc.load(tmp_path, mode="window")


def test_lanes_equal_streams_by_themselves(tmp_path):
    for options in ({}, {"mode": "window", "context": 2}, {"mode": "reference", "clip": 9}):
        _, codec = pair(tmp_path, "8x8x8", torch.float64, **options)
        model = codec.encoder
        videos = [video(9 * 8 + i, 8, 16, torch.float64) for i in range(3)]
        alone = [delivered(Stream(model), x, [100]) for x in videos]
        lanes, streams = Lanes(model, 3), [Stream(model) for _ in videos]
        outputs: list[list[Any]] = [[] for _ in videos]
        for i, (stream, x) in enumerate(zip(streams, videos, strict=True)):
            stream.take(x)
            outputs[i].append(stream.step(None))
            lanes.join(stream)
        turn = 0
        while any(stream.ready for stream in streams):
            turn += 1
            # Each idles now and then.
            now = [s for i, s in enumerate(streams) if s.ready and (turn + i) % 3]
            if turn == 4:
                lanes.leave(streams[0])
                lanes.join(streams[0])
            for stream, y in lanes.step(dict.fromkeys(now)).items() if now else ():
                outputs[streams.index(stream)].append(y)
        for stream, parts, wanted in zip(streams, outputs, alone, strict=True):
            lanes.leave(stream)
            assert_close(torch.cat([*parts, stream.flush()], dim=2), wanted, 1e-10)


def test_a_lane_that_is_full_does_not_stop_its_neighbours(tmp_path):
    _, codec = pair(tmp_path, "4x8x8", torch.float64, limit=3)
    x = video(9, 8, 8, torch.float64)
    lanes, streams = Lanes(codec.encoder, 3), [Stream(codec.encoder) for _ in range(3)]
    outputs = [[stream.push(x[:, :, :1])] for stream in streams]
    for stream in streams:
        lanes.join(stream)
        stream.take(x[:, :, 1:])
    for now in ([1], [1], [0, 2], [0, 2]):
        for stream, y in lanes.step({streams[i]: None for i in now}).items():
            outputs[streams.index(stream)].append(y)
    for parts in outputs:
        assert_close(torch.cat(parts, dim=2), codec.encode(x), 1e-10)


def test_lanes_hold_one_size(tmp_path):
    _, codec = pair(tmp_path, "4x8x8", torch.float64)
    small, large = Stream(codec.encoder), Stream(codec.encoder)
    small.push(video(1, 8, 8, torch.float64))
    large.push(video(1, 8, 16, torch.float64))
    lanes = Lanes(codec.encoder, 2)
    lanes.join(small)
    assert not lanes.fits(large)
    with pytest.raises(UsageError, match="another size"):
        lanes.join(large)


def test_an_engine_takes_several_sizes_at_once(tmp_path):
    _, codec = pair(tmp_path, "4x8x8", torch.float64)
    videos = [video(13, 8, width, torch.float64) for width in (8, 16, 8, 24)]

    async def live(engine: Engine, x: Tensor) -> Tensor:
        session, parts = engine.open(codec.encoder), []
        for frame in x.split(1, dim=2):
            parts.append(await session.step(frame))
            await asyncio.sleep(0)
        parts.append(await session.flush())
        session.close()
        return torch.cat(parts, dim=2)

    async def main() -> list[Tensor]:
        with Engine() as engine:
            return await asyncio.gather(*(live(engine, x) for x in videos))

    for x, latents in zip(videos, anyio.run(main), strict=True):
        assert_close(latents, codec.encode(x), 1e-10)


def test_a_stream_beyond_its_limit_is_refused_before_anything_changes(tmp_path):
    _, codec = pair(tmp_path, "8x8x8", torch.float64, limit=3)
    assert codec.spec.limit == 17 and codec.decoder.spec.limit == 3
    x = video(18, 8, 8, torch.float64)
    stream = codec.stream()
    first = stream.push(x[:, :, :10])
    with pytest.raises(InputError, match="at most 17"):
        stream.push(x[:, :, 10:])
    rest = [stream.push(x[:, :, 10:17]), stream.flush()]
    assert torch.equal(torch.cat([first, *rest], dim=2), codec.encode(x[:, :, :17]))
    with pytest.raises(InputError, match="limit"):
        codec.encoder(codec.encoder.before(completed(x, 8)))
    assert streamenc.load(tmp_path, mode="window").spec.limit == 0


def test_memory_is_flat_in_window_mode(tmp_path):
    _, codec = pair(tmp_path, "8x8x8", torch.float32, mode="window", context=4)
    stream = codec.stream()
    sizes = []
    for _ in range(12):
        stream.push(video(8, 8, 8, torch.float32))
        sizes.append(states.nbytes(stream.state))
    assert len(set(sizes)) == 1


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    _, codec = pair(tmp_path, "8x16x16", torch.float32)
    stream = codec.stream()
    bad = {
        r"32x20 pixels \(WIDTHxHEIGHT\).* of 16: crop or pad them to 32x16": video(
            1, 20, 32, torch.float32
        ),
        "multiples of 16": video(1, 0, 16, torch.float32),
        r"\(batch, 3, time, height, width\)": torch.zeros(1, 3, 16),
        "wanted bytes": torch.zeros(1, 3, 1, 16, 16, dtype=torch.int64),
        "1 of 2 frames are not finite, the first at 1": torch.tensor([0.0, math.nan])
        .view(1, 1, 2, 1, 1)
        .expand(1, 3, 2, 16, 16),
    }
    for message, x in bad.items():
        with pytest.raises(InputError, match=message):
            stream.push(x)
    assert stream.push(video(1, 16, 32, torch.float32)[0]).shape == (1, 5, 1, 1, 2)
    with pytest.raises(InputError, match="flush it and start a new one"):
        stream.push(video(1, 32, 32, torch.float32))
    stream.flush()
    assert stream.push(video(1, 32, 32, torch.float32)).shape == (1, 5, 1, 2, 2)


def test_options_that_make_no_sense(tmp_path):
    zoo.cosmos_reference().save_pretrained(tmp_path)
    for options in (
        {"mode": "exact"},
        {"limit": 0},
        {"mode": "window", "context": -1},
        {"mode": "window", "context": 2.5},
        {"mode": "reference", "clip": 16},
        {"rate": 0},
        {"rate": "fast"},
        {"backend": "onnx"},
    ):
        with pytest.raises(UsageError):
            streamenc.load(tmp_path, **options)
            pytest.fail(f"{options} was taken")


def test_weights_that_do_not_fit(tmp_path):
    zoo.cosmos_reference().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    for name, change in {
        "encoder.mid_block.attentions.0.to_q.weight": lambda t: None,
        "encoder.conv_in.conv_t.weight": lambda t: t.transpose(2, 3).contiguous(),
        "decoder.conv_out.conv_s.weight": lambda t: t[:-1].contiguous(),
        "encoder.down_blocks.0.resnets.0.norm1.norm.weight": lambda t: t * math.nan,
        "quant_conv.weight": lambda t: t.flatten(),
    }.items():
        changed = {**whole, name: change(whole[name])}
        save_file({n: t for n, t in changed.items() if t is not None}, path)
        with pytest.raises(CheckpointError):
            streamenc.load(tmp_path)
            pytest.fail(f"a changed {name} was taken")


def test_static_graphs_have_one_shape(tmp_path):
    _, codec = pair(tmp_path, "4x8x8", torch.float32)
    from streamenc.onnx.portable import export_files

    with pytest.raises(UsageError, match="any size"):
        export_files(codec.encoder, tmp_path / "step.onnx")


def test_published_specs():
    hops = {}
    for name in LISTED:
        if "Cosmos" in name:
            spec = published_spec(name)
            hops[name.rpartition("-")[2]] = spec.hop
            assert spec.lead == 1 and spec.codebook_size == (64_000 if "-D" in name else 0)
            assert spec.output.channels == (1 if "-D" in name else 16)
    videos = {
        f"{kind}V{size}": int(size[0]) for kind in "CD" for size in ("4x8x8", "8x8x8", "8x16x16")
    }
    assert hops == videos | {f"{kind}I{size}": 1 for kind in "CD" for size in ("8x8", "16x16")}


@pytest.mark.parametrize(("part", "rate"), [("both", "spec"), ("decoder", "decoder.spec.output")])
def test_images_have_no_sample_rate(tmp_path, part, rate):
    pair(tmp_path, "4x8x8", torch.float32)
    codec = streamenc.load(tmp_path, part=part)
    with pytest.raises(UsageError, match=f"has no sample rate; .* are {rate}.*rate"):
        _ = codec.sample_rate
