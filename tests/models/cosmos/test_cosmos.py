"""Cosmos: equal to diffusers over whole clips, window by window and clip by clip; its layouts."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import anyio
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import streamenc
from streamenc import state as states
from streamenc.engine.engine import Engine
from streamenc.engine.lanes import Lanes
from streamenc.errors import InputError, UsageError
from streamenc.stream import Stream
from tests.support import references
from tests.support.answers import joined
from tests.support.compare import assert_close, poisoned_memory
from tests.support.cosmos_clips import CONFIGS, completed, decoded, delivered, encoded, pair, video
from tests.support.profile import examples

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

DTYPES = pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
configs = pytest.mark.parametrize("config", CONFIGS)
FEW = settings(
    max_examples=examples(10, fast=3),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


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
        return joined(parts, axis=2)

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
    assert_close(torch.cat([first, *rest], dim=2), codec.encode(x[:, :, :17]), 1e-10)
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
    references.cosmos().save_pretrained(tmp_path)
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


def test_exported_steps_have_one_shape(tmp_path):
    _, codec = pair(tmp_path, "4x8x8", torch.float32)
    from streamenc.onnx.portable import export_files

    with pytest.raises(UsageError, match="only steps over sound"):
        export_files(codec.encoder, tmp_path / "step.onnx")
