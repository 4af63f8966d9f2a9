"""Certificates and keys, and what is wrong with some."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
from websockets.asyncio.client import connect

from streamenc.errors import UsageError
from streamenc.serve.limits import Limits
from streamenc.serve.processes.tlsfiles import tls_context
from tests.serve.processes.doors import a_door
from tests.serve.processes.test_supervisor import short, supervised

__all__ = ["short"]  # a fixture

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem with key.pem, and other.pem, secret.pem: keys that do not do."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    openssl(
        "req", "-x509", *curve, *name, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"
    )
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / "other.pem")
    openssl(
        "ec",
        "-in",
        folder / "key.pem",
        "-aes256",
        "-passout",
        "pass:1234",
        "-out",
        folder / "secret.pem",
    )
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
    return folder


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("absent.pem", "key.pem", "cannot read the TLS certificate .*: No such file"),
        ("cert.pem", "absent.pem", "cannot read the TLS key .*: No such file"),
        ("key.pem", "cert.pem", "is no TLS certificate in PEM"),
        ("cert.pem", "cert.pem", "is no TLS key in PEM"),
        ("cert.pem", "other.pem", "other.pem is not that of"),
        ("cert.pem", "secret.pem", "is encrypted: decrypt it"),
        ("broken.pem", "key.pem", "cannot use .*broken.pem"),
    ],
)
def test_files_that_do_not_do(files: Path, certificate: str, key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tls_context(files / certificate, files / key)


def test_a_servers_processes_with_tls(files: Path, short: Path) -> None:
    tls = [str(files / "cert.pem"), str(files / "key.pem")]
    client = ssl.create_default_context(cafile=tls[0])
    with supervised(short, tls=tls) as server:
        assert server.url.startswith("https://127.0.0.1:")
        url = server.url.replace("127.0.0.1", "localhost")
        with urlopen(f"{url}/who", context=client, timeout=60) as response:
            assert response.read().startswith(b"0 ")


def test_a_server_with_tls(files: Path, tmp_path: Path) -> None:
    """Streams work; who speaks plainly, or says nothing, is gone soon."""
    context = tls_context(files / "cert.pem", files / "key.pem")
    client = ssl.create_default_context(cafile=str(files / "cert.pem"))

    async def main() -> None:
        limits = Limits(handshake_seconds=0.5)
        async with asyncio.timeout(30), a_door(tmp_path, limits, tls=context) as (door, port):
            streams = ["streamenc.v1"]
            url = f"wss://localhost:{port}/v1/stream"
            async with connect(url, ssl=client, subprotocols=streams) as there:  # type: ignore[arg-type]
                await there.send("here")
                assert str(await there.recv()).startswith("0 ")
            for said in (b"", b"GET /who HTTP/1.1\r\n\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(said)
                try:
                    assert b"200" not in await reader.read()
                except ConnectionError:
                    pass
                writer.close()
            assert not door.server_state.connections

    asyncio.run(main())
