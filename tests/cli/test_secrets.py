"""No secret is in what a command prints, logs or writes, in whichever way it fails; and secrets may
come from a variable or a file."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from streamenc import addresses
from streamenc.addresses import discreet, filled_in, filled_in_options, remember_secret
from streamenc.errors import UsageError
from tests.support.media import write_wav
from tests.support.program import Done, streamenc
from tests.support.web import file_of, web

Call = Callable[..., Done]
SECRET = "hush+hush/%41 \"'é"
SCHEMES = [
    *("rtsp", "https", "mqtt", "mqs"),
    *(
        pytest.param(scheme, marks=pytest.mark.slow)
        for scheme in ("rtmp", "tcp", "wss", "zmq+tcp", "s3", "gopher")
    ),
]
# ADDRESS is the address; a file's content stands beside its name.
WAYS: dict[str, tuple[str, ...]] = {
    "source": ("encode", "ADDRESS", "null:", "-m", "mel", "--stats", "stats.json", "-v"),
    "twice": ("encode", "ADDRESS", "ADDRESS", "ADDRESS", "-m", "mel"),
    "model": ("encode", "none.wav", "null:", "-m", "ADDRESS"),
    "no output": ("encode", "ADDRESS"),
    "too many": ("inspect", "ADDRESS", "ADDRESS"),
    "no option": ("listen", "ADDRESS", "a.jsonl", "--ADDRESS"),
    "inspect": ("inspect", "ADDRESS"),
    "png": ("inspect", "ADDRESS", "--png", "a.png"),
    "decode": ("decode", "ADDRESS", "a.wav"),
    "ending": ("decode", "none.arrows", "ADDRESS"),
    "models": ("models", "ADDRESS"),
    "help": ("help", "ADDRESS"),
    "verify": ("verify", "ADDRESS"),
    "export": ("export", "ADDRESS", "a.onnx"),
    "run": ("run", "good.toml", "--stats", "stats.json"),
    "unknown key": ("run", "key.toml"),
    "unknown option": ("run", "option.toml"),
    "wrong type": ("run", "type.toml"),
    "broken": ("run", "broken.toml"),
    "sink": ("run", "sink.toml"),
    "pipeline": ("run", "ADDRESS"),
}
PIPELINES = {
    "good": "[nodes.a]\nsource = 'ADDRESS'\noptions = {}\n[nodes.b]\nsink = 'null:'\nafter = 'a'\n",
    "key": "[nodes.a]\nsource = 'ADDRESS'\nADDRESS = 1\n",
    "option": "[nodes.a]\nsource = 'ADDRESS'\noptions = {nothing = 'ADDRESS'}\n",
    "type": "[nodes.a]\nsource = ['ADDRESS']\n",
    "broken": "[nodes.a]\nsource = ADDRESS\n",
    "sink": "[nodes.a]\nsource = 'none.wav'\n[nodes.b]\nsink = 'ADDRESS'\nafter = 'a'\n",
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What this test's secrets are does not concern the next one."""
    before = {*addresses._secrets}
    yield
    addresses._secrets.clear()
    addresses._secrets.update(before)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def closed() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def leaks(text: str, secret: str) -> bool:
    return any(form in text for form in (secret, quote(secret, safe=""), repr(secret)[1:-1]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_way_to_fail_tells_a_secret(
    place: Path, closed: int, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    secret = quote("hush-hush/%41\"'é", safe="")
    path = "v1/room/x" if scheme == "wss" else "x"
    address = (
        f"{scheme}://me:{secret}@127.0.0.1:{closed}/{path}"
        f"?token={secret}&X-Amz-Signature={secret}&passphrase={secret}&fps=5"
    )
    for name, content in PIPELINES.items():
        Path(f"{name}.toml").write_text(content.replace("ADDRESS", address))
    told = []
    with caplog.at_level(logging.DEBUG):
        for way, words in WAYS.items():
            done = streamenc(*(word.replace("ADDRESS", address) for word in words))
            assert done.code != 0 or way == "help", way
            text = done.out + done.error + caplog.text
            stats = Path("stats.json")
            text += stats.read_text() if stats.exists() else ""
            stats.unlink(missing_ok=True)
            caplog.clear()
            if leaks(text, secret):
                told.append(way)
    assert told == []


@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_comes_from_a_variable_or_a_file(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sound = file_of(write_wav(place / "a.wav", np.zeros((1, 1600)), 16_000).read_bytes())
    monkeypatch.setenv("TOKEN", SECRET)
    Path("token").write_text(f"{SECRET}\nand a second line\n", encoding="utf-8")
    named = "{env:TOKEN}" if kind == "env" else f"{{file:{place}/token}}"
    with web(lambda path, send: send(sound)) as server:
        address = f"{server.address}/a.wav?token={named}"
        done = call("encode", address, "null:", "-m", "mel", "--stats", "s.json")
        assert done.code == 0, done.error
        Path("p.toml").write_text(
            f"[nodes.a]\nsource = '{address}'\n[nodes.b]\nsink = 'null:'\nafter = 'a'\n"
        )
        assert call("run", "p.toml", "-q").code == 0
        assert {*server.paths} == {f"/a.wav?token={quote(SECRET, safe='')}"}
    assert not leaks(done.out + done.error + Path("s.json").read_text(), SECRET)


@pytest.mark.parametrize(
    ("address", "filled"),
    [
        ("rtsp://admin:{env:PW}@cam/live?x={env:PW}", "rtsp://admin:p%40%2F%3Fw@cam/live?x=p%40%2F%3Fw"),
        ("rtsp://{env:PW}:{file:DIR/pw}@cam:554/a", "rtsp://p%40%2F%3Fw:first@cam:554/a"),
        ("rtmp://host/app/{env:PW}", "rtmp://host/app/p@/?w"),  # a stream's key, as it is
        ("srt://h:1?passphrase={file:DIR/pw}", "srt://h:1?passphrase=first"),
        ("mic:USB?rate=48000", "mic:USB?rate=48000"),
        ("{env:PW}.wav", "{env:PW}.wav"),  # the name of a file
    ],
)  # fmt: skip
def test_where_secrets_are_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, filled: str
) -> None:
    monkeypatch.setenv("PW", "p@/?w")
    (tmp_path / "pw").write_text("first\nsecond\n")
    assert filled_in(address.replace("DIR", str(tmp_path))) == filled
    options = {"key": "{env:PW}", "hwm": 3, "mode": "pub"}
    assert filled_in_options(options) == {"key": "p@/?w", "hwm": 3, "mode": "pub"}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{env:NOBODY_SET_THIS}", "NOBODY_SET_THIS, which is not set"),
        ("{file:/no/such}", "cannot be read: No such file"),
        ("{file:/dev/null}", "which is empty"),
        ("{file:/bin}", "cannot be read: Is a directory"),
    ],
)
def test_a_secret_that_is_not_there(place: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filled_in(f"mqtt://me:{place}@host/topic")


def test_others_who_log_a_secret_tell_none() -> None:
    remember_secret(SECRET)
    formatter = addresses.PlainFormatter("streamenc: %(message)s")
    try:
        raise ValueError(f"cannot log in with {SECRET}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "got %s", (SECRET,), None)
        record.exc_info = sys.exc_info()
    text = formatter.format(record)
    assert "ValueError" in text and not leaks(text, SECRET)
    assert discreet("abc") == "abc"
    remember_secret("abc")  # too short to be told from a word
    assert discreet("abc") == "abc"


def test_a_fault_of_ours_shows_where_but_no_secret(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError(f"never thought of {arguments}")

    monkeypatch.setattr("streamenc.cli.look.inspection.inspect_file", fail)
    done = call("inspect", f"rtsp://me:{quote(SECRET, safe='')}@cam/live")
    assert done.code == 1 and "Traceback" in done.error and "never thought of" in done.error
    assert not any(leaks(done.error, form) for form in (SECRET, quote(SECRET, safe="")))
