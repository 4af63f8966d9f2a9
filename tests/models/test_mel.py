"""The mel encoder against torch.stft and the published filterbanks and feature extractor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import streamenc.models.mel as mel
from streamenc.codec import Codec
from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.models.families import LISTED
from streamenc.models.mel import PRESETS, MelEncoder, MelOptions, filterbank
from streamenc.registry import load as load_by_name

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "generic": ("", {}),
    "generic, not centred": ("", {"centred": False}),
    "whisper": ("whisper", {}),
    "whisper-128": ("whisper-128", {}),
    "linear": ("", {"bands": 0, "power": 1, "log": "none"}),
    "odd": ("", {"n_fft": 255, "win_length": 201, "hop": 67, "bands": 20, "scale": "slaney"}),
    "whisper, long hop": ("whisper", {"hop": 400}),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


@cache
def codec(variant: str, dtype: torch.dtype = torch.float64) -> Codec:
    preset, options = VARIANTS[variant]
    return load_by_name(f"mel:{preset}", dtype=dtype, **options)


def encoder(variant: str, dtype: torch.dtype = torch.float64) -> MelEncoder:
    model = codec(variant, dtype).encoder
    assert isinstance(model, MelEncoder)
    return model


def sound(samples: int, *, batch: int = 1, rate: int = 16_000, seed: int = 0) -> Tensor:
    """Rising chirps in bursts, and a little noise: (batch, 1, samples) float64."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(samples, dtype=torch.float64) / rate
    lanes = []
    for lane in range(batch):
        chirp = sum(
            torch.sin(2 * torch.pi * f * (t + 1.7 * t**2)) / f for f in (90, 210 + lane, 700)
        )
        bursts = torch.sin(2 * torch.pi * (1.3 + lane) * t).clamp_min(0)
        noise = torch.randn(samples, dtype=torch.float64, generator=generator)
        lanes.append(40 * chirp * bursts + 1e-3 * noise)
    return torch.stack(lanes)[:, None]


def streamed(codec: Codec, x: Tensor, cuts: list[int], **options: Any) -> Tensor:
    stream = codec.stream(batch=len(x), **options)
    pieces = [stream.push(piece) for piece in torch.tensor_split(x, sorted(cuts), dim=-1)]
    return torch.cat([*pieces, stream.flush()], dim=-1)  # type: ignore[arg-type]


def reference(x: Tensor, o: MelOptions) -> Tensor:
    """The spectrogram straight from torch.stft, before any logarithm."""
    win_length = o.win_length or o.n_fft
    spectrum = torch.stft(
        x[:, 0],
        o.n_fft,
        o.hop,
        win_length,
        mel.WINDOWS[o.window](win_length).to(x.dtype),
        center=o.centred,
        pad_mode="reflect",
        return_complex=True,
    )
    y = spectrum.abs() ** o.power
    y = filterbank(o).to(y.dtype) @ y if o.bands else y
    return y[..., :-1] if o.drop_last else y


@variants
@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    hops=st.integers(1, 4),
)
def test_any_delivery_equals_offline(
    variant: str, samples: int, cuts: list[int], hops: int
) -> None:
    x = sound(samples)
    y = streamed(codec(variant), x, [min(cut, samples) for cut in cuts], hops=hops)
    if not samples:
        assert y.shape[-1] == 0
        return
    torch.testing.assert_close(y, encoder(variant)(x), rtol=0, atol=1e-10)


@variants
def test_delivery_changes_no_bit(variant: str) -> None:
    x = sound(5000, batch=2).float()
    whole = streamed(codec(variant, torch.float32), x, [])
    single = streamed(codec(variant, torch.float32), x, list(range(1, 5000)))
    ragged = streamed(codec(variant, torch.float32), x, [7, 300, 301, 900, 4000, 4000])
    assert torch.equal(whole, single)
    assert torch.equal(whole, ragged)


@pytest.mark.parametrize(
    "variant", ["generic", "generic, not centred", "linear", "odd", "whisper", "whisper, long hop"]
)
def test_equals_torch_stft_at_every_residue(variant: str) -> None:
    model = encoder(variant)
    o = model.options
    least = max(2 * o.n_fft, model.spec.lead)
    for samples in range(least, least + o.hop + 1, 1 if o.hop < 100 else 13):
        x = sound(samples, batch=2)
        wanted = reference(x, o)
        if o.log == "ln":
            wanted = wanted.clamp_min(o.floor).log()
        elif o.log == "whisper":
            wanted = (wanted.clamp_min(o.floor).log10().clamp_min(1.5 - 8) + 4) / 4
        y = streamed(codec(variant), x, [samples // 3])
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-10)


@variants
def test_float32_lies_within_its_rounding(variant: str) -> None:
    x = sound(6000)
    exact, single = encoder(variant)(x), encoder(variant, torch.float32)(x.float())
    assert single.dtype == torch.float32
    if encoder(variant).options.log == "none":
        assert (single - exact).norm() <= 1e-5 * exact.norm()
    else:
        # A bin near silence between loud ones carries the rounding of the loud ones.
        decade = {"ln": np.log(10), "whisper": 0.25}[encoder(variant).options.log]
        loud = exact > exact.amax() - 3.5 * decade
        torch.testing.assert_close(single[loud].double(), exact[loud], rtol=1e-5, atol=1e-5)
    streams = streamed(codec(variant, torch.float32), x.float(), [100, 5000])
    offline = encoder(variant, torch.float32)(x.float())
    if encoder(variant).options.log == "none":
        assert (streams - offline).norm() <= 1e-5 * offline.norm()
    else:
        torch.testing.assert_close(streams, offline, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 199, 200, 201, 359, 360, 361])
@pytest.mark.parametrize(("preset", "drop"), [("whisper", True), ("", False)])
def test_number_of_frames(preset: str, drop: bool, samples: int) -> None:
    model, _ = mel.load(preset, None, "encoder")
    hop = model.options.hop
    wanted = samples // hop + (not drop)
    assert model(sound(samples)).shape == (1, 80, wanted)
    assert Codec("mel", model, None).encode(sound(samples)).shape == (1, 80, wanted)


def test_nothing_in_nothing_out() -> None:
    stream = codec("generic").stream()
    assert stream.flush().shape == (1, 80, 0)
    assert codec("generic").encode(torch.zeros(1, 1, 0)).shape == (1, 80, 0)


@variants
def test_first_frames_come_with_the_lead(variant: str) -> None:
    model = encoder(variant)
    x = sound(model.spec.lead + 3 * model.spec.hop)
    stream = codec(variant).stream()
    lead = model.spec.lead
    assert stream.push(x[..., : lead - 1]).shape[-1] == 0
    assert stream.push(x[..., lead - 1 : lead]).shape[-1] == model.spec.lead_out
    for hop in range(3):
        at = lead + hop * model.spec.hop
        assert stream.push(x[..., at : at + model.spec.hop]).shape[-1] == 1
    assert stream.emitted == model.spec.lead_out + 3


@variants
def test_snapshot_goes_on_elsewhere(variant: str) -> None:
    x = sound(4001, batch=2)
    stream = codec(variant).stream(batch=2)
    pieces = [stream.push(x[..., :1777])]
    other = codec(variant).stream(batch=2)
    other.push(sound(900, batch=2, seed=5))
    other.restore(stream.snapshot())
    pieces += [other.push(x[..., 1777:]), other.flush()]
    assert torch.equal(torch.cat(pieces, dim=-1), streamed(codec(variant), x, []))


def test_snapshot_of_other_options_is_refused() -> None:
    """Power and logarithm are in no buffer, but they are in the fingerprint."""
    stream = codec("generic").stream()
    stream.push(sound(1000))
    other = load_by_name("mel", dtype=torch.float64, log="log10").stream()
    with pytest.raises(SnapshotError, match="model"):
        other.restore(stream.snapshot())


def test_the_callers_buffer_may_be_reused() -> None:
    """An audio callback hands out the same memory again and again."""
    x = sound(2000).numpy()[0, 0]
    stream = codec("generic").stream()
    buffer = np.empty(50)
    pieces = []
    for at in range(0, 2000, 50):
        buffer[:] = x[at : at + 50]
        pieces.append(stream.push(buffer))
        buffer[:] = 0
    pieces.append(stream.flush())
    wanted = encoder("generic")(sound(2000))
    torch.testing.assert_close(torch.cat(pieces, dim=-1), wanted, rtol=0, atol=1e-10)


def test_steps_of_several_lanes_leave_idle_ones_alone() -> None:
    from streamenc import state as states

    model = encoder("generic")
    x = sound(model.spec.lead + model.spec.hop, batch=2)
    _, pool = model.step(x[..., : model.spec.lead], None)
    before = states.clone(pool)
    _, after = model.step(x[..., model.spec.lead :], pool)
    states.commit(pool, after, torch.tensor([True, False]))
    assert isinstance(pool, Tensor) and isinstance(before, Tensor) and isinstance(after, Tensor)
    assert torch.equal(pool[1], before[1])
    assert torch.equal(pool[0], after[0])


# Against what others publish


@pytest.mark.reference
@pytest.mark.parametrize("norm", [None, "slaney"])
@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize(
    ("rate", "n_fft", "bands", "fmin", "fmax"),
    [
        (24_000, 1024, 80, 0, None),
        (16_000, 400, 40, 0, 8000),
        (16_000, 400, 80, 20, 7600),
        (48_000, 2048, 128, 0, None),
        (8_000, 256, 23, 300, 3400),
    ],
)
def test_filterbanks(
    rate: int, n_fft: int, bands: int, fmin: float, fmax: float | None, scale: str, norm: str | None
) -> None:
    from transformers.audio_utils import mel_filter_bank

    wanted = mel_filter_bank(
        n_fft // 2 + 1, bands, fmin, fmax or rate / 2, rate, norm=norm, mel_scale=scale
    )
    options = MelOptions(
        rate=rate, n_fft=n_fft, bands=bands, fmin=fmin, fmax=fmax, scale=scale, norm=norm
    )
    np.testing.assert_allclose(filterbank(options).numpy(), wanted.T, rtol=0, atol=1e-12)


@pytest.mark.reference
@pytest.mark.parametrize("bands", [80, 128])
def test_whispers_filterbank(bands: int) -> None:
    from transformers import WhisperFeatureExtractor

    wanted = WhisperFeatureExtractor(feature_size=bands).mel_filters
    name = "whisper" if bands == 80 else "whisper-128"
    np.testing.assert_allclose(filterbank(PRESETS[name]).numpy(), wanted.T, rtol=0, atol=1e-12)


def whisper_reference(x: Tensor, bands: int) -> Tensor:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=bands)
    features = extractor(
        x[0, 0].numpy(), sampling_rate=16_000, padding="do_not_pad", return_tensors="np"
    )
    return torch.from_numpy(np.asarray(features["input_features"]))


@pytest.mark.reference
@pytest.mark.parametrize("samples", [16_000, 16_001, 40_159, 480_000])
@pytest.mark.parametrize("bands", [80, 128])
def test_whisper_with_the_clips_own_maximum(bands: int, samples: int) -> None:
    x = sound(samples).float()
    wanted = whisper_reference(x, bands)
    # The loudest bin is above any floor, so it can be read back from the result.
    log_max = float(wanted.max()) * 4 - 4
    name = "mel:whisper" if bands == 80 else "mel:whisper-128"
    y = streamed(load_by_name(name, log_max=log_max), x, [4000, 9001])
    assert y.shape == wanted.shape
    assert (wanted == wanted.min()).float().mean() > 0.01, "no bin lies on the floor"
    assert (y - wanted).norm() <= 1e-5 * wanted.norm()
    # Near the floor, 80 dB down, both carry the rounding of the loud bins.
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-3)
    loud = wanted > wanted.max() - 1
    torch.testing.assert_close(y[loud], wanted[loud], rtol=0, atol=1e-5)


@pytest.mark.reference
@pytest.mark.parametrize("gain", [0.01, 1.0, 60.0])
def test_whisper_above_both_floors(gain: float) -> None:
    x = (gain * sound(48_000)).float()
    wanted = whisper_reference(x, 80)
    y = streamed(load_by_name("mel:whisper"), x, [4000])
    ours, theirs = (1.5 - 8 + 4) / 4, float(wanted.max()) - 2
    above = (y > ours + 1e-3) & (wanted > theirs + 1e-3)
    assert above.float().mean() > 0.05
    torch.testing.assert_close(y[above], wanted[above], rtol=0, atol=1e-3)
    assert (y - wanted)[above].norm() <= 1e-5 * wanted[above].norm()
    # Elsewhere both stand on a floor: the difference is no larger than that of the floors.
    assert float((y - wanted).abs().max()) <= abs(ours - theirs) + 1e-3


# Options and refusals


def test_options_as_strings() -> None:
    model, decoder = mel.load(
        "whisper",
        None,
        "both",
        rate="16e3",
        bands="none",
        power="1",
        log="LN",
        centred="no",
        drop_last="false",
        window="hamming",
        floor="1e-5",
        win_length="none",
    )
    assert decoder is None
    wanted = MelOptions(
        rate=16_000,
        n_fft=400,
        win_length=None,
        hop=160,
        bands=0,
        scale="slaney",
        norm="slaney",
        power=1,
        log="ln",
        centred=False,
        window="hamming",
        floor=1e-5,
    )
    assert model.options == wanted
    assert model.spec.output.channels == 201
    assert model.spec.lead == 400 and model.spec.delay == 240


def test_a_new_n_fft_has_its_own_window() -> None:
    assert len(mel.load("", None, "encoder", n_fft=2048)[0].stft.window) == 2048
    assert len(mel.load("", None, "encoder", n_fft=2048, win_length=960)[0].stft.window) == 960


@pytest.mark.parametrize("window", mel.WINDOWS)
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("log", ["none", "ln", "log10"])
def test_windows_powers_and_logarithms(window: str, power: int, log: str) -> None:
    model, _ = mel.load("", None, "encoder", window=window, power=power, log=log)
    x = sound(3000)
    wanted = reference(x, model.options)
    if log != "none":
        wanted = wanted.clamp_min(1e-10).log() / (1 if log == "ln" else np.log(10))
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 601}, "hop 601"),
        ({"hop": 0}, "'hop' must be a whole number from 1"),
        ({"hop": "ten"}, "whole number"),
        ({"hop": 2.5}, "whole number"),
        ({"hop": True}, "whole number"),
        ({"n_fft": 1}, "'n_fft' must be a whole number from 2"),
        ({"n_fft": 1 << 40}, "n_fft"),
        ({"win_length": 2000}, "win_length 2000"),
        ({"rate": -1}, "'rate' must be a whole number from 1"),
        ({"bands": -3}, "bands"),
        ({"power": 3}, "from 1 to 2"),
        ({"scale": "bark"}, "htk, slaney"),
        ({"norm": "area"}, "none, slaney"),
        ({"window": "kaiser"}, "hann"),
        ({"log": "db"}, "ln"),
        ({"fmin": 5000, "fmax": 4000}, "fmin"),
        ({"fmax": 12_001}, "half the rate"),
        ({"fmax": "nan"}, "'fmax' must be a number from 0"),
        ({"floor": 0}, "floor"),
        ({"centred": "maybe"}, "true or false"),
        ({"log_max": 1.5}, "log_max"),
        ({"bands": 0, "norm": "slaney"}, "no effect"),
        ({"hops": 1}, "no option hops"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_by_name("mel", **options)


def test_refuses_an_unknown_preset() -> None:
    with pytest.raises(UsageError, match="mel:whisper"):
        load_by_name("mel:wisper")


def test_has_no_decoder() -> None:
    with pytest.raises(UsageError, match="no decoder"):
        load_by_name("mel", part="decoder")
    with pytest.raises(UsageError, match="no decoder"):
        _ = codec("generic").decoder
    assert not codec("generic").has_decoder


def test_refuses_stereo() -> None:
    with pytest.raises(InputError, match="1 channel"):
        codec("generic").stream().push(torch.zeros(1, 2, 100))


def test_a_band_without_a_bin_is_noted() -> None:
    assert encoder("generic").spec.note == ""
    model, _ = mel.load("", None, "encoder", n_fft=512, win_length=512, bands=256)
    empty = int((filterbank(model.options).sum(dim=1) == 0).sum())
    assert empty and f"{empty} of 256" in model.spec.note


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    half, full = (load_by_name("mel", dtype=d) for d in (dtype, torch.float32))
    x = sound(3000).float()
    y = half.encode(x)
    assert isinstance(y, Tensor) and y.dtype == torch.float32
    assert torch.equal(y, full.encode(x))


def test_every_preset_is_listed() -> None:
    listed = {name.partition(":")[2] for name in LISTED if name.partition(":")[0] == "mel"}
    assert listed == PRESETS.keys()
