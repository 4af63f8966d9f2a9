"""Curve: who may come in at a ZeroMQ port, by keys (CURVE, https://rfc.zeromq.org/spec/26/).

A pair of keys is a file as ZeroMQ's other programs write them (`zmq.auth.load_certificate` reads
it). Its public key, 40 characters, is what the other end is given.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

import zmq
from zmq.utils import z85

from streamenc.errors import OutputError, UsageError
from streamenc.io.network.packets import Complaints

MAX_FILE_BYTES = 1 << 20
MAX_REQUESTS = 64
ANY = "any"
# In front of the name of an option.
ENVIRONMENT = "STREAMENC_ZMQ_"
_KEY = r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"
_LINE = re.compile(rf"({_KEY})(\s.*)?")
_PAIR = """# Made by streamenc. Keep this file to yourself: whoever has it is you.
metadata
curve
    public-key = "{public}"
    secret-key = "{secret}"
"""


def make_keys(path: str, overwrite: bool) -> str:
    """Writes a new pair of keys to a file that its owner alone may read; gives the public one.

    Raises:
        UsageError: The file is there, and `overwrite` is false; or ZeroMQ was built without keys.
        OutputError: It cannot be written.
    """
    _check_built()
    public, secret = (key.decode() for key in zmq.curve_keypair())
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_PAIR.format(public=public, secret=secret))
        try:
            if overwrite:
                os.replace(partial, path)
            else:
                os.link(partial, path)  # which never replaces
        finally:
            if os.path.lexists(partial):
                os.unlink(partial)
    except FileExistsError:
        raise UsageError(
            f"{path} exists; pass --overwrite to replace it: whoever was given its public key then "
            "needs the new one; or name another file"
        ) from None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}") from None
    return public


def read_pair(path: str) -> tuple[bytes, bytes]:
    """(public, secret) of a file of `make_keys`. Raises UsageError."""
    text = _read("keys", path, secret=True)
    found = re.search(rf'^\s*secret-key\s*=\s*"({_KEY})"', text, re.MULTILINE)
    if found is None:
        raise UsageError(
            f"option 'keys': {path} has no secret key; `streamenc keys FILE` makes one"
        )
    secret = found[1].encode()
    try:
        return zmq.curve_public(secret), secret
    except (ValueError, zmq.ZMQError) as error:
        raise UsageError(f"option 'keys': the secret key in {path} is none: {error}") from None


def read_public(given: str) -> bytes:
    """A public key, as it is or in a file, also in one of a pair. Raises UsageError."""
    if re.fullmatch(_KEY, given):
        return given.encode()
    text = _read("server", given)
    found = re.search(rf'^\s*public-key\s*=\s*"({_KEY})"', text, re.MULTILINE)
    found = found or re.match(rf"\s*({_KEY})\s*$", text)
    if found is None:
        raise UsageError(
            f"option 'server': {given} has no public key, which `streamenc keys FILE` prints"
        )
    return found[1].encode()


class Allowed:
    """Public keys that may come in: a file with one on each line, and perhaps a name behind it.

    It is read again when it has changed. Raises UsageError where it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path, self._complaints = path, Complaints()
        self._keys: dict[str, str] = {}
        self._seen: tuple[int, ...] = ()
        if path != ANY:
            self._renew()

    def name(self, public: str) -> str | None:
        """Who it is, in words; None for one that may not come in."""
        if self._path == ANY:
            return ANY
        try:
            self._renew()
        except UsageError as error:  # it is being written, say: what was allowed before still is
            self._complaints.warn(str(error))
        return self._keys.get(public)

    def _renew(self) -> None:
        try:
            status = os.stat(self._path)
        except (OSError, ValueError) as error:
            raise UsageError(f"option 'allow': cannot read {self._path}: {error}") from None
        seen = status.st_mtime_ns, status.st_ino, status.st_size
        if seen == self._seen:
            return
        keys = {}
        for number, line in enumerate(_read("allow", self._path).splitlines(), 1):
            if line.strip() and not line.startswith("# "):
                found = _LINE.fullmatch(line.strip())
                if found is None:
                    raise UsageError(
                        f"option 'allow': line {number} of {self._path} does not begin with a "
                        "public key of 40 characters"
                    )
                keys[found[1]] = (found[2] or "").strip() or found[1]
        self._keys, self._seen = keys, seen


class Curve:
    """The keys of one end, from its options or the environment; `active` where there are any.

    Raises:
        UsageError: They do not go together, or cannot be read.
    """

    def __init__(
        self,
        address: str,
        bind: bool,
        keys: str = "",
        server: str = "",
        allow: str = "",
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._bind = bind
        self.active = False
        self.refused = Complaints()
        if address.startswith("zmq+ipc:"):
            if keys or server or allow:
                raise UsageError(f"{address}: keys are for zmq+tcp; rights guard a path")
            return
        keys = keys or environment.get(f"{ENVIRONMENT}KEYS", "")
        if bind:
            if server:
                raise UsageError("option 'server' is for the end that connects; this one binds")
            allow = allow or environment.get(f"{ENVIRONMENT}ALLOW", "")
        else:
            if allow:
                raise UsageError("option 'allow' is for the end that binds; this one connects")
            server = server or environment.get(f"{ENVIRONMENT}SERVER", "")
        self.active = bool(keys or server or allow)
        if not self.active:
            return
        _check_built()
        if bind and not keys:
            raise UsageError("option 'allow' needs 'keys', a file of `streamenc keys FILE`")
        if bind and not allow:
            raise UsageError(
                "option 'keys' needs 'allow' where this end binds: a file with the public keys of "
                f"those who may come in, one a line; or {ANY!r} for anybody"
            )
        if not bind and not server:
            raise UsageError(
                "option 'keys' needs 'server' where this end connects: the other end's public key, "
                "or a file with it"
            )
        self._pair = read_pair(keys) if keys else zmq.curve_keypair()
        self._allowed = Allowed(allow) if bind else None
        self._server = read_public(server) if server else b""

    def apply(self, context: zmq.Context[Any], socket: Any) -> Porter | None:
        """Before the socket is bound or connected; gives who answers, at an end that binds."""
        if not self.active:
            return None
        socket.curve_publickey, socket.curve_secretkey = self._pair
        if self._allowed is None:
            socket.curve_serverkey = self._server
            return None
        socket.curve_server = True
        socket.zap_domain = b"streamenc"
        return Porter(context, self._allowed, self.refused)


class Porter:
    """Says who may come in, when ZeroMQ asks at `socket` (ZAP, https://rfc.zeromq.org/spec/27/)."""

    def __init__(self, context: zmq.Context[Any], allowed: Allowed, refused: Complaints) -> None:
        self._allowed, self._refused = allowed, refused
        self.socket: Any = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> None:
        """All that was asked."""
        for _ in range(MAX_REQUESTS):
            try:
                asked = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if len(asked) < 8:
                continue
            sender, empty, version, request, _, host, _, mechanism, *credentials = asked
            name = None
            if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
                public = z85.encode(credentials[0]).decode()
                name = self._allowed.name(public)
                if name is None:
                    self._refused.warn(
                        f"refused a peer from {host.decode(errors='replace')}, whose key is not "
                        f"allowed: {public}"
                    )
            verdict = (b"200", b"OK") if name is not None else (b"400", b"not allowed")
            self.socket.send_multipart([sender, empty, version, request, *verdict, b"", b""])


def _check_built() -> None:
    if not zmq.has("curve"):
        raise UsageError(
            f"ZeroMQ {zmq.zmq_version()} here was built without CURVE, so that there are no keys; "
            "the wheels of pyzmq have it (pip install --force-reinstall pyzmq)"
        )


def _read(option: str, path: str, secret: bool = False) -> str:
    """A small file of text. Raises UsageError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise UsageError(f"option {option!r}: {path} is no file of keys")
        if secret and status.st_mode & 0o077:
            raise UsageError(
                f"option {option!r}: others may read {path}, which has a secret key: chmod 600 it"
            )
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise UsageError(f"option {option!r}: cannot read {path!r}: {error}") from None
