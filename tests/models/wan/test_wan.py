"""Wan's VAE: equal to diffusers over whole clips, however they come; tails, sizes, options."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamenc
from streamenc import state as states
from streamenc.errors import InputError, UsageError
from tests.support.compare import assert_close, poisoned_memory
from tests.support.cosmos_clips import completed, decoded, delivered, encoded, video
from tests.support.profile import examples
from tests.support.wan_clips import CONFIGS, SMALL, pair, repeated_exactly, wan

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

DTYPES = pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
FEW = settings(
    max_examples=examples(10, fast=2),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("config", CONFIGS)
@DTYPES
def test_any_delivery_equals_diffusers_over_the_whole_clip(
    tmp_path, monkeypatch, config, dtype, rel
):
    repeated_exactly(monkeypatch)
    theirs, codec = pair(tmp_path, config, dtype)
    unit = codec.encoder.shrinks

    @FEW
    @given(
        latents=st.integers(1, 5),
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        height=st.integers(1, 3),
        width=st.integers(1, 2),
        hops=st.sampled_from([1, 1, 2]),
        batch=st.sampled_from([1, 2]),
    )
    def check(latents, sizes, height, width, hops, batch):
        x = video(1 + 4 * (latents - 1), height * unit, width * unit, dtype, batch=batch)
        z = delivered(codec.stream(batch=batch, hops=hops), x, sizes)
        wanted = encoded(theirs, x)
        assert_close(z, wanted, rel)
        y = delivered(codec.decode_stream(batch=batch, hops=hops), wanted, sizes)
        assert_close(y, decoded(theirs, wanted), rel)

    check()


def test_past_the_receptive_field_and_in_flat_memory(tmp_path, monkeypatch):
    repeated_exactly(monkeypatch)
    theirs, codec = pair(tmp_path, "in time at once", torch.float64)
    x = video(1 + 4 * 30, 4, 8, torch.float64)
    assert codec.spec.receptive_field < x.shape[2] and not codec.spec.limit
    z = encoded(theirs, x)
    stream, sizes, parts = codec.stream(), set(), []
    for part in x.split(5, dim=2):
        parts.append(stream.push(part))
        sizes.add(states.nbytes(stream.state))
    assert_close(torch.cat([*parts, stream.flush()], dim=2), z, 1e-10)
    assert len(sizes) == 1
    y = delivered(codec.decode_stream(), z, [1])
    assert_close(y, decoded(theirs, z), 1e-10)


@pytest.mark.parametrize("config", ["2.1", "2.2"])
def test_a_tail_is_completed_where_the_published_code_leaves_it_out(tmp_path, monkeypatch, config):
    repeated_exactly(monkeypatch)
    theirs, codec = pair(tmp_path, config, torch.float64)
    for frames in (6, 8):
        x = video(frames, 16, 16, torch.float64)
        published = encoded(theirs, x)
        assert published.shape[2] == 2
        z = codec.encode(x)
        assert_close(z[:, :, :2], published, 1e-10)
        assert_close(z, encoded(theirs, completed(x, 4)), 1e-10)


def test_first_latent_comes_with_the_first_frame(tmp_path):
    _, codec = pair(tmp_path, "2.1", torch.float32)
    x, stream = video(9, 8, 16, torch.float32), codec.stream()
    shapes = [tuple(stream.push(x[:, :, i : i + 1]).shape) for i in range(9)]
    once = [(1, 4, 0, 1, 2)] * 3 + [(1, 4, 1, 1, 2)]
    assert shapes == [(1, 4, 1, 1, 2), *once, *once]
    assert codec.decode_stream().push(torch.zeros(1, 4, 3, 1, 2)).shape == (1, 3, 9, 8, 16)
    assert codec.encode(x[:, :, :0]).shape == (1, 4, 0, 1, 2)


def test_normalised_latents_are_those_of_the_diffusion_models(tmp_path):
    _, codec = pair(tmp_path, "2.2", torch.float64)
    normalised = streamenc.load(tmp_path, dtype=torch.float64, normalised="yes")
    x = video(5, 16, 32, torch.float64)
    mean, std = (
        torch.tensor(SMALL[name], dtype=torch.float64).view(-1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    z = codec.encode(x)
    assert_close(normalised.encode(x), (z - mean) / std, 1e-12)
    assert_close(normalised.decode((z - mean) / std), codec.decode(z), 1e-9)


def test_bfloat16_is_near(tmp_path):
    _, codec = pair(tmp_path, "2.2", torch.float32)
    x = video(5, 16, 16, torch.float32)
    half = streamenc.load(tmp_path, dtype=torch.bfloat16)
    z = half.encode(x.bfloat16())
    assert z.dtype == torch.bfloat16
    assert_close(z.float(), codec.encode(x), 0.1)
    assert_close(half.decode(z).float(), codec.decode(z.float()), 0.1)


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    wan(**CONFIGS["2.2"]).save_pretrained(tmp_path)
    codec = streamenc.load(tmp_path)
    with pytest.raises(InputError, match=r"32x24 pixels \(WIDTHxHEIGHT\).* of 16: .*32x32"):
        codec.encode(video(1, 24, 32, torch.float32))
    with pytest.raises(InputError, match=r"wan wants latents \(batch, 4, time, height, width\)"):
        codec.decode(torch.zeros(1, 5, 1, 1, 1))
    with pytest.raises(InputError, match="codebooks"):
        codec.encode(video(1, 16, 16, torch.float32), codebooks=1)
    for options in ({"rate": 0}, {"normalised": "perhaps"}, {"mode": "window"}):
        with pytest.raises(UsageError):
            streamenc.load(tmp_path, **options)
            pytest.fail(f"{options} was taken")
    with pytest.raises(UsageError, match="only steps over sound"):
        streamenc.load(tmp_path, backend="onnx")
