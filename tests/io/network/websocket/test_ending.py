"""Endings: which may be gone on from, and what they are for a user."""

from __future__ import annotations

import pytest

from streamenc.errors import (
    EngineFull,
    InputError,
    SnapshotError,
    StreamencError,
    TransportError,
)
from streamenc.io.network.websocket.ending import OpenRefused, ending_of, printable
from streamenc.io.network.websocket.livemessages import Error


@pytest.mark.parametrize(
    ("code", "final", "kind"),
    [
        ("engine_gone", False, TransportError),
        ("ending", False, TransportError),
        ("internal", False, TransportError),
        ("full", False, EngineFull),
        ("bad_open", True, OpenRefused),
        ("unknown_model", True, OpenRefused),
        ("bad_packet", True, InputError),
        ("bad_snapshot", True, SnapshotError),
        ("expired", True, TransportError),
        ("taken_over", True, TransportError),
        ("of another version", True, TransportError),
    ],
)
def test_what_a_server_says(code: str, final: bool, kind: type[StreamencError]):
    ending = ending_of(Error(code, "as it is", fatal=True), 1008, "")
    assert ending.final == final
    failure = ending.failure("ws://here")
    assert type(failure) is kind
    assert "ws://here" in str(failure) and "as it is" in str(failure)


@pytest.mark.parametrize(
    ("code", "final"),
    [(None, False), (1000, False), (1001, False), (1006, False), (1011, False), (1012, False)]
    + [(1013, False), (1008, True), (1009, True), (4400, True), (4408, True), (4409, True)]
    + [(4410, True)],
)
def test_what_a_close_code_says(code: int | None, final: bool):
    assert ending_of(None, code, "because").final == final


def test_a_server_writes_nothing_on_our_terminal():
    ending = ending_of(Error("\x1b[31m", "red\nline" + "x" * 1000, fatal=True), None, "")
    assert "\x1b" not in ending.why and "\n" not in ending.why
    assert len(printable("x" * 1000)) == 300
