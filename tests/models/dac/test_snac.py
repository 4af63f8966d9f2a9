"""SNAC against the snac package, with random weights; its layouts of codes, noise, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import streamenc
from streamenc.codec import Codec
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.dac.snacnet import Noise, tree
from streamenc.stream import Stream
from streamenc.testing.subject import raw, run
from tests.support.compare import assert_close, assert_codes_equal
from tests.support.dac_references import ATTENTION, save_snac, snac

pytestmark = pytest.mark.reference

LENGTHS = (1, 23, 24, 25, 80, 333, 1_001)
KINDS: dict[str, dict[str, Any]] = {
    "24khz": {},
    "attention": ATTENTION,
    "four levels": {"vq_strides": [8, 4, 2, 1], "encoder_rates": [3, 2], "decoder_rates": [2, 3]},
    "plain": {"depthwise": False, "noise": False, "vq_strides": [2, 1]},
}


def noise(length: int, *, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return 0.3 * torch.randn(batch, 1, length, generator=generator).double()


def repeated(codes: list[Tensor]) -> Tensor:
    """As the rows of one tensor."""
    frames = codes[-1].shape[-1]
    return torch.stack([c.repeat_interleave(frames // c.shape[-1], dim=-1) for c in codes], dim=1)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published decoder draws zeros."""
    layers = pytest.importorskip("snac.layers")
    monkeypatch.setattr(layers.NoiseBlock, "forward", lambda self, x: x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("snac")
    save_snac(where)
    return str(where)


@pytest.fixture(scope="module")
def codec(folder: str) -> Codec:
    return streamenc.load(folder, dtype=torch.float64)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["frames", "groups"])
def test_every_length(tmp_path: Path, kind: str, layout: str) -> None:
    """As its preprocessing pads the waveform; past every window, in pieces."""
    save_snac(tmp_path, **KINDS[kind])
    published = snac(**KINDS[kind]).double()
    ours = streamenc.load(str(tmp_path), dtype=torch.float64, noise="zero", layout=layout)
    for length in LENGTHS:
        x = noise(length, batch=2)
        with torch.inference_mode():
            latents = published.encoder(published.preprocess(x))
            codes = published.encode(x)
            audio = published.decode(codes)
        found = run(raw(ours.encoder), x, [70, 400], batch=2)
        if layout == "frames":
            expected = repeated(codes)
            assert_close(found, latents, 1e-10)
        else:
            strides = published.vq_strides
            rows = [
                codes[level][:, index :: strides[0] // strides[level]]
                for level, index in tree(strides)
            ]
            expected = torch.stack(rows, dim=1)
        assert torch.equal(run(ours.encoder, x, [110], batch=2), expected)
        assert_close(run(ours.decoder, expected, [5, 40], batch=2), audio, 1e-10)


def test_the_order_of_a_group() -> None:
    assert tree([4, 2, 1]) == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3)]
    assert len(tree([8, 4, 2, 1])) == 15


@pytest.mark.usefixtures("quiet")
def test_weight_normalisation_is_folded_in(tmp_path: Path) -> None:
    save_snac(tmp_path, plain=False, **ATTENTION)
    published = snac(plain=False, **ATTENTION)
    ours = streamenc.load(str(tmp_path), noise="zero")
    x = noise(600).float()
    with torch.inference_mode():
        latents = published.encoder(published.preprocess(x))
        codes = published.encode(x)
        audio = published.decode(codes)
    assert_close(run(raw(ours.encoder), x, [50]), latents, 1e-5)
    found = run(ours.encoder, x, [50])
    assert_codes_equal(found, repeated(codes), latents, [ours.encoder.quantizer])
    assert_close(run(ours.decoder, repeated(codes), [5]), audio, 1e-4)


class TestNoise:
    def test_is_what_the_published_decoder_would_draw(
        self, codec: Codec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Layer by layer, the same numbers at the same positions."""
        drawn = iter([m for m in codec.decoder.modules() if isinstance(m, Noise)])

        def forward(block: Any, x: Tensor) -> Tensor:
            return x + next(drawn).normal(torch.arange(x.shape[-1])) * block.linear(x)

        layers = pytest.importorskip("snac.layers")
        monkeypatch.setattr(layers.NoiseBlock, "forward", forward)
        codes = [torch.arange(n).remainder(64)[None] for n in (9, 18, 36)]
        published = snac().double()
        with torch.inference_mode():
            audio = published.decode(codes)
        assert_close(run(codec.decoder, repeated(codes), [5]), audio, 1e-10)

    def test_is_normally_distributed_and_of_the_seed(self, codec: Codec, folder: str) -> None:
        first, second = (m for m in codec.decoder.modules() if isinstance(m, Noise))
        x = first.normal(torch.arange(100_000))
        assert abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1) < 0.01
        assert abs(float((x**4).mean()) - 3) < 0.1
        for other in (x.roll(1), x.roll(7), second.normal(torch.arange(100_000))):
            assert abs(float((x * other).mean())) < 0.015
        another = streamenc.load(folder, seed=1, dtype=torch.float64)
        codes = torch.arange(60).view(1, 3, 20)
        assert not torch.equal(another.decode(codes), codec.decode(codes))
        assert another.decoder.fingerprint() != codec.decoder.fingerprint()

    def test_goes_on_for_hours(self, codec: Codec) -> None:
        noise = next(m for m in codec.decoder.modules() if isinstance(m, Noise))
        x = torch.ones(1, noise.linear.weight.shape[0], 2 * noise.rate).double()
        frames = torch.tensor([1 << 40])
        y, state = noise.step(x, frames)
        assert int(state) == (1 << 40) + 2 and torch.isfinite(y).all()


def test_fewer_rows_and_changes_in_mid_stream(codec: Codec) -> None:
    """Levels that are missing add nothing, their biases neither."""
    codes = codec.encode(noise(600))
    assert torch.equal(codec.encode(noise(600), codebooks=2), codes[:, :2])
    books, frames = codec.decoder.quantizer, codes.shape[-1]
    stream = Stream(raw(codec.decoder))
    pieces = [stream.push(codes[:, :1, :20]), stream.push(codes[..., 20:]), stream.flush()]
    latents = torch.zeros(1, 16, frames).double()
    for level in range(3):
        heard = slice(20 if level else 0, frames)
        latents[0, :, heard] += books.entries(codes[0, level, heard], level).t()
    expected = codec.decoder.chain(latents)
    assert_close(torch.cat(pieces, dim=-1), expected, 1e-10)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_needs_no_other(folder: str, tmp_path: Path, side: str, codec: Codec) -> None:
    other = {"encoder": "decoder", "decoder": "encoder"}[side]
    tensors = torch.load(Path(folder) / "pytorch_model.bin")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(other)}
    torch.save(kept, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    alone = streamenc.load(str(tmp_path), part=side, dtype=torch.float64)
    codes = codec.encode(noise(300))
    if side == "encoder":
        assert torch.equal(alone.encode(noise(300)), codes)
    else:
        assert torch.equal(alone.decode(codes), codec.decode(codes))
    with pytest.raises(CheckpointError, match=f"{other}.* missing"):
        streamenc.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.block.1.block.4.bias"), "is missing"),
        (lambda t: t.update({"decoder.model.9.bias": torch.ones(3)}), "belongs to no layer"),
        (lambda t: t.update({"decoder.model.1.bias": torch.ones(9)}), r"wants \(16,\)"),
        (lambda t: t.pop("quantizer.quantizers.0.codebook.weight"), "of no known family"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: str, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = torch.load(Path(folder) / "pytorch_model.bin")
    change(tensors)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    with pytest.raises(CheckpointError, match=message):
        streamenc.load(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate is 0"),
        ({"vq_strides": [4, 3, 1]}, "each a multiple of the next"),
        ({"vq_strides": [4, 2]}, "the last 1"),
        ({"vq_strides": [128, 1]}, "the first up to 64"),
        ({"vq_strides": []}, "1 to 16 numbers"),
        ({"vq_strides": [2, 2, 1, 1]}, "is missing"),
        ({"latent_dim": 20}, "latent_dim is 20; wanted 16"),
        ({"noise": 1}, "noise is 1"),
        ({"noise": False}, "is missing"),
        ({"attn_window_size": 0}, "attn_window_size is 0"),
        ({"attn_window_size": 8}, "no attention in heads of 64"),
        ({"encoder_dim": "4"}, "encoder_dim is '4'"),
        ({"decoder_dim": None}, "decoder_width is None"),
        ({"codebook_dim": 17}, "codebook_dim is 17"),
    ],
)
def test_configs_that_make_no_model_are_refused(
    folder: str, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (tmp_path / "pytorch_model.bin").symlink_to(Path(folder) / "pytorch_model.bin")
    whole = json.loads((Path(folder) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(whole | config))
    with pytest.raises(CheckpointError, match=message):
        streamenc.load(str(tmp_path))


def test_options_and_a_missing_config_are_told(folder: str, tmp_path: Path) -> None:
    for option in ({"layout": "rows"}, {"noise": "random"}, {"seed": -1}, {"seed": 0.5}):
        with pytest.raises(UsageError, match=next(iter(option))):
            streamenc.load(folder, **option)
    (tmp_path / "pytorch_model.bin").symlink_to(Path(folder) / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"wanted SNAC's config\.json too"):
        streamenc.load(str(tmp_path))
