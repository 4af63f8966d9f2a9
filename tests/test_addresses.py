"""No secret of any address in what people read."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.addresses import check_name, shown_address
from streamenc.errors import UsageError


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("talk.wav", "talk.wav"),
        ("C:\\clips\\a@b.wav", "C:\\clips\\a@b.wav"),
        ("mic:USB?rate=48000", "mic:USB?rate=48000"),
        ("rtsp://cam/live?x=1", "rtsp://cam/live?x=1"),
        ("rtsp://[::1]:554/live", "rtsp://[::1]:554/live"),
        ("http://host:80/@someone/a.mp4", "http://host:80/@someone/a.mp4"),
        ("rtsp://admin:pw@cam:554/live", "rtsp://***@cam:554/live"),
        ("rtsp://admin@cam/live", "rtsp://***@cam/live"),
        ("rtsp://admin:p@ss@cam/live", "rtsp://***@cam/live"),
        ("rtsp://admin:p/ss@cam/live", "rtsp://***@cam/live"),
        ("rtsp://admin:p?s#s@cam/live", "rtsp://***@cam/live"),
        ("http://cam/v?usr=admin&pwd=x&fps=5", "http://cam/v?usr=***&pwd=***&fps=5"),
        ("https://h/a.mp4?X-Amz-Signature=ab&X-Amz-Date=1", "https://h/a.mp4?X-Amz-Signature=***&X-Amz-Date=1"),
        ("srt://h:1?mode=caller&passphrase=long", "srt://h:1?mode=caller&passphrase=***"),
        ("https://h/a#access_token=x", "https://h/a#access_token=***"),
    ],
)  # fmt: skip
def test_secrets_are_hidden_and_the_rest_is_not(address: str, shown: str) -> None:
    assert shown_address(address) == shown


@given(
    password=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
    quoted=st.booleans(),
    path=st.sampled_from(["", "/", "/live?fps=5", ":554/a/b"]),
)
def test_no_password_is_seen(password: str, quoted: bool, path: str) -> None:
    secret = quote(password, safe="") if quoted else password
    marked = f"<<{secret}>>"
    shown = shown_address(f"rtsp://admin:{marked}@cam{path}")
    assert "<<" not in shown and ">>" not in shown and shown.endswith(f"@cam{path}")


@pytest.mark.parametrize(
    "name",
    ["x" * 256, "a/" * 2048, "a\0b", "\ud800", "https://h/\udcff", "https://h/" + "a" * 4096],
    ids=["part", "whole", "zero", "half", "half in a URL", "URL"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="is no name") as raised:
        check_name(name)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "name", ["x" * 255, "a/" * 2047, "\udcff", "日本語.wav", "https://h/" + "a" * 4000, "-", ""]
)
def test_what_is_a_name(name: str) -> None:
    assert check_name(name) == name
