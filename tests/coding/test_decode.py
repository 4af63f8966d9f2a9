"""Decode: as much sound as was encoded, at its time, whatever got lost on the way."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch

from streamenc import registry
from streamenc.codec import Codec
from streamenc.coding.decode import Decode
from streamenc.coding.encode import Encode
from streamenc.engine.engine import Engine
from streamenc.errors import FitError, InputError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.recording import RecordingSink
from streamenc.io.reading import read_file
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.resample import Resample
from streamenc.pipeline.builder import listed_decoder
from tests.support import zoo
from tests.support.drive import audio_info, flagged, joined, noise, opened, pushed, sound, through


def encoded(
    codec: Codec, engine: Engine, data: np.ndarray[Any, Any], rate: int, *, hops: int = 1
) -> tuple[StreamInfo, list[Frame]]:
    """Codes of (channels, samples), resampled where that is needed."""
    spec = codec.spec
    nodes = [
        Resample(int(spec.input.rate), spec.input.channels),
        Chunker(spec.lead, spec.hop * hops),
        Encode(codec, engine, hops=hops),
    ]
    return through(audio_info(rate, data.shape[0]), sound(data, 441), *nodes)


def there_and_back(codec: Codec, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return codec.decode(codec.encode(data))[0].numpy()


def contiguous(frames: list[Frame]) -> bool:
    return all(a.pts + a.duration == b.pts for a, b in zip(frames, frames[1:], strict=False))


@pytest.mark.parametrize("samples", [1, 7, 24, 56, 57, 480, 1000, 1009])
@pytest.mark.parametrize("name", ["mimi", "encodec"])
def test_as_long_as_what_was_encoded(name: str, samples: int, engine: Engine) -> None:
    codec = zoo.codec(name)
    data = noise(samples)
    info, codes = encoded(codec, engine, data, 24_000, hops=3)
    info, frames = through(info, codes, Decode(codec, engine))
    assert str(info) == f"audio of {codec.public_name} 1x? float32 at 24000/s"
    np.testing.assert_allclose(
        joined(frames), there_and_back(codec, data)[:, :samples], rtol=1e-5, atol=1e-6
    )
    assert joined(frames).shape[1] == samples == sum(frame.duration for frame in frames)
    assert [frame.pts for frame in frames][0] == 0 and contiguous(frames)


@pytest.mark.parametrize("name", ["mimi", "encodec"])
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_no_sample_is_lost_in_a_coarse_time_base(name: str, rate: int, engine: Engine) -> None:
    """A tick of 1/8000 s is three samples of the codec, so the ends of its frames are rounded."""
    codec = zoo.codec(name)
    data = noise(rate // 12 + 3)
    resampled = joined(through(audio_info(rate), sound(data, 441), Resample(24_000))[1])
    info, codes = encoded(codec, engine, data, rate)
    _, frames = through(info, codes, Decode(codec, engine))
    want = there_and_back(codec, resampled)[:, : resampled.shape[1]]
    np.testing.assert_allclose(joined(frames), want, rtol=1e-5, atol=1e-6)
    assert contiguous(frames)


# 1,440 samples a segment, 1,425 from one to the next, 8 a frame.
@pytest.mark.parametrize("beyond", [0, 1, 7, 8, 9, 15, 16, 725, 1424])
def test_segments_with_their_scales_through_a_recording(
    beyond: int, engine: Engine, tmp_path: Path
) -> None:
    codec = zoo.codec("encodec-48k", torch.float32)
    data = noise(3 * 1425 + beyond, 2) * np.linspace(0.01, 1, 3 * 1425 + beyond, dtype="float32")
    info, codes = encoded(codec, engine, data, 48_000, hops=2)
    sink = RecordingSink(str(tmp_path / "codes.arrows"))
    sink.open_blocking(info)
    for frame in codes:
        sink.write_blocking(frame)
    sink.close_blocking()
    read, frames = read_file(str(tmp_path / "codes.arrows"))
    assert read == info and [f.scale for f in frames] == [f.scale for f in codes]
    _, back = through(read, frames, Decode(codec, engine))
    want = there_and_back(codec, data)[:, : data.shape[1]]
    np.testing.assert_allclose(joined(back), want, rtol=1e-4, atol=1e-5)
    assert sum(frame.duration for frame in back) == data.shape[1] and contiguous(back)


@pytest.mark.parametrize("name", ["mimi", "encodec"])
def test_lost_packets_restart_at_the_right_time(name: str, engine: Engine) -> None:
    codec = zoo.codec(name)
    info, codes = encoded(codec, engine, noise(1200), 24_000)
    before, after = codes[:12], flagged(codes[17:])
    decode = Decode(codec, engine)
    _, frames = through(info, before + after, decode)
    assert decode.restarts == 1
    (flag,) = [index for index, frame in enumerate(frames) if frame.discontinuity]
    assert frames[flag].pts == codes[17].pts
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert sum(frame.duration for frame in frames[:flag]) == codes[12].pts
    assert frames[-1].pts + frames[-1].duration == 1200
    for part, alone in ((frames[:flag], before), (frames[flag:], after)):
        _, want = through(info, alone, Decode(codec, engine))
        np.testing.assert_array_equal(joined(part), joined(want))
        assert joined(part).shape[1] == sum(frame.duration for frame in part)


def test_a_restart_in_the_encoder_passes_on(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    first, second = noise(500, seed=1), noise(700, seed=2)
    whole = sound(first, 100) + flagged(sound(second, 100, pts=9000))
    nodes = [Chunker(24, 24), Encode(codec, engine), Decode(codec, engine)]
    _, frames = through(audio_info(24_000), whole, *nodes)
    want = [there_and_back(codec, data)[:, : data.shape[1]] for data in (first, second)]
    np.testing.assert_allclose(joined(frames), np.concatenate(want, -1), rtol=1e-5, atol=1e-6)
    assert [f.pts for f in frames if f.discontinuity] == [9000]
    assert nodes[1].restarts == nodes[2].restarts == 1


def test_any_number_of_codebooks_from_frame_to_frame(engine: Engine) -> None:
    codec = zoo.codec("mimi")
    info, codes = encoded(codec, engine, noise(720), 24_000)
    fewer = [f.with_(data=f.data[: 1 + f.seq % info.shape[0]]) for f in codes]
    _, frames = through(info, fewer, Decode(codec, engine))
    stream = codec.decode_stream()
    pieces = [stream.push(f.data.astype("int64")) for f in fewer]
    want = torch.cat([*pieces, stream.flush()], dim=-1)[0].numpy()
    np.testing.assert_allclose(joined(frames), want, rtol=1e-5, atol=1e-6)


def test_durations_that_lie_keep_nothing_back(engine: Engine) -> None:
    """A stranger's frames that claim to last no time at all must not pile up."""
    codec = zoo.codec("mimi")
    info, codes = encoded(codec, engine, noise(2400), 24_000)

    async def main() -> None:
        decode = Decode(codec, engine)
        await opened(info, decode)
        lies = [frame.with_(pts=0, duration=0) for frame in codes]
        assert not await pushed(lies, decode, flush=False)
        held = [v.nbytes for v in vars(decode).values() if isinstance(v, np.ndarray)]
        assert sum(held) < 24 * 4
        await decode.aclose()

    anyio.run(main)


def codes_info(**changes: Any) -> StreamInfo:
    info = StreamInfo("codes", Fraction(1, 24_000), Fraction(1000), (6, None), "uint16", "mine", 64)
    return replace(info, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebook_size": 2048}, "decodes codes of 64 entries; got .* of 2048 entries"),
        ({"shape": (8, None)}, "up to 6 codebooks; got codes of mine 8x"),
        ({"kind": "audio", "codebook_size": 0}, "decodes codes of 64 entries; got audio"),
        ({"kind": "features", "codebook_size": 0}, "decodes codes.*got features"),
    ],
)
def test_what_cannot_be_decoded_says_why(
    changes: dict[str, Any], words: str, engine: Engine
) -> None:
    with pytest.raises(FitError, match=words):
        through(codes_info(**changes), [], Decode(zoo.codec("mimi"), engine))
    assert engine.sessions == 0


def test_entries_that_do_not_exist(engine: Engine) -> None:
    codes = Frame(np.full((6, 1), 64, np.uint16), 0, 24, 0)
    with pytest.raises(InputError, match="0..63"):
        through(codes_info(), [codes], Decode(zoo.codec("mimi"), engine))
    assert engine.sessions == 0


@pytest.mark.parametrize("model", ["", "stranger/model", "/etc/passwd", "mimi:/tmp/x.pt"])
def test_a_stream_chooses_no_model_but_a_listed_one(
    model: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(FitError, match="; name the model to decode it with"):
        through(codes_info(model=model), [], Decode(listed_decoder, engine))
    with pytest.raises(FitError, match="only codes.* can be decoded; got features of mel"):
        through(codes_info(kind="features", model="mel"), [], Decode(listed_decoder, engine))


def test_a_listed_model_is_loaded_as_a_decoder(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, **options: Any) -> Codec:
        asked.append((name, options))
        return zoo.codec("mimi")

    monkeypatch.setattr(registry, "load", load)
    codes = Frame(np.zeros((6, 3), np.uint16), 0, 72, 0)
    _, frames = through(codes_info(model="kyutai/mimi"), [codes], Decode(listed_decoder, engine))
    assert asked == [("kyutai/mimi", {"part": "decoder", "device": "cpu"})]
    assert joined(frames).shape == (1, 72)


def test_what_loads_a_model_gets_the_streams_name_and_decides(engine: Engine) -> None:
    asked = []

    def load(name: str) -> Codec:
        asked.append(name)
        return zoo.codec("mimi")

    codes = Frame(np.zeros((6, 3), np.uint16), 0, 72, 0)
    _, frames = through(codes_info(model="mine"), [codes], Decode(load, engine))
    assert asked == ["mine"]
    assert joined(frames).shape == (1, 72)


def test_a_listed_model_without_a_decoder(engine: Engine) -> None:
    with pytest.raises(UsageError, match="no decoder"):
        through(codes_info(model="mel"), [], Decode(listed_decoder, engine))


def test_codes_of_another_frame_rate_are_refused(engine):
    codec = zoo.codec("encodec", torch.float32)
    info = StreamInfo(
        "codes",
        Fraction(1, 48_000),
        Fraction(5000, 33),
        (1, None),
        "uint16",
        codebook_size=codec.decoder.spec.codebook_size,
    )
    with pytest.raises(FitError, match="another model, or made with other options"):
        anyio.run(Decode(codec, engine).open, info)
