"""The client over TLS: whom it trusts."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra serve")

import streamenc.client
from streamenc import io
from streamenc.errors import TransportError, UsageError
from tests.support.streamserver import StreamServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem of localhost, beside key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    command = ["openssl", *words.split(), "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem"


def test_whom_it_trusts(certificate: Path) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, certificate.with_name("key.pem"))
    trusted = ssl.create_default_context(cafile=certificate)

    async def main() -> None:
        async with StreamServer(tls=serving) as server:
            with pytest.raises(TransportError, match="does not trust wss://localhost"):
                async with streamenc.client.connect(server.url, model="stand-in"):
                    pass
            async with streamenc.client.connect(server.url, model="stand-in", tls=trusted) as live:
                await live.send(np.arange(8, dtype=np.int16))
                await live.close()
                assert len([piece async for piece in live]) == 2
            room = io.source(f"{server.url}/v1/room/talk")
            with pytest.raises(TransportError, match="does not trust"):
                await room.open()
            with pytest.raises(UsageError, match="write wss://"):
                streamenc.client.connect("ws://localhost", model="stand-in", tls=trusted)

    asyncio.run(main())
