"""Segments of text from bytes: lines, JSON objects, revisions, and what is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamenc.errors import UsageError
from streamenc.graph.frames import Frame
from streamenc.io.text.transcript import Reading, Transcript

SECOND = 1_000_000_000


def read(
    *lines: bytes | str | dict[str, Any],
    format: str = "",
    partials: bool = False,
    max_bytes: int = 64,
    timeless: bool = True,
) -> tuple[list[Frame], Transcript]:
    made = Transcript(Reading.checked(format, partials, max_bytes), "line", timeless=timeless)
    frames = []
    for index, line in enumerate(lines):
        text = json.dumps(line) if isinstance(line, dict) else line
        raw = text.encode() if isinstance(text, str) else text
        frame = made.segment(raw, 5 * SECOND + index * SECOND // 2, 4 * SECOND)
        if frame is not None:
            frames.append(frame)
    return frames, made


def told(frames: list[Frame]) -> list[tuple[Any, ...]]:
    return [(f.data[0, 0], f.segment, f.pts, f.duration, f.revised) for f in frames]


def test_lines_of_a_file_are_numbered_and_a_second_apart() -> None:
    frames, made = read(b"\xef\xbb\xbfone", " two\r\n", "", "   ", "fünf\0")
    assert told(frames) == [
        ("one", 0, 0, 1000, False),
        ("two", 1, 1000, 1000, False),
        ("fünf", 4, 2000, 1000, False),
    ]
    assert [f.seq for f in frames] == [0, 1, 2] and not made.lost and not made.remarks
    assert frames[0].data.shape == (1, 1) and frames[0].data.dtype.kind == "U"


def test_lines_that_are_typed_have_the_time_at_which_they_come() -> None:
    frames, _ = read("one", "", "two", timeless=False)
    assert told(frames) == [("one", 0, 1000, 0, False), ("two", 2, 2000, 0, False)]
    assert frames[1].arrived_ns == 6 * SECOND


def test_transcripts_say_their_times() -> None:
    frames, made = read(
        {"text": " one ", "start": 1.5, "end": 2.25, "id": 7, "tokens": [1, 2]},
        {"text": "two", "start_ms": 2250, "end_ms": 3000, "segment": 8},
        {"text": "three", "start": 4},
        {"text": "four"},
        {"text": ""},
        {"text": "five", "end": 9},
    )
    assert told(frames) == [
        ("one", 7, 1500, 750, False),
        ("two", 8, 2250, 750, False),
        ("three", -1, 4000, 0, False),
        ("four", -1, 4000, 1000, False),
        ("five", -1, 5000, 4000, False),
    ]
    assert not made.lost


def test_what_is_said_again_in_other_words_is_a_revision() -> None:
    frames, made = read(
        {"text": "a", "id": "x"},
        {"text": "b", "id": "y"},
        {"text": "a", "id": "x"},
        {"text": "A", "id": "x", "start": 1},
        {"text": "none"},
        {"text": "none"},
    )
    assert [(f.data[0, 0], f.segment, f.revised) for f in frames] == [
        ("a", 0, False),
        ("b", 1, False),
        ("A", 0, True),
        ("none", -1, False),
        ("none", -1, False),
    ]
    assert not any(f.discontinuity for f in frames) and not made.lost


@pytest.mark.parametrize("key", ["final", "is_final"])
def test_partial_segments_come_only_where_they_are_wanted(key: str) -> None:
    said = [
        {"text": "he", "id": 0, key: False},
        {"text": "hello", "id": 0, key: False},
        {"text": "hello", "id": 0, key: True},
        {"text": "by", "id": 1, key: False},
        {"text": "bye.", "id": 1},
    ]
    finals, _ = read(*said)
    assert [(f.data[0, 0], f.segment, f.revised) for f in finals] == [
        ("hello", 0, False),
        ("bye.", 1, False),
    ]
    all_of_them, _ = read(*said, partials=True)
    assert [(f.data[0, 0], f.segment, f.revised) for f in all_of_them] == [
        ("he", 0, False),
        ("hello", 0, True),
        ("by", 1, False),
        ("bye.", 1, True),
    ]


def test_what_cannot_be_read_is_counted_told_and_flagged() -> None:
    frames, made = read(
        "one", b"\xff\xfe", "x" * 65, "x" * 64, b"\xffagain", "last", format="lines"
    )
    assert [(f.data[0, 0][:4], f.segment, f.discontinuity) for f in frames] == [
        ("one", 0, False),
        ("xxxx", 3, True),
        ("last", 5, True),
    ]
    assert made.lost == 3
    assert made.remarks == [
        "left out 2 lines: no UTF-8; the first was line 2: invalid start byte",
        "left out 1 line: more than 64 bytes (max_bytes); the first was line 3: 65 bytes",
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "it is no JSON"),
        ("[1]", "wanted a JSON object; got a list"),
        ({"words": "a"}, 'it lacks a "text"; got'),
        ({"text": 1}, 'it lacks a "text"'),
        ({"text": "a b", "segments": [{"text": "a"}]}, "it is a whole transcript of 1 segments"),
        ({"text": "a", "start": "1"}, "start is a number of seconds; got '1'"),
        ({"text": "a", "start_ms": True}, "start_ms is a number of milliseconds; got True"),
        ({"text": "a", "start": 1e300}, "start is a number of seconds"),
        ({"text": "a", "end": 10**400}, "end is a number of seconds"),
        ('{"text": "a", "start": NaN}', "start is a number of seconds; got nan"),
        ({"text": "a", "start": 2, "end": 1}, "it ends before it begins: 2000 and 1000 ms"),
        ({"text": "a", "id": -1}, "an id is a whole number from 0, or a short text; got -1"),
        ({"text": "a", "id": True}, "an id is"),
        ({"text": "a", "final": "yes"}, "final is true or false; got 'yes'"),
        ('{"text": "\\ud800"}', "its text is no Unicode"),
        ("[" * 100_000, "it is no JSON"),
        ({"text": "x" * 65}, "line 1: 65 bytes"),
    ],
)
def test_objects_that_are_no_segments(line: Any, why: str) -> None:
    frames, made = read(
        line, {"text": "good"}, format="json", max_bytes=64 if line != "[" * 100_000 else 10**6
    )
    assert [f.discontinuity for f in frames] == [True] and made.lost == 1
    assert len(made.remarks) == 1 and why in made.remarks[0]


def test_the_first_line_says_the_format() -> None:
    frames, _ = read('{"words": 1}', '{"text": "a"}')
    assert [f.data[0, 0] for f in frames] == ['{"words": 1}', '{"text": "a"}']
    frames, made = read("", '{"text": "a"}', "b")
    assert [f.data[0, 0] for f in frames] == ["a"] and made.lost == 1


def test_memory_of_ids_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamenc.io.text.transcript.REMEMBERED", 3)
    said = [{"text": f"t{i}", "id": f"id{i}"} for i in range(10)]
    frames, made = read(*said, {"text": "new", "id": "id9"}, {"text": "new", "id": "id0"})
    assert [(f.segment, f.revised) for f in frames[-2:]] == [(9, True), (10, False)]
    assert len(made._said) == len(made._numbers) == 3


def test_options_out_of_range() -> None:
    for wrong in ({"format": "xml"}, {"partials": "perhaps"}, {"max_bytes": 0}):
        given = {"format": "", "partials": False, "max_bytes": 64} | wrong
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Reading.checked(**given)
