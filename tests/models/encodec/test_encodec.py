"""EnCodec 24 kHz against transformers and the encodec package, with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import streamenc
from streamenc.codec import Codec
from streamenc.errors import InputError
from streamenc.models.encodec.encodec import EncodecEncoder
from streamenc.stream import Stream
from tests.support.compare import assert_close, assert_codes_equal
from tests.support.encodec_references import (
    NARROW,
    SMALL,
    encodec_model,
    noise,
    random_codes,
    save_folder,
    save_th,
    transformers_model,
)

pytestmark = pytest.mark.reference

# Below and around the lead, around each ratio of the encoder, around the hop, and beyond.
LENGTHS = sorted({*range(1, 24), *range(24, 2600, 61), 319, 320, 321, 2239, 2240, 2241, 2560, 2561})


def in_pieces(stream: Stream, x: Tensor, *, seed: int = 0, cuts: Sequence[int] = ()) -> Tensor:
    """The stream's whole output for `x`, cut at `cuts`, else at random."""
    generator = torch.Generator().manual_seed(seed)
    if not cuts:
        cuts = sorted(torch.randint(x.shape[-1] + 1, (8,), generator=generator).tolist())
    pieces = [stream.push(piece) for piece in x.tensor_split(cuts, dim=-1)]
    pieces.append(stream.flush())
    return torch.cat([piece for piece in pieces if piece.shape[-1]], dim=-1)


class Latents(EncodecEncoder):
    """An encoder whose stream gives latents, in which closeness has a meaning."""

    def after(self, y: Tensor, codebooks: int | None = None) -> Tensor:
        return y


def latents_stream(codec: Codec, *, batch: int = 1) -> Stream:
    encoder = codec.encoder
    latents = Latents.__new__(Latents)
    latents.__dict__.update(encoder.__dict__)
    return Stream(latents, batch=batch)


class TestFullSize:
    """The published size, in float32, as users run it."""

    @pytest.mark.parametrize("layout", ["transformers", "encodec"])
    def test_codes_and_audio(self, layout: str, tmp_path: Path) -> None:
        reference: Any
        if layout == "transformers":
            reference = transformers_model()
            ours = streamenc.load(save_folder(reference, tmp_path))
        else:
            reference = encodec_model()
            ours = streamenc.load(save_th(reference, tmp_path / "encodec.th"))
        x = noise(12_123, batch=2)
        with torch.no_grad():
            latents = reference.encoder(x)
            if layout == "transformers":
                codes = reference.encode(x, bandwidth=24.0).audio_codes[0]
                audio = reference.decode(codes[None], [None])[0]
            else:
                (frame,) = reference.encode(x)
                codes, audio = frame[0], reference.decode([frame])
        assert 0.1 < float(latents.std()) < 10
        assert all(len(codes[:, level].unique()) > 20 for level in range(32))

        assert ours.encoder.spec.output.channels == 32
        assert_close(in_pieces(latents_stream(ours, batch=2), x), latents, 1e-5)
        streamed = in_pieces(ours.stream(batch=2), x)
        assert_codes_equal(streamed, codes, latents, [ours.encoder.quantizer])
        assert_close(in_pieces(ours.decode_stream(batch=2), codes), audio, 1e-5)


class TestEncoder:
    def test_every_length(self, tmp_path: Path) -> None:
        """Any length, also one below what reflection at the start needs; in float64."""
        reference = encodec_model(norm="none", **NARROW)
        ours = streamenc.load(save_th(reference, tmp_path / "a.th"), dtype=torch.float64)
        reference.double()
        x = noise(max(LENGTHS)).double()
        for length in LENGTHS:
            with torch.no_grad():
                theirs = reference.encoder(x[..., :length])
            assert theirs.shape[-1] == -(-length // 320)
            assert_close(
                in_pieces(latents_stream(ours), x[..., :length], seed=length), theirs, 1e-10
            )

    def test_every_length_against_transformers(self, codec: Codec) -> None:
        reference = transformers_model(**SMALL).double()
        x = noise(max(LENGTHS)).double()
        for length in LENGTHS[::4]:
            with torch.no_grad():
                theirs = reference.encoder(x[..., :length])
            # Folding the weight norm has rounded ours once.
            assert_close(in_pieces(latents_stream(codec), x[..., :length]), theirs, 1e-6)

    def test_nothing(self, codec: Codec) -> None:
        stream = codec.stream()
        assert stream.push(noise(0)).shape == stream.flush().shape == (1, 8, 0)

    @pytest.mark.parametrize("seed", range(6))
    def test_any_delivery(self, codec: Codec, seed: int) -> None:
        x = noise(9_000 + 77 * seed, batch=2, seed=seed).double()
        whole = codec.encoder(x)
        assert_close(in_pieces(latents_stream(codec, batch=2), x, seed=seed), whole, 1e-10)

    def test_sample_by_sample_around_the_lead(self, codec: Codec) -> None:
        x = noise(2_300)
        one, other = codec.stream(), codec.stream()
        pieces = [one.push(piece) for piece in x.split(1, dim=-1)]
        assert [p.shape[-1] for p in pieces if p.shape[-1]] == [7]
        assert pieces[2_239].shape[-1] == 7
        streamed = torch.cat([*pieces, one.flush()], dim=-1)
        assert torch.equal(streamed, in_pieces(other, x, cuts=[2_000]))

    def test_no_delay_after_the_lead(self, codec: Codec) -> None:
        spec = codec.spec
        assert (spec.lead, spec.hop, spec.lead_out, spec.hop_out, spec.delay) == (
            2240,
            320,
            7,
            1,
            1920,
        )
        stream = codec.stream()
        assert stream.push(noise(2_240)).shape[-1] == 7
        assert [stream.push(noise(320)).shape[-1] for _ in range(3)] == [1, 1, 1]

    def test_codebooks_change_in_mid_stream(self, codec: Codec) -> None:
        x = noise(6_400)
        whole = codec.encode(x)
        stream = codec.stream(codebooks=3)
        first = stream.push(x[..., :3_200])
        stream.codebooks = 8
        second = stream.push(x[..., 3_200:])
        assert torch.equal(first, whole[:, :3, :10])
        assert torch.equal(second, whole[:, :, 10:])
        with pytest.raises(InputError, match="1 to 8 codebooks"):
            stream.codebooks = 9

    def test_snapshot_in_mid_stream(self, codec: Codec) -> None:
        x = noise(7_000).double()
        for cut in (100, 2_240, 5_001):
            one, other = latents_stream(codec), latents_stream(codec)
            whole = in_pieces(latents_stream(codec), x, cuts=[cut])
            before = one.push(x[..., :cut])
            other.restore(one.snapshot())
            pieces = [before, other.push(x[..., cut:]), other.flush()]
            assert torch.equal(torch.cat([p for p in pieces if p.shape[-1]], dim=-1), whole)


class TestDecoder:
    def test_any_number_of_frames(self, tmp_path: Path) -> None:
        reference = encodec_model(norm="none", **NARROW)
        ours = streamenc.load(save_th(reference, tmp_path / "a.th"), dtype=torch.float64)
        reference.double()
        for frames in (*range(1, 12), 40):
            codes = random_codes(ours, frames, batch=2)
            with torch.no_grad():
                theirs = reference.decode([(codes, None)])
            streamed = in_pieces(ours.decode_stream(batch=2), codes, seed=frames)
            assert_close(streamed, theirs, 1e-10)

    def test_first_step_and_hops(self, codec: Codec) -> None:
        spec = codec.decoder.spec
        assert (spec.lead, spec.lead_out, spec.hop, spec.hop_out) == (7, 2240, 1, 320)
        stream = codec.decode_stream()
        codes = random_codes(codec, 9)
        assert [stream.push(c).shape[-1] for c in codes.split(1, dim=-1)] == [0] * 6 + [
            2240,
            320,
            320,
        ]

    def test_codebooks_change_in_mid_stream(self, codec: Codec) -> None:
        """Missing codebooks add nothing, as in the published decoder."""
        codes = random_codes(codec, 30)
        stream = codec.decode_stream()
        audio = torch.cat([stream.push(codes[:, :2, :10]), stream.push(codes[..., 10:])], dim=-1)
        books = codec.decoder.quantizer
        latents = torch.cat(
            [books.decode(codes[:, :2, :10]), books.decode(codes[..., 10:])], dim=-1
        )
        assert_close(audio, codec.decoder(latents), 1e-10)

    def test_snapshot_in_mid_stream(self, codec: Codec) -> None:
        codes = random_codes(codec, 20)
        one, other = codec.decode_stream(), codec.decode_stream()
        before = one.push(codes[..., :11])
        other.restore(one.snapshot())
        after = torch.cat([other.push(codes[..., 11:]), other.flush()], dim=-1)
        whole = in_pieces(codec.decode_stream(), codes, cuts=[11])
        assert torch.equal(torch.cat([before, after], dim=-1), whole)

    def test_refuses_foreign_codes(self, codec: Codec) -> None:
        stream = codec.decode_stream()
        with pytest.raises(InputError, match="another model"):
            stream.push(torch.full((1, 8, 4), 64))
        with pytest.raises(InputError, match="codebooks"):
            stream.push(torch.zeros(1, 9, 4, dtype=torch.int64))
        with pytest.raises(InputError, match="integers"):
            stream.push(torch.zeros(1, 8, 4))


class TestLowLatency:
    def test_is_the_network_with_zero_padding(self, tmp_path: Path) -> None:
        reference = transformers_model(**SMALL, pad_mode="constant")
        published = transformers_model(**SMALL)
        reference.load_state_dict(published.state_dict())
        ours = streamenc.load(save_folder(published, tmp_path), exact=False)
        assert ours.spec.equality == "window" and ours.spec.note
        for x in (noise(1), noise(320), noise(5_000, batch=2)):
            with torch.no_grad():
                theirs = reference.encoder(x)
                codes = random_codes(ours, 7, batch=x.shape[0])
                audio = reference.decode(codes[None], [None])[0]
            assert_close(in_pieces(latents_stream(ours, batch=x.shape[0]), x), theirs, 1e-5)
            assert_close(in_pieces(ours.decode_stream(batch=x.shape[0]), codes), audio, 1e-5)

    def test_a_frame_for_the_first_hop(self, folder: str) -> None:
        ours = streamenc.load(folder, exact="no")
        assert (ours.spec.lead, ours.spec.delay, ours.decoder.spec.lead) == (320, 0, 1)
        assert ours.stream().push(noise(320)).shape[-1] == 1

    def test_difference_to_the_published_model_fades(self, folder: str, codec: Codec) -> None:
        low = streamenc.load(folder, exact=False, dtype=torch.float64)
        x = noise(320 * 400).double()
        gap = (codec.encoder(x) - low.encoder(x)).abs().amax(dim=(0, 1))
        assert gap[:4].min() > 1e-2
        assert gap[-100:].max() < 1e-3 * gap[:4].max()


@pytest.mark.parametrize(
    "config",
    [
        {"upsampling_ratios": [5, 3], "target_bandwidths": [19.2, 76.8]},
        {"num_residual_layers": 3, "residual_kernel_size": 5},
        {"num_lstm_layers": 1, "compress": 4, "use_conv_shortcut": False},
        {"kernel_size": 5, "last_kernel_size": 3, "dilation_growth_rate": 3},
        {
            "num_filters": 6,
            "hidden_size": 24,
            "codebook_size": 128,
            "target_bandwidths": [4.2],
        },
        {"sampling_rate": 16_000},
    ],
    ids=lambda config: "-".join(config),
)
def test_config_is_honoured(config: dict[str, Any], tmp_path: Path) -> None:
    reference = transformers_model(**{**SMALL, **config})
    ours = streamenc.load(save_folder(reference, tmp_path))
    published = reference.config
    assert ours.sample_rate == published.sampling_rate
    assert ours.spec.output.channels == published.num_quantizers
    assert ours.spec.hop == published.hop_length
    x = noise(3_001)
    with torch.no_grad():
        latents = reference.encoder(x)
        bandwidth = published.target_bandwidths[-1]
        codes = reference.encode(x, bandwidth=bandwidth).audio_codes[0]
        audio = reference.decode(codes[None], [None])[0]
    assert_close(in_pieces(latents_stream(ours), x), latents, 1e-5)
    assert_codes_equal(in_pieces(ours.stream(), x), codes, latents, [ours.encoder.quantizer])
    assert_close(in_pieces(ours.decode_stream(), codes), audio, 1e-5)
