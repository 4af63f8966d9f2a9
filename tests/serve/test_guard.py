"""Who may come in."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from streamenc.errors import UsageError
from streamenc.serve.guard import ADMITTED, FAILURES, Admission, Guard, Refused
from streamenc.serve.keyring import Keyring, keys_of

KEY, WRONG = "0123456789abcdef", "0123456789abcdeF"
KEYS = Keyring(keys_of([f"robot {KEY}"], "here"))


def connection(
    *,
    kind: str = "websocket",
    query: str = "",
    subprotocols: list[str] | None = None,
    client: tuple[str, int] | None = ("192.0.2.1", 5),
    headers: dict[str, str] | None = None,
    **more: Any,
) -> HTTPConnection:
    headers = {"host": "streams.example"} | (headers or {})
    scope = {
        "type": kind,
        "path": "/v1/stream",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "subprotocols": subprotocols or [],
        "client": client,
    }
    return HTTPConnection(scope | more)


def refused(guard: Guard, coming: HTTPConnection) -> Refused:
    with pytest.raises(Refused) as caught:
        guard.admit(coming)
    return caught.value


def with_key(way: str, key: str, **how: Any) -> HTTPConnection:
    if way == "bearer":
        return connection(headers={"authorization": f"Bearer {key}"}, **how)
    if way == "subprotocol":
        return connection(subprotocols=["streamenc.v1", f"key.{key}"], **how)
    return connection(query=f"resume&token={key}", **how)


@pytest.mark.parametrize("way", ["bearer", "subprotocol", "token"])
def test_keys(way: str) -> None:
    guard = Guard(KEYS)
    assert guard.admit(with_key(way, KEY)) == Admission("robot")
    for wrong in (WRONG, KEY[:-1], KEY + "x" * 5000, "\xff" * 16):
        error = refused(guard, with_key(way, wrong))
        assert (error.status, error.code) == (401, "key")
        assert error.headers["WWW-Authenticate"] == "Bearer"
        assert wrong not in error.message
    assert refused(guard, with_key(way, "")).message.startswith("a key is needed")


def test_without_keys_all_may_come() -> None:
    assert Guard().admit(connection()) == Admission("")
    assert Guard().admit(connection(kind="http", headers={"authorization": "Basic x"}))
    error = refused(Guard(KEYS), connection(headers={"authorization": "Basic x"}))
    assert error.status == 401


def test_wrong_keys_are_bounded() -> None:
    now = 0.0
    guard = Guard(KEYS, clock=lambda: now)
    for _ in range(FAILURES):
        assert refused(guard, with_key("bearer", WRONG)).status == 401
    error = refused(guard, with_key("bearer", WRONG))
    assert (error.status, error.headers["Retry-After"]) == (429, "5")
    # Neither others, nor who has a key and the same address, suffer from it.
    assert refused(guard, with_key("bearer", WRONG, client=("192.0.2.2", 5))).status == 401
    assert guard.admit(with_key("bearer", KEY)).owner == "robot"
    now = 4.9
    assert refused(guard, with_key("bearer", WRONG)).status == 429
    now = 5.1
    assert refused(guard, with_key("bearer", WRONG)).status == 401
    assert refused(guard, with_key("bearer", WRONG)).status == 429
    now = 1000.0
    assert refused(guard, with_key("bearer", WRONG)).status == 401


def test_wrong_keys_of_many_addresses_take_bounded_memory() -> None:
    guard = Guard(KEYS)
    for number in range(5000):
        address = f"2001:db8:{number:x}::{number:x}"
        refused(guard, with_key("bearer", WRONG, client=(address, 1)))
    assert len(guard._failures._free_at) <= 4096
    # All addresses of a /64 are one.
    for number in range(FAILURES):
        refused(guard, with_key("bearer", WRONG, client=(f"2001:db8:ffff::{number:x}", 1)))
    last = with_key("bearer", WRONG, client=("2001:db8:ffff::beef", 1))
    assert refused(guard, last).status == 429
    assert refused(guard, with_key("bearer", WRONG, client=None)).status == 401


@pytest.mark.parametrize(
    ("origin", "origins", "fits"),
    [
        ("http://streams.example", (), True),
        ("https://streams.example", (), True),
        ("https://STREAMS.example", (), True),
        ("https://app.example", (), False),
        ("https://app.example", ("https://app.example",), True),
        ("https://APP.example", ("https://app.example/",), True),
        ("http://app.example", ("https://app.example",), False),
        ("https://app.example:444", ("https://app.example",), False),
        ("null", (), False),
        ("null", ("null",), True),
        ("https://anything", ("*",), True),
        ("http://[broken", (), False),
        ("", (), False),
    ],
)
def test_origins(origin: str, origins: tuple[str, ...], fits: bool) -> None:
    coming = connection(headers={"origin": origin})
    if fits:
        assert Guard(origins=origins).admit(coming)
    else:
        error = refused(Guard(origins=origins), coming)
        assert (error.status, error.code) == (403, "origin")


def test_an_origin_is_looked_at_before_a_key() -> None:
    coming = connection(
        headers={"origin": "https://evil.example", "authorization": f"Bearer {KEY}"}
    )
    assert refused(Guard(KEYS), coming).status == 403


@pytest.mark.parametrize(
    "origin", ["app.example", "https://", "https://a/b", "https://u:p@a", "//a"]
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(UsageError, match="wanted https://app.example"):
        Guard(origins=[origin])


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("localhost", True),
        ("LOCALHOST:8765", True),
        ("127.0.0.1:8765", True),
        ("127.3.2.1", True),
        ("[::1]:8765", True),
        ("page.localhost:1", True),
        ("proxy.example", True),
        ("evil.example:8765", False),
        ("localhost.evil.example", False),
        ("192.168.1.5:8765", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_server_for_this_machine_alone(host: str, fits: bool) -> None:
    """Else evil.example could mean 127.0.0.1, and its pages would be of the same origin."""
    guard = Guard(local=True, origins=["https://proxy.example"])
    coming = connection(headers={"host": host, "origin": f"http://{host}"})
    if fits:
        assert guard.admit(connection(headers={"host": host}))
        assert host == "proxy.example" or guard.admit(coming)
    else:
        assert (refused(guard, coming).status, refused(guard, coming).code) == (403, "host")


def test_streams_of_a_key() -> None:
    open_now = 2
    guard = Guard(KEYS, sessions_per_key=3, streams=lambda owner: open_now)
    assert guard.admit(with_key("bearer", KEY))
    open_now = 3
    error = refused(guard, with_key("bearer", KEY))
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "full", "5")
    # Its streams go on, and what is no stream is not meant.
    assert guard.admit(with_key("token", KEY))
    assert guard.admit(with_key("bearer", KEY, kind="http"))
    assert Guard(sessions_per_key=3, streams=lambda owner: 9).admit(connection())


def test_whom_another_process_admitted() -> None:
    coming = connection(headers={"x-streamenc-admitted": "robot", "origin": "https://evil"})
    assert refused(Guard(KEYS), coming).status == 403
    coming = connection(headers={"x-streamenc-admitted": "robot"})
    assert refused(Guard(KEYS), coming).status == 401
    coming.scope[ADMITTED] = Admission("other")
    assert Guard(KEYS).admit(coming) == Admission("other")
