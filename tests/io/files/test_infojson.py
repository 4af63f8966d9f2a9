from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.errors import MediaError
from streamenc.graph.frames import StreamInfo
from streamenc.io.files.infojson import DTYPES, info_from_json, info_to_json

parts = st.fractions(min_value=Fraction(1, 10**9), max_value=10**9, max_denominator=10**9)
single = st.builds(
    StreamInfo,
    kind=st.sampled_from(["audio", "codes", "features"]),
    time_base=parts,
    rate=parts,
    shape=st.lists(st.none() | st.integers(0, 2**31), max_size=4).map(tuple),
    dtype=st.sampled_from(DTYPES),
    model=st.text(max_size=20),
    codebook_size=st.integers(0, 2**16),
)
mux = st.builds(
    StreamInfo,
    kind=st.just("mux"),
    time_base=parts,
    rate=st.just(Fraction(0)),
    shape=st.just(()),
    dtype=st.just(""),
    tracks=st.lists(single, max_size=3).map(tuple),
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
