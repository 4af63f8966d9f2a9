"""Configs of every family: a small checkpoint, whose JSON files say absurd things.

A case is JSON: {"row": "mimi", "edits": [["config.json", ["rope_parameters", "rope_theta"], 0]]}.
An edit with the path null takes the place of the whole file; a value {"$": "deep"} and the like
stands for what would be long.
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import streamenc
from streamenc.models.model import Model
from streamenc.spec import ImageSize
from streamenc.stream import Stream
from streamenc.testing.signals import random_signal
from tests.support import zoo

NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    64,
    1000,
    65_535,
    65_536,
    10**6,
    2**31 - 1,
    2**31,
    2**63,
    10**30,
    10**400,
)
ABSURD = (
    *NUMBERS,
    *(-1, -(2**63), 0.0, 0.5, 1.0, 1e-30, 1e30, 1e308, -1.5, 65_536.0),
    *(None, True, False, "", "gelu", "3", "\x1b[2J", "../../etc"),
    *([], {}, [1], [0], [[]], [2, 2], [-1, 2], [2**31] * 3, [1] * 20, [True, 2], [1.5, 2]),
    *([None] * 4, [[1, 2]] * 3, {"a": 1}, [{}] * 2, ["full_attention"] * 2),
    *({"$": "NaN"}, {"$": "Infinity"}, {"$": "-Infinity"}, {"$": "text"}, {"$": "numbers"}),
)
WHOLE = (
    *("deep", "deeper", "hundreds", "objects", "strings", "keys"),
    *("list", "latin", "empty", "NaN", "digits"),
)
# What preprocessor_config.json and processor_config.json may say; the small models have none.
PREPARED: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_center_crop": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"height": 8, "width": 8, "shortest_edge": 8},
    "crop_size": {"height": 8, "width": 8},
    "crop_pct": 0.9,
    "resample": 2,
    "sampling_rate": 16_000,
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 512,
    "win_length": 400,
    "preemphasis": 0.97,
    "chunk_length": 30,
    "global_log_mel_max": 1.5,
    "target_dB_FS": -25,
    "eps": 1e-6,
}
# A step is tried on no more numbers than these: what is larger is what somebody asked for.
MAX_VALUES = 1 << 16


@functools.cache
def saved(name: str) -> Path:
    """The small checkpoint of a row of the zoo, saved once in this process."""
    folder = Path(tempfile.mkdtemp(prefix="streamenc-configs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    row = zoo.row(name)
    assert row.save is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row.save(folder)
        load_and_step(folder, row)  # what is imported and compiled once counts for no case
    return folder


# Within a test only those that are made at once, and of which the kept inputs are.
QUICK = ("nano", "moss", "snac", "bert")
ALL = [row.name for row in zoo.ROWS if row.save is not None]


def rows(known: Sequence[str]) -> list[str]:
    """Of `known`, those that cases are made of here."""
    return [name for name in known if name in QUICK or "PYTEST_CURRENT_TEST" not in os.environ]


class Configs:
    """`streamenc.load` and a step, of a folder whose configs were edited."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for row in QUICK:  # first of all, as making them takes more than a case may
            saved(row)

    def case(self, rng: Random) -> bytes:
        row = rng.choice(rows(ALL))
        files = {path.name: path for path in saved(row).rglob("*.json")}
        files.pop("generation_config.json", None)
        edits: list[list[Any]] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            beside = rng.random() < 0.15 or not files
            name = rng.choice(("preprocessor_config.json", "processor_config.json"))
            name = name if beside else rng.choice(sorted(files))
            if rng.random() < 0.03:
                edits = [[name, None, {"$": rng.choice(WHOLE)}]]
                break
            content = PREPARED if beside else json.loads(files[name].read_text())
            path = rng.choice(list(_paths(content)) or [("x",)])
            if beside and name == "processor_config.json":
                path = (rng.choice(("feature_extractor", "image_processor")), *path)
            edits.append([name, list(path), _absurd(rng, content, path)])
        return json.dumps({"row": row, "edits": edits}).encode()

    def take(self, data: bytes) -> None:
        case = json.loads(data)
        row, whole = zoo.row(case["row"]), saved(case["row"])
        shutil.rmtree(self._folder / "model", ignore_errors=True)
        shutil.copytree(whole, self._folder / "model", copy_function=_linked)
        for name, path, value in case["edits"]:
            _edit(self._folder / "model", name, path, value)
        load_and_step(self._folder / "model", row)


def target(folder: Path) -> Configs:
    return Configs(folder)


def load_and_step(folder: Path, row: zoo.Row) -> None:
    sides: Any = "both" if len(row.sides) == 2 else "encoder"
    codec = streamenc.load(folder, part=sides, **row.options)
    for side in row.sides:
        _step(getattr(codec, side))


def _step(model: Model) -> None:
    spec = model.spec
    image = spec.input.image or ImageSize()
    pixels = math.prod(image.size or (2 * image.unit, image.unit)) if spec.input.axes else 1
    if pixels * spec.input.channels * (spec.lead + spec.hop) <= MAX_VALUES:
        stream = Stream(model)
        stream.push(random_signal(model, spec.lead + spec.hop))
        stream.flush()


def _paths(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value, at any depth."""
    inner: Any = ()
    if isinstance(content, dict):
        inner = content.items()
    elif isinstance(content, list):
        inner = enumerate(content[:4])
    for key, value in inner:
        yield (*at, key)
        yield from _paths(value, (*at, key))


def _absurd(rng: Random, content: Any, path: tuple[Any, ...]) -> Any:
    """Something absurd, or something like what stands there."""
    for key in path:
        content = content[key] if isinstance(content, list) or key in content else None
        if content is None:
            break
    if rng.random() < 0.4:
        match content:
            case bool():
                return not content
            case int():
                return rng.choice((content + 1, content - 1, 2 * content, 10 * content, -content))
            case float():
                return rng.choice((-content, 1e6 * content, content / 1e6, int(content)))
            case str():
                return rng.choice((content.upper(), f"{content}x", content[:-1]))
            case list():
                longer = [*content, *content[-1:]]
                return rng.choice((content[:-1], longer, content[::-1], [content], 100 * content))
            case dict():
                return {key: content[key] for key in list(content)[1:]}
    return rng.choice(ABSURD)


def _edit(folder: Path, name: str, path: list[Any] | None, value: Any) -> None:
    found = next(iter(folder.rglob(name)), folder / name)
    content = json.loads(found.read_text()) if found.exists() and path is not None else {}
    found.unlink(missing_ok=True)
    if path is None:
        found.write_bytes(_long(value["$"]))
        return
    at = content
    for key in path[:-1]:
        if isinstance(at, dict):
            at = at.setdefault(key, {})
        elif isinstance(at, list) and type(key) is int and key < len(at):
            at = at[key]
    if isinstance(at, dict) or (isinstance(at, list) and path[-1] in range(len(at))):
        at[path[-1]] = value
    text = json.dumps(content)
    for short, meant in LONG.items():
        text = text.replace(json.dumps({"$": short}), meant)
    found.write_text(text)


LONG = {
    **{name: name for name in ("NaN", "Infinity", "-Infinity")},
    "text": json.dumps("x" * 10**6),
    "numbers": json.dumps([1] * 10**5),
}


def _long(kind: str) -> bytes:
    """The whole content of a file."""
    return {
        "deep": b"[" * 200_000,
        "deeper": b'{"model_type":' * 200_000,
        "hundreds": b'{"model_type":' * 900 + b"1" + b"}" * 900,
        "objects": b'{"a":[' + b"{}," * 5_000_000 + b"{}]}",
        "strings": b'{"a":[' + b'"ab",' * 3_000_000 + b"1]}",
        "keys": b"{" + b",".join(b'"%x":1' % number for number in range(10**6)) + b"}",
        "list": b"[1]",
        "latin": b'{"model_type": "\xff"}',
        "empty": b"",
        "NaN": b"NaN",
        "digits": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
    }[kind]


def _linked(source: str, target: str) -> None:
    os.link(source, target)
