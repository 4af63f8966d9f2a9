"""OpusInput: packets of Opus into a model, equal wherever it is taken up again."""

import av
import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.serve.inputs import opusinput, replay
from streamenc.serve.inputs.opusinput import packet_samples
from tests.serve.inputs.compressed import opus_packets, tones
from tests.serve.inputs.packets import again, joined, made, packed, sound_model, told
from tests.support.profile import examples

PACKETS = opus_packets(tones(48000))
SPEC, ASKED = sound_model(24000), {"format": "opus"}


def decoded(packets, layout="mono"):
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48000, layout
    frames = [frame for packet in packets for frame in decoder.decode(av.Packet(packet))]
    raw = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    channels = 1 if layout == "mono" else 2
    return raw.reshape(-1, channels).T.astype(np.float32) / np.float32(32768)


def pushed(input, packets, first=0, known=True):
    chunks = []
    for number, packet in enumerate(packets, first):
        times = (960 * number, 960) if known else ()
        chunks += input.push(packed(packet, *times))
    return chunks


@pytest.mark.parametrize("known", [False, True])
def test_equal_to_the_decoder_and_soxr(known):
    input = made(SPEC, **ASKED)
    chunks = pushed(input, PACKETS, known=known)
    assert input.next_pts == 960 * len(PACKETS)
    chunks += input.flush()
    wanted = soxr.resample(decoded(PACKETS)[0], 48000, 24000, quality="HQ")
    assert np.array_equal(joined(chunks)[0], wanted)
    assert chunks[0].pts == 0 and not any(chunk.discontinuity for chunk in chunks)
    assert (input.rate, input.time_base.denominator, input.exact) == (48000, 48000, True)


def test_stereo():
    packets = opus_packets(tones(9600, channels=2))
    input = made(sound_model(48000, 2), channels=2, **ASKED)
    assert np.array_equal(joined(pushed(input, packets)), decoded(packets, "stereo"))


@settings(max_examples=examples(30, fast=6), deadline=None)
@given(restored=st.sets(st.integers(0, len(PACKETS)), max_size=6), flushed=st.integers(0, 60))
def test_taken_up_anywhere(restored, flushed):
    input, other = made(SPEC, **ASKED), made(SPEC, **ASKED)
    got, wanted = [], []
    for number, packet in enumerate(PACKETS):
        if number in restored:
            input = again(input, SPEC, **ASKED)
        if number == flushed:
            got += input.flush()
            wanted += other.flush()
        got += pushed(input, [packet], number)
        wanted += pushed(other, [packet], number)
    got += input.flush()
    wanted += other.flush()
    assert told(got) == told(wanted)


def test_a_packet_that_was_lost_is_a_gap():
    input = made(sound_model(48000), **ASKED)
    chunks = pushed(input, PACKETS[:10]) + pushed(input, PACKETS[12:20], 12)
    flags = [chunk.discontinuity for chunk in chunks]
    assert flags == [False] * 10 + [True] + [False] * 7
    assert [chunk.pts for chunk in chunks] == [960 * n for n in (*range(10), *range(12, 20))]
    assert np.array_equal(joined(chunks), decoded(PACKETS[:10] + PACKETS[12:20]))


def test_times_that_jitter_are_no_gap():
    input = made(sound_model(48000), **ASKED)
    chunks = []
    for number, packet in enumerate(PACKETS):
        chunks += input.push(packed(packet, 960 * number + 100 * (number % 3), 960))
    assert not any(chunk.discontinuity for chunk in chunks)
    assert [chunk.pts for chunk in chunks] == [960 * n for n in range(len(PACKETS))]


def test_a_flag_makes_the_decoder_new():
    input = made(sound_model(48000), **ASKED)
    pushed(input, PACKETS[:10])
    chunks = input.push(packed(PACKETS[20], 30_000, 960, cut=True))
    assert chunks[-1].discontinuity and chunks[-1].pts == 30_000
    assert np.array_equal(joined(chunks), decoded(PACKETS[20:21]))
    assert len(input.state()) < 1000


def test_what_is_longer_than_is_kept(monkeypatch):
    """It goes on with a decoder that heard the last packets only."""
    monkeypatch.setattr(replay, "MAX_KEPT_BYTES", 500)
    monkeypatch.setattr(opusinput, "LAST_PACKETS", 15)
    spec = sound_model(48000)
    input, other = made(spec, **ASKED), made(spec, **ASKED)
    assert input.exact
    for one in (input, other):
        pushed(one, PACKETS[:30])
    assert not input.exact and "not all kept" in input.why
    input = again(input, spec, **ASKED)
    assert not input.exact and len(input.state()) < 15 * 200
    got, wanted = (joined(pushed(one, PACKETS[30:], 30)) for one in (input, other))
    assert got.shape == wanted.shape
    assert np.abs(got - wanted)[:, 9600:].max() < 1e-3  # it has found its way
    input.flush()
    assert input.exact


@pytest.mark.parametrize(
    ("head", "samples"),
    [(b"\x78", 960), (b"\x80", 120), (b"\x18", 2880), (b"\x19", 5760), (b"\xfb\x06", 5760)],
)
def test_how_long_a_packet_is(head, samples):
    assert packet_samples(head) == samples
    assert packet_samples(PACKETS[0][:2]) == 960


@pytest.mark.parametrize("payload", [b"", b"\x03", b"\xfb\x00", b"\xfb\x3f", b"\x1b\x04"])
def test_what_is_no_packet(payload):
    input = made(SPEC, **ASKED)
    before = input.state()
    for act in (input.check, input.push):
        with pytest.raises(InputError):
            act(packed(payload))
    assert input.state() == before


@settings(max_examples=examples(300, fast=60), deadline=None)
@given(
    pieces=st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(PACKETS)), max_size=12),
    restored=st.integers(0, 12),
)
def test_any_bytes(pieces, restored):
    input, other = made(SPEC, **ASKED), made(SPEC, **ASKED)
    got, wanted = [], []
    for number, piece in enumerate(pieces):
        if number == restored:
            input = again(input, SPEC, **ASKED)
        for one, chunks in ((input, got), (other, wanted)):
            try:
                chunks += one.push(packed(piece))
            except InputError:
                chunks += []
    assert told(got + input.flush()) == told(wanted + other.flush())


def test_damaged_states():
    input = made(SPEC, **ASKED)
    pushed(input, PACKETS[:5])
    blob = input.state()
    for kept in range(0, len(blob), 7):
        with pytest.raises(SnapshotError):
            made(SPEC, **ASKED).restore(blob[:kept])


def test_what_cannot_be():
    with pytest.raises(UsageError, match="48000"):
        made(SPEC, rate=24000, **ASKED)
    with pytest.raises(UsageError, match="1 or 2"):
        made(SPEC, channels=3, **ASKED)
