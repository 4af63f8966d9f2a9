"""The files of the page: types, tags, and what a browser is told not to do."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from http.client import HTTPMessage

import pytest

from streamenc.serve.pageroutes import static_files
from tests.serve.conftest import Served

MAX_BYTES = 150_000


def get(url: str, **headers: str) -> tuple[int, HTTPMessage, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=20
        ) as got:
            return got.status, got.headers, got.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_all_of_it_is_small_and_comes_from_here() -> None:
    files = static_files()
    assert {"index.html", "page.js", "style.css", "streamenc.js", "streamenc.d.ts"} <= files.keys()
    assert sum(len(file.content) for file in files.values()) < MAX_BYTES
    for name, file in files.items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://(?!host)", text), name
    page = files["index.html"].content.decode()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/streamenc.js", "text/javascript; charset=utf-8"),
        ("/static/style.css", "text/css; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
    ],
)
def test_files_have_their_types_and_come_once(served: Served, path: str, media_type: str) -> None:
    status, headers, content = get(served.http + path)
    assert (status, headers["Content-Type"]) == (200, media_type)
    assert content
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    again, headers, content = get(served.http + path, **{"If-None-Match": headers["ETag"]})
    assert (again, content) == (304, b"")
    assert get(served.http + path, **{"If-None-Match": '"other"'})[0] == 200


@pytest.mark.parametrize(
    "path", ["/static/", "/static/none.js", "/static/..%2fsite.py", "/static/%2e%2e/site.py"]
)
def test_nothing_else_is_there(served: Served, path: str) -> None:
    assert get(served.http + path)[0] == 404
