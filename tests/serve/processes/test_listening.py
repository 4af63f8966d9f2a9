"""The address of --bind."""

from __future__ import annotations

import pytest

from streamenc.errors import TransportError, UsageError
from streamenc.serve.processes.listening import Bind


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8765", "127.0.0.1", 8765, True),
        ("127.0.0.1", "127.0.0.1", 8765, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:0", "::1", 0, True),
        ("[::]", "::", 8765, False),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("*:80", "", 80, False),
        (":80", "", 80, False),
        ("streams.example:443", "streams.example", 443, False),
        ("192.168.1.5:80", "192.168.1.5", 80, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    assert Bind.read(text) == Bind(host, port, loopback)


@pytest.mark.parametrize("text", ["::1:80", "localhost:http", "localhost:65536", "a:-1", "a:"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="wanted HOST:PORT"):
        Bind.read(text)


def test_listening() -> None:
    with Bind.read("localhost:0").listen() as there:
        port = there.getsockname()[1]
        url = Bind.read("localhost:0").url(there, tls=False)
        assert url == f"http://localhost:{port}"
        assert Bind.read("0.0.0.0:0").url(there, tls=True) == f"https://127.0.0.1:{port}"
        assert Bind.read("[::]:0").url(there, tls=True) == f"https://[::1]:{port}"
        with pytest.raises(TransportError, match="already in use; stop what is there"):
            Bind.read(f"127.0.0.1:{port}").listen()
    with pytest.raises(TransportError, match="cannot bind no.such.host.invalid:80"):
        Bind.read("no.such.host.invalid:80").listen()
