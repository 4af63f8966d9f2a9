"""StreamSpec: the arithmetic of leads, hops and delays."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.registry import published_spec
from streamenc.spec import Port, Steps, StreamSpec

MIMI = StreamSpec(
    name="mimi",
    input=Port("audio", Fraction(24_000), 1),
    output=Port("codes", Fraction(25, 2), 32, "uint16"),
    steps=Steps(1920, 1920),
    equality="offline",
    codebook_size=2048,
)
ENCODEC = StreamSpec(
    name="encodec",
    input=Port("audio", Fraction(24_000), 1),
    output=Port("codes", Fraction(75), 32, "uint16"),
    steps=Steps(lead=2240, hop=320, lead_out=7),
    equality="offline",
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
    assert dataclasses.replace(MIMI, limit=1) != MIMI
    with pytest.raises(dataclasses.FrozenInstanceError):
        MIMI.limit = 1  # type: ignore[misc]


def test_delay_is_what_the_first_step_waits_for_beyond_a_hop() -> None:
    assert (MIMI.delay, ENCODEC.delay) == (0, 1920)
    cosmos = dataclasses.replace(MIMI, steps=Steps(lead=1, hop=8))
    assert cosmos.delay == 0


CONVOLUTION = Steps(lead=4, hop=2)
REFLECTED = Steps(lead=7, lead_out=7)
DOUBLED = Steps(lead_out=2, hop_out=2)
SOME = st.builds(Steps, *[st.integers(1, 12)] * 4)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (CONVOLUTION, Steps(), CONVOLUTION),
        (Steps(), CONVOLUTION, CONVOLUTION),
        (CONVOLUTION, CONVOLUTION, Steps(lead=10, hop=4)),
        (DOUBLED, CONVOLUTION, Steps(lead=2)),
        (CONVOLUTION, REFLECTED, Steps(lead=16, hop=2, lead_out=7)),
        (Steps(hop_out=8), Steps(hop=2), Steps(hop_out=4)),
        (Steps(3, 3, 3, 3), Steps(2, 2, 2, 2), Steps(6, 6, 6, 6)),
        (Steps(5, 3, 5, 3), Steps(4, 4, 4, 4), Steps(8, 12, 8, 12)),
    ],
)
def test_one_after_the_other(first: Steps, second: Steps, both: Steps) -> None:
    assert first.then(second) == both


def fitting(first: Steps, second: Steps, items: int) -> bool:
    """Whether a first step of so many items is one for both, one after the other."""
    try:
        second.outputs(first.outputs(items))
    except ValueError:
        return False
    return True


@settings(deadline=None)
@given(SOME, SOME)
def test_the_composite_takes_what_both_take_and_nothing_else(first: Steps, second: Steps) -> None:
    lengths = [items for items in range(1, 400) if fitting(first, second, items)]
    try:
        both = first.then(second)
    except ValueError:
        assert not lengths
        return
    assert lengths == list(range(both.lead, 400, both.hop))
    for items in lengths:
        assert both.outputs(items) == second.outputs(first.outputs(items))


@settings(deadline=None)
@given(SOME, SOME, SOME)
def test_composition_is_associative(first: Steps, second: Steps, third: Steps) -> None:
    def composed(order: bool) -> Steps | None:
        try:
            if order:
                return first.then(second).then(third)
            return first.then(second.then(third))
        except ValueError:
            return None

    assert composed(True) == composed(False)


def test_side_by_side() -> None:
    assert REFLECTED.beside(Steps()) == REFLECTED
    assert Steps(3, 3, 3, 3).beside(Steps(2, 2, 2, 2)) == Steps(6, 6, 6, 6)
    # The shortcut's outputs wait for those of a block that looks ahead.
    assert Steps(lead=4).beside(Steps()) == Steps().beside(Steps(lead=4)) == Steps(lead=4)
    with pytest.raises(ValueError, match="side by side"):
        CONVOLUTION.beside(Steps())
    with pytest.raises(ValueError, match="no first step fits both"):
        Steps(2, 2, 2, 2).beside(Steps(1, 2, 1, 2))


@given(SOME, st.integers(1, 60))
def test_inputs_are_the_fewest_that_give_so_many_outputs(steps: Steps, items: int) -> None:
    needed = steps.inputs(items)
    assert steps.outputs(needed) >= items
    assert needed == steps.lead or steps.outputs(needed - steps.hop) < items


def test_a_first_step_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted 4, or a multiple of 2 more"):
        CONVOLUTION.outputs(5)


def test_bitrate_of_codebooks() -> None:
    assert published_spec("nano").kbps(12) == 6.0
    assert published_spec("kyutai/mimi").kbps(8) == pytest.approx(1.1)
