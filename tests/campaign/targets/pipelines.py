"""Pipeline files: TOML that is deep, or changed, and tables whose values are absurd."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from streamenc.pipeline.builder import Pipeline
from streamenc.pipeline.pipelinefile import ModelTable, read_pipeline
from tests.campaign.target import mutated

TABLES: tuple[dict[str, Any], ...] = (
    {"source": "test:bars", "kind": "", "realtime": False, "align": False, "latency_ms": 0.0},
    {"source": "talk.wav", "options": {"stream": 0, "channel": 0, "scale": 1.0}},
    {"source": "pcm:-", "options": {"rate": 16000, "format": "s16le", "chunk_ms": 20}},
    {"source": "zmq+tcp://127.0.0.1:1", "options": {"hwm": 5, "mode": "credit"}},
    {"source": "screen:", "options": {"fps": 25, "offset": "0,0"}},
    {"source": "text:a.txt", "options": {"max_bytes": 10, "partials": True}},
    {"resample": 16000, "after": "a", "channels": 1, "quality": "HQ", "channel": "0,1"},
    {"encode": "nano", "after": "a", "codebooks": 8, "hops": 1, "conceal_ms": 5.0, "size": "8x8"},
    {"decode": "", "after": "a", "layout": "", "track": 0, "device": "cpu"},
    {"vad": "speech", "after": "a", "threshold": 0.5, "silence_ms": 500.0, "padding_ms": 9.0},
    {"node": "no.such:Thing", "after": "a", "options": {"x": 1}},
    {"merge": ["a", "a"], "max_wait_ms": 500.0, "capacity": 4, "policy": "latest"},
    {"sink": "null:", "after": "a", "capacity": 4, "policy": "block", "max_age_ms": 5.0},
    {"sink": "x.arrows", "after": "a", "options": {"flush_ms": 200, "overwrite": True}},
    {"sink": "x.mp4", "after": "a", "options": {"crf": 20, "fps": 25, "max_gap_s": 3}},
    {"sink": "mqtt://127.0.0.1:1/t", "after": "a", "options": {"qos": 1, "keepalive": 30}},
)
# As TOML writes them.
ABSURD = (
    "0", "-1", "1e308", "-1e308", "nan", "inf", "-inf", "1e-320", "9223372036854775807", "true",
    "0x" + "f" * 5000, "1" * 400, "1" * 5000, '""', '"x"', '"\\u001b[2J"', '"\\u0000"', '"١٢"',
    '"１２"', '"1_000"', '"1/0"', '"30000/1001"', '"1e999999/3"', '"' + "9" * 5000 + '"',
    '"' + "x" * 5000 + '"', '"zmq+tcp://[::1"', '"https://[bad"', '"mqtt://[::"', '"-"', '"0x0"',
    '"99999x99999"', "[]", "[[]]", "[1, 2]", "{}", "{a = 1}", "1979-05-27", "07:32:00",
    "[" * 900 + "]" * 900, '"a"', '"nul\\u0000:x"', '"nan"', '"inf"', '"a/../../b.arrows"',
)  # fmt: skip
DEEP = (
    "a" + ".a" * 30_000, "[" + "a." * 30_000 + "a]", "x = " + "[" * 100_000, "nodes = 1",
    "x = {" + "a." * 9_000 + "a = 1}", "x = " + "{a = " * 5000, 'x = "' + "é" * 300_000 + '"',
    "\n".join("[" + "a." * 400 + f"b{n}]" for n in range(500)), "x = 0x" + "f" * 200_000,
    "\n".join("[" + "a." * 30 + f"b{n}]" for n in range(3000)), "x = " + "1" * 200_000,
    "[[nodes.a]]\n" * 20_000, "# " + ". " * 400_000, "x" * 900_000,
    "nodes.a.source = 'test:'\n" + "nodes.b." * 40 + "x = 1",
)  # fmt: skip


class Pipelines:
    """A file, as `streamenc run` reads it, up to where it would open anything."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path) -> None:
        self._path = folder / "pipeline.toml"

    def case(self, rng: Random) -> bytes:
        what = rng.random()
        if what < 0.04:
            return rng.choice(DEEP).encode()
        tables = [{"source": "test:"}, *(rng.choice(TABLES) for _ in range(rng.choice((1, 2, 3))))]
        lines = []
        if rng.random() < 0.3:
            key = rng.choice(("deadline_ms", "max_age_ms"))
            lines.append(f"{key} = {rng.choice(ABSURD)}")
        for name, table in zip("abcd", tables, strict=False):
            values = {key: _toml(value) for key, value in table.items()}
            options = table.get("options", {})
            if rng.random() < 0.7:
                values[rng.choice([*values, "align", "capacity"])] = rng.choice(ABSURD)
            if options and rng.random() < 0.5:
                inside = {key: _toml(value) for key, value in options.items()}
                inside[rng.choice(list(inside))] = rng.choice(ABSURD)
                values["options"] = "{" + ", ".join(f"{k} = {v}" for k, v in inside.items()) + "}"
            if rng.random() < 0.05:
                name = rng.choice(('""', '"\\u001b[2J"', '"' + "n" * 9000 + '"', "a"))
            lines.append(f"[nodes.{name}]")
            lines += [f"{key} = {value}" for key, value in values.items()]
        text = "\n".join(lines).encode()
        return mutated(text, rng) if rng.random() < 0.3 else text

    def take(self, data: bytes) -> None:
        self._path.write_bytes(data)
        file = read_pipeline(self._path)
        pipeline = Pipeline(deadline_ms=file.deadline_ms, max_age_ms=file.max_age_ms)
        for name, table in file.tables(self._path):
            # Weights are no business of this; and no name of a program of others is imported.
            if not isinstance(table, ModelTable) and "node" not in table.__struct_fields__:
                table.add(name, pipeline)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def target(folder: Path) -> Pipelines:
    return Pipelines(folder)
