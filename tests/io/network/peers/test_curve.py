"""Keys at zmq+tcp: who may come in, who is told why not, and what files of keys may be."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import anyio
import pytest
import zmq
import zmq.auth

from streamenc import io
from streamenc.cli.main import main as streamenc_main
from streamenc.errors import OutputError, TransportError, UsageError
from streamenc.io.network.peers.curve import ANY, Allowed, make_keys, read_pair, read_public
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.io.network.test_zeromq import ANY_PORT, CODES, code_frame, opened, run, until


class Keys:
    """Pairs of two ends and of a stranger, and who is allowed."""

    def __init__(self, folder: Path) -> None:
        self.server, self.client, self.stranger, self.allow = (
            str(folder / name) for name in ("server.key", "client.key", "stranger.key", "allowed")
        )
        self.public = make_keys(self.server, False)
        client, self.foreign = make_keys(self.client, False), make_keys(self.stranger, False)
        Path(self.allow).write_text(f"# listeners\n{client}  the studio\n")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def publisher(keys: Keys, mode: str = "pub", **options: object) -> ZmqSink:
    return ZmqSink(ANY_PORT, mode, keys=keys.server, allow=keys.allow, **options)


@pytest.mark.parametrize("mode", ["pub", "credit"])
def test_who_is_allowed_reads_and_a_stranger_gets_nothing(
    mode: str, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        sink = publisher(keys, mode)
        async with opened(sink):
            await sink.open(CODES)
            good = ZmqSource(sink.endpoint, mode, keys=keys.client, server=keys.public)
            others = {
                "not among those that it allows": {"keys": keys.stranger, "server": keys.public},
                "not who has the key": {"keys": keys.client, "server": keys.foreign},
                "it wants keys": {},
            }
            async with opened(good), anyio.create_task_group() as tasks:
                await good.open()
                for reason, given in others.items():
                    tasks.start_soon(refused, sink.endpoint, mode, reason, given)
                frames = good.frames()
                for seq in range(20):
                    await sink.write(code_frame(seq))
                    assert (await anext(frames)).seq == seq
                await frames.aclose()
            assert sink.subscribers <= 1
        assert any("key is not allowed" in remark for remark in sink.remarks)

    async def refused(endpoint: str, mode: str, reason: str, given: dict[str, str]) -> None:
        source = ZmqSource(endpoint, mode, timeout_s=1, **given)
        async with opened(source):
            with pytest.raises(TransportError, match=reason):
                await source.open()

    run(main)
    assert f"whose key is not allowed: {keys.foreign}" in caplog.text


def test_the_end_that_connects_may_be_the_one_that_sends(keys: Keys) -> None:
    Path(keys.allow + ".pub").write_text(keys.public)

    async def main() -> None:
        source = io.source("zmq+tcp://127.0.0.1:0", bind=True, keys=keys.server, allow=keys.allow)
        async with opened(source), anyio.create_task_group() as tasks:
            tasks.start_soon(source.open)
            await until(lambda: not source.endpoint.endswith(":0"))
            query = f"keys={keys.client}&server={keys.allow}.pub&bind=no&wait_subscribers=1"
            sink = io.sink(f"{source.endpoint}?{query}")
            async with opened(sink):
                await sink.open(CODES)
                await sink.write(code_frame(0))
                assert (await anext(source.frames())).seq == 0

    run(main)


def test_messages_of_text(keys: Keys) -> None:
    async def main() -> None:
        source = io.source(
            f"text+zmq+tcp://127.0.0.1:0?bind&socket=pull&keys={keys.server}&allow=any"
        )
        async with opened(source):
            await source.open()
            with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
                socket.linger = 0
                socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
                socket.curve_serverkey = keys.public.encode()
                socket.connect(source.endpoint.removeprefix("text+zmq+"))
                socket.send(b"guten Morgen")
                with anyio.fail_after(20):
                    async for frame in source.frames():
                        assert frame.data[0, 0] == "guten Morgen"
                        break

    run(main)


def test_keys_from_the_environment(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMENC_ZMQ_KEYS", keys.server)
    with pytest.raises(UsageError, match="'keys' needs 'allow'"):
        ZmqSink(ANY_PORT)
    with pytest.raises(UsageError, match="'keys' needs 'server'"):
        ZmqSource("zmq+tcp://127.0.0.1:5")
    monkeypatch.setenv("STREAMENC_ZMQ_ALLOW", ANY)
    monkeypatch.setenv("STREAMENC_ZMQ_SERVER", keys.public)

    async def main() -> None:
        sink = ZmqSink(ANY_PORT, wait_subscribers=1)
        async with opened(sink), anyio.create_task_group() as tasks:
            tasks.start_soon(sink.open, CODES)
            await until(lambda: sink.endpoint != ANY_PORT)
            source = ZmqSource(sink.endpoint)
            async with opened(source):
                await source.open()
                with zmq.Context() as context, context.socket(zmq.SUB) as plain:
                    plain.linger = 0
                    plain.subscribe(b"")
                    plain.connect(sink.endpoint.removeprefix("zmq+"))
                    await sink.write(code_frame(0))
                    assert (await anext(source.frames())).seq == 0
                    assert not plain.poll(300)

    run(main)


def test_who_is_allowed_may_change(keys: Keys) -> None:
    allowed = Allowed(keys.allow)
    public = zmq.auth.load_certificate(keys.client)[0].decode()
    assert allowed.name(public) == "the studio" and allowed.name(keys.foreign) is None
    Path(keys.allow).write_text(f"{public}\n{keys.foreign}\tanother one\n")
    assert allowed.name(public) == public and allowed.name(keys.foreign) == "another one"
    Path(keys.allow).write_text("half a ke")
    assert allowed.name(keys.foreign) == "another one"  # until it makes sense again


def test_files_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    usual = os.umask(0)
    try:
        public = make_keys(str(path), False)
    finally:
        os.umask(usual)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert zmq.auth.load_certificate(path) == read_pair(str(path))
    assert read_pair(str(path))[0] == public.encode() == read_public(str(path))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists; pass --overwrite"):
        make_keys(str(path), False)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert make_keys(str(path), True) != public
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        read_pair(str(path))
    with pytest.raises(OutputError, match="cannot write"):
        make_keys(str(tmp_path / "no" / "my.key"), False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": "nowhere"}, "'keys' needs 'allow'"),
        ({"allow": "any"}, "'allow' needs 'keys'"),
        ({"server": "any"}, "'server' is for the end that connects"),
        ({"allow": "any", "bind": False}, "'allow' is for the end that binds"),
        ({"keys": "nowhere", "bind": False}, "'keys' needs 'server'"),
        ({"keys": "nowhere", "allow": "any"}, "cannot read 'nowhere'"),
        ({"keys": "/dev/zero", "allow": "any"}, "/dev/zero is no file of keys"),
        ({"server": "short", "bind": False}, "cannot read 'short'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ZmqSink(ANY_PORT, **options)


def test_files_that_are_no_keys(keys: Keys, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("hello\n")
    wrong.chmod(0o600)
    for options in (
        {"keys": str(wrong), "allow": keys.allow},
        {"keys": keys.server, "allow": str(wrong)},
        {"keys": keys.client, "server": str(wrong), "bind": False},
    ):
        with pytest.raises(UsageError, match="wrong"):
            ZmqSink(ANY_PORT, **options)
    with pytest.raises(UsageError, match="rights guard a path"):
        ZmqSink("zmq+ipc:///tmp/x", keys=keys.server, allow=ANY)


def test_a_zeromq_without_keys(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda what: False)
    with pytest.raises(UsageError, match="built without CURVE"):
        publisher(keys)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "my.key")

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            streamenc_main(["keys", path, *arguments])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    code, public, told = command()
    assert code == 0 and len(public.strip()) == 40 and "keep it to yourself" in told
    assert read_pair(path)[1].decode() not in public + told
    assert command("--show") == (0, public, "")
    code, out, told = command()
    assert (code, out) == (2, "") and "--overwrite" in told
    assert command("--overwrite")[0] == 0


def test_binding_to_all_without_keys_is_told(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        for host, options, told in (
            ("127.0.0.1", {}, False),
            ("*", {"keys": keys.server, "allow": keys.allow}, False),
            ("*", {}, True),
        ):
            caplog.clear()
            sink = ZmqSink(f"zmq+tcp://{host}:0", **options)
            async with opened(sink):
                with caplog.at_level(logging.WARNING):
                    await sink.open(CODES)
            assert ("open to everybody" in caplog.text) is told

    run(main)
