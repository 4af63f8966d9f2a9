"""StreamSpec: the arithmetic of leads, hops and delays."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from streamenc.registry import published_spec
from streamenc.spec import Port, StreamSpec

MIMI = StreamSpec(
    name="mimi",
    input=Port("audio", Fraction(24_000), 1),
    output=Port("codes", Fraction(25, 2), 32, "uint16"),
    lead=1920,
    hop=1920,
    lead_out=1,
    hop_out=1,
    equality="offline",
    codebook_size=2048,
)
ENCODEC = StreamSpec(
    name="encodec",
    input=Port("audio", Fraction(24_000), 1),
    output=Port("codes", Fraction(75), 32, "uint16"),
    lead=2240,
    hop=320,
    lead_out=7,
    hop_out=1,
    equality="offline",
    delay=1920,
    codebook_size=1024,
)


def test_latency() -> None:
    assert MIMI.latency_seconds == pytest.approx(0.08)
    assert ENCODEC.latency_seconds == pytest.approx(2240 / 24_000)


@pytest.mark.parametrize("spec", [MIMI, ENCODEC])
def test_rates_and_hops_agree(spec: StreamSpec) -> None:
    assert spec.input.rate / spec.output.rate == Fraction(spec.hop, spec.hop_out)


def test_is_a_value() -> None:
    assert dataclasses.replace(MIMI) == MIMI
    assert dataclasses.replace(MIMI, delay=1) != MIMI
    with pytest.raises(dataclasses.FrozenInstanceError):
        MIMI.hop = 1  # type: ignore[misc]


def test_bitrate_of_codebooks() -> None:
    assert published_spec("nano").kbps(12) == 6.0
    assert published_spec("kyutai/mimi").kbps(8) == pytest.approx(1.1)
