"""Writer: messages of `/v1/stream` as a client might send them, and some that none would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from streamenc.io.network import wire
from tests.serve.inputs.compressed import file_of, opus_packets, tones

OPUS = opus_packets(tones(9600))
WEBM = file_of("webm", "libopus", tones(48000), options={"live": "1"})
ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 255, 2**16, 2**31, 2**53, 2**63, 2**64 - 1, -(2**63), 0.5,
    1e308, "", "x", "nano", "s16", "\0", "é" * 300, [], [1], [0, 0], [2**31 - 1, 2**31 - 1], {},
    {"a": 1}, b"", b"\0" * 8,
]  # fmt: skip
FORMATS = ["f32", "s16", "opus", "media", "", "jpeg", "codes"]


class Writer:
    """Messages as a client might send them, by chance, and some that none would."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.format = self.chosen(FORMATS[:5])
        self.seq = self.pts = self.at = 0

    def chosen(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def learn(self, error: str) -> None:
        """What the server wants next."""
        if (found := re.search(r"message (\d+) is next", error)) is not None:
            self.seq = int(found[1])
        elif (found := re.search(r"and (\d+) is next", error)) is not None:
            self.pts = int(found[1])

    def script(self) -> Iterator[str | bytes]:
        yield self.opening() if self.chance(0.95) else self.any()
        if self.chance(0.03):
            yield wire.encode_snapshot(wire.StreamSnapshot(0, self.rng.bytes(50)))
        for _ in range(int(self.rng.integers(0, 40))):
            yield self.any()
        if self.chance(0.5):
            yield json.dumps({"type": "close"})

    def opening(self) -> str:
        fields = {
            "type": "open",
            "model": self.chosen(["nano", "nano", "mel"]),
            "format": self.format,
            "direction": self.chosen(["encode"] * 9 + ["echo", "decode"]),
            "window": int(self.chosen([0, 1, 64])),
            "policy": self.chosen(["block", "drop_oldest", "close"]),
        }
        if self.chance(0.1):
            fields["snapshot"] = True
        return self.mangled(fields) if self.chance(0.1) else json.dumps(fields)

    def any(self) -> str | bytes:
        kind = self.rng.random()
        if kind < 0.75:
            before = self.seq, self.pts, self.at
            packet = self.data(bad := self.chance(0.1))
            if bad:
                self.seq, self.pts, self.at = before  # it is sent again
            return packet
        if kind < 0.83:
            return self.mangled_packet()
        if kind < 0.86:
            return wire.encode_credit(wire.Credit(0, *map(int, self.rng.integers(0, 100, 2))))
        if kind < 0.87:
            return self.rng.bytes(int(self.rng.integers(0, 200)))
        message = self.control()
        self.seq += 1
        return self.mangled(message) if self.chance(0.1) else json.dumps(message)

    def control(self) -> dict[str, Any]:
        return self.chosen(
            [
                *[{"type": "flush"}, {"type": "mark", "id": "m"}, {"type": "snapshot"}] * 4,
                *[{"type": "set", "codebooks": int(self.rng.integers(1, 9))}] * 4,
                {"type": "set", "vad": True},
                {"type": "resume", "token": "0.x", "received": 0},
            ]
        )

    def data(self, bad: bool) -> bytes:
        how = self.chosen(["seq", "pts", "nan", "bytes"]) if bad else ""
        packet = self.packet(how)
        self.seq += 1
        return self.damaged(packet) if how == "bytes" else packet

    def packet(self, how: str) -> bytes:
        flags = int(self.chance(0.05))
        seq = self.seq + int(self.rng.integers(-3, 4)) if how == "seq" else self.seq
        if self.format == "opus":
            return wire.encode_bytes(self.chosen(OPUS), max(0, seq), 0, 0, flags)
        if self.format == "media":
            self.at += 3000
            return wire.encode_bytes(WEBM[self.at - 3000 : self.at], max(0, seq), 0, 0, flags)
        samples = self.rng.normal(0, 0.1, (1, int(self.rng.integers(0, 3000))))
        pts = int(self.rng.integers(-(10**6), 10**6)) if how == "pts" else self.pts
        self.pts += samples.shape[1]
        if self.format == "f32":
            samples[:, :1] = np.nan if how == "nan" else samples[:, :1]
            return wire.encode_samples(samples.astype(np.float32), max(0, seq), pts, flags)
        return wire.encode_samples((samples * 9000).astype(np.int16), max(0, seq), pts, flags)

    def damaged(self, packet: bytes) -> bytes:
        bad = bytearray(packet)
        for _ in range(int(self.rng.integers(1, 4))):
            bad[int(self.rng.integers(len(bad)))] = int(self.rng.integers(256))
        return bytes(bad[: self.rng.integers(1, len(bad) + 1)]) if self.chance(0.3) else bytes(bad)

    def mangled(self, fields: dict[str, Any]) -> str:
        """JSON with another value somewhere, or broken."""
        fields = dict(fields)
        odd = self.chosen([value for value in ODD if not isinstance(value, bytes)])
        fields[self.chosen([*fields, "rate", "channels", "codebooks", "size", "vad", "more"])] = odd
        text = json.dumps(fields)
        if self.chance(0.2):
            text = text[: int(self.rng.integers(len(text)))]
        return text

    def mangled_packet(self) -> bytes:
        """A packet with another value in one of its fields."""
        fields = [0, 0, self.seq, self.pts, 0, 0, 0, 1.0, "f4", [1, 2], bytes(8)]
        fields[int(self.rng.integers(len(fields)))] = self.chosen(ODD)
        kind = self.chosen([b"D"] * 6 + [b"C", b"S", b"I", b"E", b"B", b"X"])
        return wire.MAGIC + bytes((1, 3)) + kind + msgspec.msgpack.encode(fields)
