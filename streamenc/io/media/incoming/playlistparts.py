"""Parts of playlists (HLS, DASH), fetched with their certificates checked, as FFmpeg does not."""

from __future__ import annotations

import http.client
import ssl
import urllib.request
import weakref
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import av

from streamenc.addresses import shown_address
from streamenc.errors import MediaError

# FFmpeg's names of what names others that it then opens.
PLAYLISTS = {"hls", "dash"}
# FFmpeg would go on with connections that it has not made.
OPTIONS = {"http_persistent": "0", "http_multiple": "0"}
USER_AGENT = "Lavf"


class Part:
    """A body that is read from front to back, as PyAV takes a file."""

    def __init__(self, answer: http.client.HTTPResponse, shown: str) -> None:
        self._answer, self._shown = answer, shown
        # PyAV does not close what FFmpeg was still reading when the container was closed.
        self._close = weakref.finalize(self, answer.close)

    def read(self, size: int = -1) -> bytes:
        try:
            return self._answer.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise MediaError(f"cannot read {self._shown!r}: {error}") from error

    def close(self) -> None:
        self._close()


@cache
def all_but_playlists() -> str:
    """FFmpeg's names of all formats, but those that open what they name."""
    return ",".join(sorted(av.formats_available - PLAYLISTS))


def opener(
    context: ssl.SSLContext, timeout_seconds: float
) -> Callable[[str, int, dict[str, str]], Part | BytesIO]:
    """What PyAV takes as `io_open`: opens http and https alone, by Python, in `context`.

    timeout_seconds  For so long a server may send nothing.
    """
    failed = False
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        director.add_handler(handler)

    def io_open(url: str, flags: int, options: dict[str, str]) -> Part | BytesIO:
        nonlocal failed
        if failed:  # FFmpeg tries the next part before PyAV raises what came of this one
            return BytesIO()
        failed = True
        part = opened(url, options)
        failed = False
        return part

    def opened(url: str, options: dict[str, str]) -> Part:
        shown = shown_address(url)
        if url.startswith("crypto"):
            raise MediaError(
                f"{shown!r}: parts of a playlist that are encrypted are read with insecure=yes "
                "alone, without a look at certificates"
            )
        if not url.startswith(("http://", "https://")):
            raise MediaError(f"a playlist names {shown!r}, which is on no web server")
        request = urllib.request.Request(url, headers=_headers(options))
        try:
            answer: Any = director.open(request, timeout=timeout_seconds)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise MediaError(f"cannot read {shown!r}, which a playlist names: {reason}") from error
        return Part(answer, shown)

    return io_open


def _headers(options: dict[str, str]) -> dict[str, str]:
    """As FFmpeg would send them."""
    headers = {"User-Agent": options.get("user_agent") or USER_AGENT}
    if cookies := options.get("cookies"):
        headers["Cookie"] = "; ".join(line.partition(";")[0] for line in cookies.split("\n"))
    if referer := options.get("referer"):
        headers["Referer"] = referer
    begin, end = int(options.get("offset") or 0), int(options.get("end_offset") or 0)
    if begin or end:
        headers["Range"] = f"bytes={begin}-{end - 1 if end else ''}"
    return headers
