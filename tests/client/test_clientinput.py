"""ClientInput: what a user gives, as the packets that a server takes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from streamenc.errors import InputError
from streamenc.io.network.websocket.clientinput import ClientInput
from streamenc.io.network.websocket.livemessages import InputFacts
from streamenc.io.network.wire import Data, decode
from tests.support.streamserver import StandIn


def made(format: str, **changes: Any) -> ClientInput:
    opened = StandIn().opened()
    base = (1, 16_000) if format in ("s16", "f32") else (1, 90_000)
    rate = changes.pop("rate", 16_000)
    channels = changes.pop("channels", 1)
    facts = InputFacts(format, rate, channels, base)
    return ClientInput(msgspec.structs.replace(opened, input=facts, **changes))


def packets(
    input: ClientInput, given: Any, pts: int | None = None, gap: bool = False
) -> list[Data]:
    """Decoded; each has its place as its seq."""
    found = []
    for seq, make in enumerate(input.packets(given, pts, gap)):
        packet = decode(make(seq))
        assert isinstance(packet, Data) and packet.seq == seq
        found.append(packet)
    return found


def test_sound_is_cut_to_what_the_server_takes():
    input = made("s16", channels=2, max_message_bytes=1128)
    samples = np.arange(2 * 600, dtype=np.int16).reshape(2, 600)
    got = packets(input, samples)
    assert [(data.pts, data.duration) for data in got] == [(0, 250), (250, 250), (500, 100)]
    assert np.array_equal(np.concatenate([data.data for data in got], axis=1), samples)
    assert got[0].data.dtype == np.int16
    assert not any(data.discontinuity for data in got)
    assert packets(input, samples[:, :0]) == []
    assert packets(input, samples[:, :1])[0].pts == 600


def test_times_that_jump_are_flagged():
    input = made("f32", max_message_bytes=528)
    samples = np.zeros(200, np.float32)
    assert [data.discontinuity for data in packets(input, samples)] == [False, False]
    assert [data.discontinuity for data in packets(input, samples, 200)] == [False, False]
    assert [data.discontinuity for data in packets(input, samples, 1000)] == [True, False]
    (data,) = packets(input, samples[:5])
    assert (data.pts, data.discontinuity) == (1200, False)
    (data,) = packets(input, samples[:5], gap=True)
    assert data.discontinuity


def test_whoever_stops_between_two_packets_goes_on_from_there():
    input = made("s16", max_message_bytes=228)
    packets_ = input.packets(np.zeros(200, np.int16), None, False)
    next(packets_)
    assert input.pts == 50


def test_int16_is_exact_as_float32():
    samples = np.array([-32768, -1, 0, 32767], np.int16)
    (data,) = packets(made("f32"), samples)
    assert data.data.dtype == np.float32
    assert np.array_equal(data.data[0] * 32768, samples)


@pytest.mark.parametrize(
    ("format", "given", "message"),
    [
        ("s16", np.zeros(3, np.float32), "open it with format='f32'"),
        ("s16", np.zeros((2, 3), np.int16), "of 1 channels"),
        ("f32", np.zeros(3), "got samples of float64"),
        ("f32", b"abc", "takes arrays"),
        ("jpeg", np.zeros(3, np.uint8), "takes bytes"),
        ("jpeg", bytes(2000), "2000 bytes of jpeg at once"),
        ("rgb", np.zeros((4, 4, 3), np.uint8), r"wanted uint8 \(3, height, width\)"),
        ("rgb", np.zeros((3, 40, 40), np.uint8), "send less at once"),
        ("codes", np.full((2, 1), 70_000), "books of 65536 entries"),
        ("codes", np.full((2, 1), -1), "codes from -1"),
        ("codes", np.zeros((2, 0), np.int64), "got int64"),
        ("features", np.zeros((2, 1)), "got float64"),
    ],
)
def test_what_does_not_fit(format: str, given: Any, message: str):
    input = made(format)
    with pytest.raises(InputError, match=message):
        packets(input, given)
    assert input.pts == 0


def test_bytes_of_media_are_cut_anywhere_and_others_are_not():
    whole = bytes(range(256)) * 10
    got = packets(made("media"), whole, gap=True)
    assert b"".join(data.data.tobytes() for data in got) == whole
    assert [data.discontinuity for data in got] == [True, False, False]
    (data,) = packets(made("text"), "Grüße", 90_000)
    assert (data.data.tobytes().decode(), data.pts, data.duration) == ("Grüße", 90_000, 0)
    (data,) = packets(made("jpeg"), memoryview(whole)[:100])
    assert data.data.shape == (1, 100)


def test_images_codes_and_features_are_counted_by_their_rate():
    input = made("rgb", rate=25)
    image = np.zeros((3, 4, 6), np.uint8)
    (first,) = packets(input, image)
    (two,) = packets(input, np.stack([image, image], axis=1))
    assert (first.data.shape, first.pts, first.duration) == ((3, 1, 4, 6), 0, 3600)
    assert (two.data.shape, two.pts, two.duration) == ((3, 2, 4, 6), 3600, 7200)
    input = made("codes", rate=75.2)
    got = [packets(input, np.full((2, 1), 65535))[0] for _ in range(5)]
    assert [data.pts for data in got] == [round(i * 90_000 / 75.2) for i in range(5)]
    assert got[0].data.dtype == np.uint16
    (data,) = packets(made("features", rate=50), np.ones((5, 2), np.float16))
    assert (data.data.dtype, data.duration) == (np.float16, 3600)
