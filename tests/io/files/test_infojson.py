from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.errors import MediaError
from streamenc.graph.frames import AXES, DTYPES, StreamInfo
from streamenc.io.files.infojson import info_from_json, info_to_json

BOOKS = {"codes": st.integers(1, 2**31 - 1)}
sizes = st.integers(1, 32)


def streams_of(kind: Any) -> Any:
    """Any stream of a kind that no reader refuses."""
    low, high = AXES[kind]
    more = st.lists(sizes, min_size=low - 2, max_size=high - 2)
    return st.builds(
        StreamInfo,
        kind=st.just(kind),
        time_base=st.builds(Fraction, st.integers(1, 80_000), st.integers(1, 10**12)),
        rate=st.builds(Fraction, st.integers(10**6, 10**7), st.integers(100, 1000)),
        shape=st.tuples(sizes, st.none() | sizes, more).map(lambda s: (*s[:2], *s[2][:3])),
        dtype=st.sampled_from(DTYPES[kind]),
        model=st.text(max_size=20),
        codebook_size=BOOKS.get(kind, st.just(0)),
    )


single = st.one_of(*map(streams_of, ("audio", "codes", "features")))
mux = st.builds(
    StreamInfo,
    kind=st.just("mux"),
    time_base=st.fractions(Fraction(1, 10**9), 10**9, max_denominator=10**9),
    rate=st.just(Fraction(0)),
    shape=st.just(()),
    dtype=st.just(""),
    tracks=st.lists(single, min_size=1, max_size=3).map(tuple),
)


@given(single | mux)
def test_what_was_written_comes_back(info: StreamInfo) -> None:
    assert info_from_json(json.loads(json.dumps(info_to_json(info)))) == info


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
GOOD = info_to_json(
    StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "m", 2048)
)


@given(st.sampled_from(sorted(GOOD)), json_values)
def test_anything_else_is_refused_or_sound(key: str, value: Any) -> None:
    try:
        info = info_from_json({**GOOD, key: value})
    except MediaError:
        return
    assert info_from_json(info_to_json(info)) == info


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "smell"},
        {"kind": "mux"},
        {"kind": "mux", "tracks": [GOOD] * 256},
        {"kind": "mux", "tracks": [{**GOOD, "kind": "mux", "tracks": []}]},
        {"time_base": "0/1"},
        {"time_base": "1"},
        {"time_base": "-1/24000"},
        {"time_base": "\u00b2/1"},
        {"shape": [-1]},
        {"shape": [True]},
        {"shape": [1] * 9},
        {"dtype": "O"},
        {"codebook_size": "2048"},
        {"model": None},
    ],
    ids=str,
)
def test_nonsense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MediaError, match="stream description"):
        info_from_json({**GOOD, **change})
