"""EnCodec 48 kHz against the encodec package and transformers, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import streamenc
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.codec import Codec
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.models.encodec import encodec
from streamenc.models.signal import Scaled
from streamenc.stream import Stream
from tests.support.compare import assert_close, assert_codes_equal
from tests.support.encodec_references import (
    SMALL_SEGMENTS,
    encodec_model,
    save_folder,
    save_th,
    transformers_model,
)

pytestmark = pytest.mark.reference

# The small model's segment is 4,800 samples, 15 frames; the next one starts 4,320 later.
LENGTH, STRIDE, FRAMES = 4800, 4320, 15
# From no whole segment to three, with ends of each kind: a short segment before a single frame (1
# to 160 samples into the last stride), what the published decoders fail on (161 to 320 into it).
LENGTHS = [
    *(1, 100, 319, 320, 321, 4319, 4320, 4321, 4480, 4481, 4640, 4641, 4799, 4800, 4801),
    *(8640, 8641, 8700, 8800, 8801, 9000, 9119, 9120, 9121, 12_345, 13_000, 13_061, 13_300),
]


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers_model(**SMALL_SEGMENTS)


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_folder(reference, tmp_path_factory.mktemp("encodec48"))


@pytest.fixture(scope="module")
def codec(folder: str) -> Codec:
    return streamenc.load(folder)


@pytest.fixture(scope="module")
def exact(folder: str) -> Codec:
    return streamenc.load(folder, dtype=torch.float64)


def noise(samples: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Stereo noise whose volume rises and falls."""
    generator = torch.Generator().manual_seed(seed)
    swell = 0.3 + 0.25 * torch.sin(torch.arange(samples) / 900.0)
    return swell * torch.randn(batch, 2, samples, generator=generator)


def joined(parts: list[Scaled]) -> Scaled:
    return Scaled(*(torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True)))


def encoded(stream: Stream, x: Tensor, *, seed: int = 0) -> Scaled:
    """The stream's whole output for `x`, cut at random."""
    generator = torch.Generator().manual_seed(seed)
    cuts = sorted(torch.randint(x.shape[-1] + 1, (5,), generator=generator).tolist())
    return joined([*(stream.push(p) for p in x.tensor_split(cuts, dim=-1)), stream.flush()])


def decoded(stream: Stream, y: Scaled, *, seed: int = 0) -> Tensor:
    """The same for codes."""
    generator = torch.Generator().manual_seed(seed)
    cuts = sorted(torch.randint(y.codes.shape[-1] + 1, (5,), generator=generator).tolist())
    pieces = zip(*(t.tensor_split(cuts, dim=-1) for t in y), strict=True)
    return torch.cat([*(stream.push(Scaled(*p)) for p in pieces), stream.flush()], dim=-1)


def published(model: Any, x: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """(codes, scale) for each segment, and the latents of all, of either reference."""
    if hasattr(model, "segment_stride"):
        length, stride = model.segment_length, model.segment_stride
        encode = model._encode_frame
    else:
        length, stride = model.config.chunk_length, model.config.chunk_stride
        bandwidth = model.config.target_bandwidths[-1]

        def encode(segment: Tensor) -> Any:
            return model._encode_frame(segment, bandwidth)

    segments, latents = [], []
    with torch.no_grad():
        for start in range(0, x.shape[-1], stride):
            segment = x[..., start : start + length]
            codes, scale = encode(segment)
            segments.append((codes, scale))
            latents.append(model.encoder(segment / scale[..., None]))
    return segments, torch.cat(latents, dim=-1)


def as_scaled(segments: list[tuple[Tensor, Tensor]]) -> Scaled:
    return joined([Scaled(c, s[..., None].expand(-1, 1, c.shape[-1])) for c, s in segments])


def published_audio(model: Any, segments: list[tuple[Tensor, Tensor]]) -> Tensor:
    with torch.no_grad():
        if hasattr(model, "segment_stride"):
            audio: Tensor = model.decode(segments)
        else:
            frames = [model._decode_frame(*segment) for segment in segments]
            audio = model._linear_overlap_add(frames, model.config.chunk_stride)
    return audio


def published_decoder_fails(samples: int) -> bool:
    """Whether a whole segment reaches over the end of the last one."""
    rest = (samples - 1) % STRIDE + 1
    return samples > STRIDE and 160 < rest <= 320


class TestFullSize:
    def test_codes_and_audio(self, tmp_path: Path) -> None:
        """The published size in float32: a segment, its successor, and a short end."""
        reference = encodec_model(segments=True)
        ours = streamenc.load(save_th(reference, tmp_path / "encodec48.th"))
        assert (ours.spec.lead, ours.spec.hop, ours.spec.lead_out) == (48_000, 47_520, 150)
        assert ours.spec.equality == "segment" and ours.spec.scaled
        x = noise(48_000 + 12_345)
        segments, latents = published(reference, x)
        with torch.no_grad():
            assert torch.equal(
                torch.cat([c for c, _ in reference.encode(x)], dim=-1), as_scaled(segments).codes
            )
        theirs = as_scaled(segments)
        with torch.inference_mode():
            assert_close(ours.encoder(x)[:, :-1], latents, 1e-5)
        streamed = encoded(ours.stream(), x)
        assert_codes_equal(streamed.codes, theirs.codes, latents, [ours.encoder.quantizer])
        assert_close(streamed.scale, theirs.scale, 1e-6)
        audio = decoded(ours.decode_stream(), theirs)
        assert_close(audio, published_audio(reference, segments), 1e-5)


class TestEncoder:
    def test_every_kind_of_length(self, codec: Codec, reference: Any) -> None:
        for length in LENGTHS:
            x = noise(length, batch=2, seed=length)
            segments, latents = published(reference, x)
            theirs = as_scaled(segments)
            ours = encoded(codec.stream(batch=2), x, seed=length)
            assert_codes_equal(ours.codes, theirs.codes, latents, [codec.encoder.quantizer])
            assert_close(ours.scale, theirs.scale, 1e-6)

    def test_transformers_own_encode(self, codec: Codec, reference: Any) -> None:
        """It pads the codes of the last segment by zeros to stack them."""
        x = noise(2 * STRIDE + 2_000)
        with torch.no_grad():
            theirs = reference.encode(x, bandwidth=0.72)
        ours = codec.encode(x)
        pad = theirs.last_frame_pad_length
        codes = torch.cat(list(theirs.audio_codes), dim=-1)[..., :-pad]
        assert torch.equal(ours.codes, codes)
        audio = reference.decode(**theirs).audio_values
        assert_close(codec.decode(ours), audio, 1e-5)

    def test_first_step_and_hops(self, codec: Codec) -> None:
        stream = codec.stream()
        assert stream.push(noise(LENGTH - 1)).codes.shape == (1, 8, 0)
        assert stream.push(noise(1)).codes.shape == (1, 8, FRAMES)
        assert stream.push(noise(STRIDE)).codes.shape == (1, 8, FRAMES)
        # The overlap alone is a segment: two frames.
        rest = stream.flush()
        assert rest.codes.shape == (1, 8, 2) and rest.scale.shape == (1, 1, 2)

    def test_delivery_changes_no_bit(self, codec: Codec) -> None:
        x = noise(3 * LENGTH + 77)
        first = encoded(codec.stream(), x, seed=0)
        for seed in range(1, 5):
            other = encoded(codec.stream(), x, seed=seed)
            assert torch.equal(first.codes, other.codes) and torch.equal(first.scale, other.scale)

    def test_several_segments_in_a_step(self, codec: Codec) -> None:
        x = noise(3 * STRIDE + LENGTH + 5)
        one, three = encoded(codec.stream(), x), encoded(codec.stream(hops=3), x)
        assert torch.equal(one.codes, three.codes) and torch.equal(one.scale, three.scale)

    def test_silence_stays_finite(self, codec: Codec) -> None:
        y = codec.encode(torch.zeros(1, 2, LENGTH))
        assert torch.allclose(y.scale, torch.tensor(1e-8))
        assert float(codec.decode(y).abs().max()) < 1e-6

    def test_codebooks_change_between_segments(self, codec: Codec) -> None:
        x = noise(LENGTH + STRIDE)
        whole = codec.encode(x)
        stream = codec.stream(codebooks=2)
        first = stream.push(x[..., :LENGTH])
        stream.codebooks = None
        second = stream.push(x[..., LENGTH:])
        assert torch.equal(first.codes, whole.codes[:, :2, :FRAMES])
        assert torch.equal(second.codes, whole.codes[..., FRAMES : 2 * FRAMES])

    def test_snapshot_in_mid_stream(self, codec: Codec) -> None:
        x = noise(11_111)
        whole = encoded(codec.stream(), x)
        for cut in (17, LENGTH, 10_000):
            one, other = codec.stream(), codec.stream()
            before = one.push(x[..., :cut])
            other.restore(one.snapshot())
            y = joined([before, other.push(x[..., cut:]), other.flush()])
            assert torch.equal(y.codes, whole.codes) and torch.equal(y.scale, whole.scale)

    def test_mono_is_refused(self, codec: Codec) -> None:
        with pytest.raises(InputError, match="2 channels"):
            codec.stream().push(torch.zeros(1, 1, 100))


class TestDecoder:
    def test_every_kind_of_length(self, exact: Codec, reference: Any) -> None:
        for length in LENGTHS:
            segments, _ = published(reference, noise(length, batch=2, seed=length))
            codes = as_scaled(segments)
            audio = decoded(exact.decode_stream(batch=2), codes, seed=length)
            assert audio.shape[-1] >= length
            if published_decoder_fails(length):
                with pytest.raises(RuntimeError, match="size of tensor"):
                    published_audio(reference, segments)
            else:
                assert_close(audio, published_audio(reference.double(), segments), 1e-6)
                reference.float()

    def test_end_that_the_published_decoder_fails_on(self, exact: Codec, reference: Any) -> None:
        """Past the last frame, the segment before is heard alone."""
        segments, _ = published(reference, noise(LENGTH - 200))
        assert [c.shape[-1] for c, _ in segments] == [FRAMES, 1]
        audio = decoded(exact.decode_stream(), as_scaled(segments))
        alone = decoded(exact.decode_stream(), as_scaled(segments[:1]))
        assert audio.shape == alone.shape == (1, 2, LENGTH)
        assert_close(audio[..., :STRIDE], alone[..., :STRIDE], 1e-12)
        assert_close(audio[..., STRIDE + 320 :], alone[..., STRIDE + 320 :], 1e-12)

    def test_first_step_and_hops(self, codec: Codec) -> None:
        y = codec.encode(noise(LENGTH + STRIDE))
        stream = codec.decode_stream()
        pushed = [
            stream.push(Scaled(y.codes[..., i : i + 1], y.scale[..., i : i + 1])) for i in range(30)
        ]
        emitted = [piece.shape[-1] for piece in pushed]
        assert emitted == [0] * 14 + [STRIDE] + [0] * 14 + [STRIDE]
        assert stream.flush().shape == (1, 2, LENGTH - STRIDE)

    def test_short_ends_of_some_lanes(self, exact: Codec) -> None:
        """Lanes are told apart: what ends in one is no end in its neighbour."""
        ending, going_on = (exact.encode(noise(n)) for n in (STRIDE + 100, LENGTH))
        assert ending.codes.shape[-1] == FRAMES
        going_on = Scaled(*(t[..., :FRAMES] for t in going_on))
        decoder = exact.decoder
        alone = [decoder.step(decoder.before(y), None) for y in (ending, going_on)]
        both = Scaled(*(torch.cat(tensors) for tensors in zip(ending, going_on, strict=True)))
        audio, state = decoder.step(decoder.before(both), None)
        for lane, (solo, solo_state) in enumerate(alone):
            assert_close(audio[lane : lane + 1], solo, 1e-12)
            assert isinstance(state, tuple) and isinstance(solo_state, tuple)
            for ours, theirs in zip(state, solo_state, strict=True):
                assert_close(ours[lane : lane + 1], theirs, 1e-12)

    def test_snapshot_in_mid_stream(self, codec: Codec) -> None:
        y = codec.encode(noise(13_000))
        whole = decoded(codec.decode_stream(), y)
        for cut in (3, FRAMES, 31):
            one, other = codec.decode_stream(), codec.decode_stream()
            before = one.push(Scaled(y.codes[..., :cut], y.scale[..., :cut]))
            other.restore(one.snapshot())
            after = other.push(Scaled(y.codes[..., cut:], y.scale[..., cut:]))
            assert torch.equal(torch.cat([before, after, other.flush()], dim=-1), whole)

    def test_refuses_codes_without_scale(self, codec: Codec) -> None:
        y = codec.encode(noise(LENGTH))
        with pytest.raises(InputError, match="Scaled"):
            codec.decode_stream().push(y.codes)
        with pytest.raises(InputError, match="scale has shape"):
            codec.decode_stream().push(Scaled(y.codes, y.scale[..., :3]))
        with pytest.raises(InputError, match="another model"):
            codec.decode_stream().push(Scaled(y.codes + 64, y.scale))


class TestLoading:
    def test_encoder_alone_leaves_the_decoder_unread(self, folder: str) -> None:
        checkpoint = open_checkpoint(folder)
        encoder, decoder = encodec.load("x", checkpoint, "encoder")
        assert encoder is not None and decoder is None
        assert checkpoint.read and not [n for n in checkpoint.read if n.startswith("decoder")]

    def test_low_latency_is_refused(self, folder: str) -> None:
        for exact in (False, "false", "off"):
            with pytest.raises(UsageError, match="24 kHz"):
                streamenc.load(folder, exact=exact)
        with pytest.raises(UsageError, match="'exact' must be true or false; got 'perhaps'"):
            streamenc.load(folder, exact="perhaps")

    @pytest.mark.parametrize(
        "change", [{"overlap": 0.5}, {"overlap": None}, {"chunk_length_s": 0.99}]
    )
    def test_segments_that_cannot_be_streamed(
        self, change: dict[str, Any], folder: str, tmp_path: Path
    ) -> None:
        import json

        config = json.loads((Path(folder) / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        weights = (Path(folder) / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights)
        with pytest.raises(CheckpointError, match="cannot be used"):
            streamenc.load(str(tmp_path))
