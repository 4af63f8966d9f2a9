"""No password and no token of an address in any message or log; certificates are checked."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import subprocess
from pathlib import Path

import numpy as np
import pytest

from streamenc import io
from streamenc.cli.common import check_outputs
from streamenc.cli.look.inspection import inspect_file
from streamenc.errors import MediaError, StreamencError, TransportError, UsageError
from streamenc.io.media import containersource
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.videosource import VideoSource
from streamenc.io.reading import read_file
from tests.support.media import write_wav
from tests.support.program import streamenc
from tests.support.web import camera, file_of, jpegs, web

SECRET = "hush-hush"


@pytest.fixture(scope="module")
def closed() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def secret_addresses(port: int) -> list[str]:
    place = f"127.0.0.1:{port}"
    return [
        f"{scheme}://me:{SECRET}@{place}/x?token={SECRET}&password={SECRET}&fps=5"
        for scheme in ("rtsp", "http", "https", "rtmp", "tcp")
    ]


@pytest.mark.parametrize("number", range(5))
def test_what_does_not_open_keeps_its_secrets(
    closed: int, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    address = secret_addresses(closed)[number]
    said = []
    for kind in ("audio", "video", "av"):
        source = io.source(address, kind=kind, open_timeout_s=2)
        assert SECRET not in source.address and "127.0.0.1" in source.address
        with pytest.raises(StreamencError) as caught:
            source.open_blocking()  # type: ignore[attr-defined]
        said.append(str(caught.value))
    with pytest.raises(StreamencError) as caught:
        read_file(address)
    said.append(str(caught.value))
    assert not any(SECRET in text for text in (*said, caplog.text))


@pytest.mark.parametrize(
    "address",
    [
        f"rtsp://me:{SECRET}@cam/live",
        f"mqs://me:{SECRET}@broker/topic",
        f"mqtt://me:{SECRET}@broker/topic",
        f"mqtt://me:{SECRET}/x@broker/topic",
        f"mqtt://me:{SECRET}@broker:port/topic",
        f"mqtt://me:{SECRET}@broker/#",
        f"mqtt://me:{SECRET}@[broker/topic",
        f"http://cam/live?auth={SECRET}",
    ],
)
def test_what_is_refused_keeps_its_secrets(address: str) -> None:
    said = []
    for call in (
        lambda: io.source(address, nothing=1),
        lambda: io.sink(address),
        lambda: io.sink(address, nothing=1),
        lambda: io.source(address, kind="film"),
        lambda: io.source(address),
        lambda: inspect_file(address),
        lambda: check_outputs([address, address], False),
    ):
        try:
            call()
        except StreamencError as error:
            said.append(str(error))
    assert len(said) >= 4
    assert [text for text in said if SECRET in text] == []


def test_a_connection_that_is_made_again_keeps_its_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(containersource, "FIRST_PAUSE_SECONDS", 0.05)
    with web(camera(jpegs(2), 50)) as server, caplog.at_level(logging.DEBUG):
        address = server.address.replace("//", f"//me:{SECRET}@") + f"/?key={SECRET}"
        source = VideoSource(address, reconnect_for_s=0)
        source.open_blocking()
        while source.reconnects < 1:
            assert source.read() is not None
        server.over.set()
        with pytest.raises(TransportError) as caught:
            while source.read() is not None:
                pass
        source.close_blocking()
    assert "connected again" in caplog.text
    assert SECRET not in caplog.text + str(caught.value) + " ".join(source.remarks)


def test_the_command_line_keeps_secrets(closed: int, tmp_path: Path) -> None:
    (address, *_) = secret_addresses(closed)
    stats = tmp_path / "stats.json"
    for arguments in (
        ("encode", address, tmp_path / "a.jsonl", "-m", "mel", "--stats", stats),
        ("inspect", address),
        ("encode", address, address, address, "-m", "mel"),
    ):
        done = streamenc(*arguments)
        assert done.code != 0 and SECRET not in done.out + done.error
    assert not stats.exists() or SECRET not in json.dumps(json.loads(stats.read_text()))


def certificate(folder: Path, host: str) -> Path:
    """A key and a certificate that nobody has signed but itself, in one file."""
    path = folder / f"{host}.pem"
    made = subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", f"/CN={host}", "-addext", f"subjectAltName={host}",
            "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"),
        ],
        capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("there is no openssl to make a certificate with")
    path.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return path


def test_certificates_are_checked(tmp_path: Path) -> None:
    try:
        good, other = certificate(tmp_path, "IP:127.0.0.1"), certificate(tmp_path, "DNS:other.host")
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    data = file_of(write_wav(tmp_path / "a.wav", np.zeros((1, 8000)), 8000).read_bytes())

    def samples(pem: Path, **options: object) -> int:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)
        with web(lambda path, send: send(data), tls) as server:
            source = MediaSource(f"{server.address}/a.wav", **options)  # type: ignore[arg-type]
            try:
                source.open_blocking()
                return sum(frame.duration for frame in iter(source.read, None))  # type: ignore[union-attr]
            finally:
                source.close_blocking()

    with pytest.raises(MediaError, match="certificate is not trusted.*ca_file.*insecure=yes"):
        samples(good)
    assert samples(good, insecure=True) == 8000
    assert samples(good, ca_file=str(good)) == 8000
    with pytest.raises(MediaError, match="certificate is not trusted"):
        samples(other, ca_file=str(other))  # of another name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("folder", None, "is a folder; name one file in it"),
        ("*.wav", b"", r"a pattern, and 2 files match it; name one of them, such as '.*a\.wav'"),
        ("%04d.png", b"", r"numbered images .*ffmpeg -i %04d\.png"),
        (
            "big.wav",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            "pointer of Git LFS.*git lfs pull",
        ),
        ("note.wav", b"to whom it may concern, with regards\n" * 9, "it holds text"),
    ],
)
def test_what_was_meant_is_said(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    for other in ("a.wav", "b.wav"):
        (tmp_path / other).write_bytes(b"x")
    if content is None:
        (tmp_path / name).mkdir()
    elif content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=message):
        MediaSource(str(tmp_path / name)).open_blocking()


def test_media_schemes_are_named() -> None:
    with pytest.raises(UsageError, match="known are .*http, https, .*rtmp, .*rtsp, .*srt, .*udp"):
        io.source("htp://host/a.wav")
