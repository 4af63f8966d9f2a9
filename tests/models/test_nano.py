"""nano: its layout on disk, its look-ahead, and the weights that come with streamenc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.io.reading import read_file
from streamenc.models import nano
from tests.support import references, zoo

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "data" / "speech.flac"
WEIGHTS = Path(streamenc.__file__).parent / "weights" / "nano"
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    zoo.save_nano(folder)
    return folder


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """(1, 1, samples), 16 kHz: the clip of the examples."""
    import soxr

    info, frames = read_file(str(CLIP))
    samples = np.concatenate([frame.data for frame in frames], axis=1).mean(axis=0)
    samples = soxr.resample(samples, float(info.rate), 16_000)
    return torch.from_numpy(samples.astype(np.float32))[None, None]


@pytest.fixture(scope="module")
def bundled() -> Any:
    return streamenc.load()


def rewrite(folder: Path, target: Path, change: Any, **config: Any) -> Path:
    """A copy of the folder with other tensors or another config."""
    target.mkdir()
    described = json.loads((folder / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(described))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def test_what_is_saved_is_what_is_loaded_within_half_a_step(tmp_path: Path) -> None:
    config = nano.NanoConfig(hop=8, latent=8, codebooks=3, entries=32, decoder_width=10)
    quantizer = nano.ResidualVQ(3, 32, 8)
    encoder, decoder = nano.NanoEncoder(config, quantizer), nano.NanoDecoder(config, quantizer)
    for model in (encoder, decoder):
        references.randomise(model.chain)
    books = torch.randn(3, 32, 8)
    nano.save(tmp_path, config, encoder.chain, decoder.chain, books)
    loaded = streamenc.load(tmp_path)
    assert isinstance(loaded.encoder, nano.NanoEncoder)
    assert loaded.encoder.config == config
    pairs = [(books.flatten(0, 1), loaded.encoder.quantizer.codebooks.flatten(0, 1))]
    for mine, theirs in ((encoder, loaded.encoder), (decoder, loaded.decoder)):
        again = theirs.chain.state_dict()
        pairs += [(value, again[name]) for name, value in mine.chain.state_dict().items()]
    for value, read in pairs:
        if value.ndim == 1:
            assert torch.equal(value, read)
        else:
            value, read = value.flatten(1), read.flatten(1)
            step = value.abs().amax(dim=1, keepdim=True) / 127
            assert ((value - read).abs() <= 0.5001 * step).all()


def test_floating_weights_load_as_well(folder: Path, tmp_path: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".scale")]:
            scale, weight = tensors.pop(name), tensors[name.removesuffix(".scale")]
            wide = weight.view(len(scale), -1) * scale[:, None]
            tensors[name.removesuffix(".scale")] = wide.view(weight.shape)

    wide = streamenc.load(rewrite(folder, tmp_path / "wide", widen))
    x = zoo.signal(wide.encoder, 300)
    assert torch.equal(wide.encode(x), streamenc.load(folder).encode(x))


@pytest.mark.parametrize(("part", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_one_side_does_not_read_the_other(
    folder: Path, tmp_path: Path, part: Any, other: str
) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(other)]:
            del tensors[name]

    half = streamenc.load(f"nano:{rewrite(folder, tmp_path / 'half', halve)}", part=part)
    assert half.has_decoder == (part == "decoder")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("quantizer.codebooks.scale", torch.ones(5), "scale"),
        ("quantizer.codebooks.scale", torch.ones(6, 64), "scale"),
        ("quantizer.codebooks.scale", torch.full((384,), torch.nan), "not finite"),
        ("decoder.layers.0.weight", torch.ones(3, 3, 3), "wants"),
        ("encoder.layers.1.bias", torch.ones(3), "wants"),
    ],
)
def test_damaged_weights_are_named(
    folder: Path, tmp_path: Path, name: str, value: Tensor, message: str
) -> None:
    damaged = rewrite(folder, tmp_path / "x", lambda tensors: tensors.update({name: value}))
    with pytest.raises(CheckpointError, match=message):
        streamenc.load(damaged)


def test_a_config_that_asks_for_too_much(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="encoder_blocks is 1000; .* from 1 to 64"):
        streamenc.load(rewrite(folder, tmp_path / "x", lambda tensors: None, encoder_blocks=1000))


@pytest.mark.parametrize("hop", [0, -1, 8.0, True, "8", 1 << 30, None])
def test_a_config_that_makes_no_sense(folder: Path, tmp_path: Path, hop: object) -> None:
    with pytest.raises(CheckpointError, match="hop is"):
        streamenc.load(rewrite(folder, tmp_path / "x", lambda tensors: None, hop=hop))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(folder: Path, dtype: torch.dtype) -> None:
    half, full = streamenc.load(folder, dtype=dtype), streamenc.load(folder)
    x = zoo.signal(full.encoder, 320).float()
    near, exact = half.encoder(x.to(dtype)), full.encoder(x)
    assert near.dtype == dtype
    assert (near.float() - exact).norm() < 0.1 * exact.norm()
    codes = full.encode(x)
    sound, wanted = half.decode(codes), full.decode(codes)
    assert sound.dtype == dtype and torch.isfinite(sound).all()
    assert (sound.float() - wanted).norm() < 0.2 * wanted.norm()


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="exact"):
        streamenc.load("nano", exact=False)


def test_a_frame_sees_one_frame_ahead_and_no_more(folder: Path) -> None:
    model = streamenc.load(folder).encoder
    frame = model.spec.hop
    assert model.spec.lead == 2 * frame and model.spec.delay == frame
    x = zoo.signal(model, 12 * frame)
    latents = model(x)
    for t in range(10):
        for first, changes in ((frame * (t + 2) - 1, True), (frame * (t + 2), False)):
            other = x.clone()
            other[..., first:] += 0.5
            assert torch.equal(model(other)[..., t], latents[..., t]) != changes


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 31, 32, 33, 160])
def test_frames_are_whole_and_their_sound_as_long(folder: Path, samples: int) -> None:
    codec = streamenc.load(folder)
    codes = codec.encode(zoo.signal(codec.encoder, samples))
    assert codes.shape[-1] == -(-samples // 16)
    assert codec.decode(codes).shape[-1] == 16 * codes.shape[-1]


def test_what_synthesis_gives_is_what_analysis_took() -> None:
    """With all three windows over a sample, inverse and transform cancel out."""
    analysis, synthesis = nano.Analysis(8).double(), nano.Synthesis(8).double()
    x = 0.5 * torch.randn(1, 1, 160, dtype=torch.float64).clamp(-1.5, 1.5)
    real, imag, loudness = analysis(x).chunk(3, dim=1)
    magnitude = loudness.log() / nano.COMPRESSION
    y = synthesis(torch.cat((magnitude, real, imag), dim=1))
    assert y.shape == x.shape
    torch.testing.assert_close(y[..., 16:], x[..., 16:], rtol=0, atol=1e-4)


def test_the_output_is_bounded_whatever_the_codes(folder: Path) -> None:
    codec = streamenc.load(folder)
    codes = torch.randint(64, (3, 6, 50), generator=torch.Generator().manual_seed(0))
    loud = codec.decode(codes)
    assert torch.isfinite(loud).all() and loud.abs().max() <= 1


# --- the weights that come with streamenc ---


def test_the_bundled_weights_are_small_and_described() -> None:
    size = sum(path.stat().st_size for path in WEIGHTS.iterdir())
    assert size <= 6 * MIB
    card = (WEIGHTS / "README.md").read_text()
    for heading in ("Data", "Recipe", "Figures", "Limits"):
        assert f"\n## {heading}\n" in card
    trained = json.loads((WEIGHTS / "training.json").read_text())
    assert f"{trained['progress']['step']:,} steps" in card
    assert f"{sum(source['hours'] for source in trained['sources']):.1f} hours" in card
    assert streamenc.registry.published_spec("nano") == streamenc.load("nano").spec


def test_the_figures_are_those_that_were_measured() -> None:
    results = json.loads((ROOT / "bench" / "results" / "quality.json").read_text())["results"]
    page = ROOT / "docs" / "models" / "nano.md"
    for text in ((WEIGHTS / "README.md").read_text(), page.read_text()):
        lines = text.splitlines()
        for result in results:
            name = result["codec"]
            if result["codebooks"]:
                name += f", {result['codebooks']} codebooks"
            row = next(
                line for line in lines if line.startswith(f"| {name} | {result['kbps']:.1f}")
            )
            for measure in ("pesq", "visqol"):
                assert f"{result['measures'][measure]['mean']:.2f}" in row, row


def test_what_nano_promises(bundled: Any) -> None:
    spec = bundled.spec
    assert bundled.name == "nano" and bundled.sample_rate == 16_000
    assert spec.latency_seconds <= 0.040
    bits = np.log2(spec.codebook_size) * float(spec.output.rate)
    assert 2 * bits <= 1000 and 8 <= spec.output.channels and spec.output.channels * bits >= 8000


def test_nano_keeps_speech(bundled: Any, speech: Tensor) -> None:
    """Aligned to the sample, and closer to the original with each doubling of the bits."""
    errors = []
    for codebooks in (1, 2, 4, 8, 16):
        decoded = bundled.decode(bundled.encode(speech, codebooks=codebooks))
        decoded = decoded[..., : speech.shape[-1]]
        errors.append(float(log_spectral_distance(decoded, speech)))
    shifts = range(-160, 161)
    match = [float((decoded.roll(shift, -1) * speech).sum()) for shift in shifts]
    assert abs(shifts[int(np.argmax(match))]) <= 1
    assert errors == sorted(errors, reverse=True), errors


def log_spectral_distance(decoded: Tensor, original: Tensor) -> Tensor:
    """Mean distance of log magnitudes above -60 dB, in nepers."""
    a, b = (
        torch.stft(x[0, 0], 512, 256, window=torch.hann_window(512), return_complex=True).abs()
        for x in (decoded, original)
    )
    return (a.clamp(min=0.1).log() - b.clamp(min=0.1).log()).abs().mean()


def test_pieces_of_20_ms_sound_as_the_whole(bundled: Any, speech: Tensor) -> None:
    """No clicks: as good as equal, far below the last bit of 16."""
    codes = bundled.encode(speech)
    whole = bundled.decode(codes)
    stream = bundled.decode_stream()
    pieces = [stream.push(codes[..., t : t + 1]) for t in range(codes.shape[-1])]
    assert {piece.shape[-1] for piece in pieces} == {320}
    assert (torch.cat([*pieces, stream.flush()], dim=-1) - whole).abs().max() < 2**-17


@pytest.mark.parametrize("kind", ["silence", "noise", "square", "clicks"])
def test_nothing_blows_up(bundled: Any, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(48_000)
    x = {
        "silence": torch.zeros(48_000),
        "noise": 0.1 * torch.randn(48_000, generator=generator),
        "square": 0.99 * torch.sign(torch.sin(2 * torch.pi * 440 * t / 16_000)),
        "clicks": (t % 4000 == 7).float(),
    }[kind][None, None]
    for codebooks in (2, 12):
        y = bundled.decode(bundled.encode(x, codebooks=codebooks))
        assert torch.isfinite(y).all() and y.abs().max() <= 1
        assert rms(y) <= 2 * rms(x) + 1e-3


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_codes_of_the_future_are_refused(bundled: Any) -> None:
    with pytest.raises(InputError, match="entries 0..1023"):
        bundled.decode(torch.full((1, 16, 3), 1024))
