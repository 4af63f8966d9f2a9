"""Certificates of whatever is read over TLS: of each scheme, and of each part of a playlist."""

from __future__ import annotations

import datetime
import io
import ipaddress
import logging
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
import pytest

from streamenc.errors import MediaError
from streamenc.io.media.audiosource import MediaSource
from tests.support.web import file_of, web

Certificate = Callable[..., Path]
RATE = 24_000


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    """A key and a certificate that nobody has signed but itself, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def made(name: str, *, days: int = 2, host: str = "127.0.0.1") -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.IPAddress(ipaddress.ip_address(host))]
        signed = (
            x509.CertificateBuilder()
            .subject_name(who)
            .issuer_name(who)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=9))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / f"{name}.pem"
        encoding = serialization.Encoding.PEM
        private = key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + signed.public_bytes(encoding))
        return path

    return made


def tls(pem: Path | None) -> ssl.SSLContext | None:
    if pem is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def transport_stream() -> bytes:
    """A second of sound."""
    made = io.BytesIO()
    with av.open(made, "w", format="mpegts") as out:
        stream = out.add_stream("aac", rate=RATE)
        noise = np.random.default_rng(0).normal(size=(1, RATE)).astype(np.float32) / 10
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.rate, frame.pts = RATE, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    return made.getvalue()


def read(address: str, **options: object) -> int:
    """The samples of a source."""
    source = MediaSource(address, open_timeout_s=5, **options)  # type: ignore[arg-type]
    try:
        source.open_blocking()
        return sum(frame.duration for frame in iter(source.read, None))  # type: ignore[union-attr]
    finally:
        source.close_blocking()


@pytest.mark.parametrize("parts", ["trusted", "another", "expired", "of another host", "plain"])
def test_parts_of_a_playlist_have_certificates_too(
    certificate: Certificate, parts: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trusted = certificate("trusted")
    pem = {
        "trusted": lambda: trusted,
        "another": lambda: certificate("another"),
        "expired": lambda: certificate("expired", days=-1),
        "of another host": lambda: certificate("elsewhere", host="127.9.9.9"),
        "plain": lambda: None,
    }[parts]()
    ca_file = trusted
    if parts in ("expired", "of another host"):  # by whom, is not what is wrong with it
        ca_file = trusted.with_name("both.pem")
        ca_file.write_bytes(trusted.read_bytes() + pem.read_bytes())
    sound = transport_stream()
    with ExitStack() as stack:
        there = stack.enter_context(web(lambda path, send: send(file_of(sound)), tls(pem)))
        playlist = (
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n"
            f"#EXTINF:1,\n{there.address}/1.ts?token=hush-hush\n#EXTINF:1,\n{there.address}/2.ts\n"
            "#EXT-X-ENDLIST\n"
        ).encode()
        kind = "application/vnd.apple.mpegurl"
        here = stack.enter_context(
            web(lambda path, send: send(file_of(playlist, kind)), tls(trusted))
        )
        address = f"{here.address}/a.m3u8"
        if parts in ("trusted", "plain"):
            assert read(address, ca_file=str(ca_file)) > 2 * RATE
            assert there.paths == ["/1.ts?token=hush-hush", "/2.ts"]
        else:
            with pytest.raises(MediaError, match="which a playlist names: .*certificate") as caught:
                read(address, ca_file=str(ca_file))
            assert there.paths == [] and "hush-hush" not in str(caught.value)
            assert read(address, insecure=True) > 2 * RATE
    said = capfd.readouterr()
    assert "dropped" not in said.out + said.err  # by PyAV, with a traceback


@pytest.mark.parametrize("scheme", ["https", "rtsps", "rtmps"])
@pytest.mark.parametrize("wrong", ["nobody knows it", "expired", "of another host"])
def test_each_scheme_looks_at_certificates(
    certificate: Certificate, scheme: str, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    days, host = (-1 if wrong == "expired" else 2), "127.0.0.1"
    pem = certificate("its", days=days, host="127.9.9.9" if wrong == "of another host" else host)
    options = {} if wrong == "nobody knows it" else {"ca_file": str(pem)}
    with web(lambda path, send: None, tls(pem)) as server:
        address = f"{scheme}://{server.address.partition('://')[2]}/a/b"
        with pytest.raises(MediaError, match="certificate is not trusted.*insecure=yes"):
            read(address, **options)
        assert server.paths == []  # nothing was said to it
        assert "insecure" not in caplog.text
        if scheme == "rtmps":  # whose first bytes are no text, as this server wants it
            return
        with caplog.at_level(logging.WARNING), pytest.raises(MediaError) as caught:
            read(address, insecure=True, read_timeout_s=2)
        assert "certificate" not in str(caught.value) and server.paths
    assert "any certificate is taken (insecure)" in caplog.text


@pytest.mark.parametrize("named", ["file:///etc/passwd", "/etc/passwd", "gopher://127.0.0.1/x"])
def test_a_playlist_opens_nothing_but_web_servers(named: str) -> None:
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{named}\n#EXT-X-ENDLIST\n".encode()
    with web(lambda path, send: send(file_of(playlist))) as here, pytest.raises(MediaError):
        read(f"{here.address}/a.m3u8")
