"""Files of weights of every family: safetensors, and what torch.save writes, in both its formats.

A case is JSON, {"row": "mimi", "format": "zip", "config": true, "edits": [...]}: which small
checkpoint, whether its configs stay beside it, and what is done to its tensors, to the header of
safetensors, or to the bytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tests.campaign.target import mutated
from tests.campaign.targets.configs import QUICK, load_and_step, rows, saved
from tests.support import zoo

# Of those whose small weights are one file of at most some 100 kB.
ROWS = (
    *("nano", "mimi", "encodec", "dac", "snac", "moss", "vibevoice", "qwen3-tts", "whisper-layers"),
    *("wav2vec2", "wavlm", "moonshine", "voxtral", "qwen3-omni", "nemotron", "vit", "dinov3"),
    *("siglip", "clip-tower", "video-llava-original", "resnet", "taesd", "dcae", "vae", "ltx"),
    *("wan", "bert", "t5"),
)
# A tensor of another kind in place of one.
ODD: dict[str, Callable[[Tensor], Any]] = {
    "float64": Tensor.double,
    "half": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "int8": lambda x: x.to(torch.int8),
    "int64": lambda x: x.to(torch.int64),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "not finite": lambda x: x * float("nan"),
    "infinite": lambda x: x / 0,
    "zeros": torch.zeros_like,
    "huge": lambda x: x * 1e38,
    "transposed": lambda x: x.T.contiguous() if x.ndim == 2 else x[..., None],
    "flat": lambda x: x.flatten().clone(),
    "scalar": lambda x: x.sum(),
    "empty": lambda x: x.new_zeros(0),
    "longer": lambda x: torch.cat([x, x]) if x.ndim else x,
    "axes": lambda x: x.reshape(1, 1, 1, *x.shape),
}
PICKLED_ALONE: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "rows": lambda x: x.to_sparse_csr() if x.ndim == 2 else x.to_sparse(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "expanded": lambda x: x.new_zeros(1).expand(1 << 16),
    "number": lambda x: 3,
    "list": Tensor.tolist,
    "text": lambda x: "x" * 10_000,
    "parameter": lambda x: torch.nn.Parameter(x),
}
NUMBERS = (0, 1, -1, 3, 2**16, 2**31, 2**40, 2**62, 2**63, 10**30, 1.5, None, True, "3", [], {})
DTYPES = ("F64", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "F4", "", None, 7)


@functools.cache
def tensors_of(row: str) -> dict[str, Tensor]:
    folder = saved(row)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    if files[0].suffix == ".safetensors":
        return load_file(files[0])
    loaded: dict[str, Tensor] = torch.load(files[0], weights_only=True)
    return loaded


class Weights:
    """`streamenc.load` and a step, of a file of weights that was tampered with."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path, formats: tuple[str, ...]) -> None:
        self._folder, self._formats = folder / "model", formats
        for row in QUICK:
            saved(row)

    def case(self, rng: Random) -> bytes:
        row, form = rng.choice(rows(ROWS)), rng.choice(self._formats)
        names = list(tensors_of(row))
        edits: list[list[Any]] = []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            name = rng.choice(names)
            match rng.randrange(8):
                case 0:
                    edits.append(["drop", name])
                case 1:
                    edits.append(["rename", name, rng.choice((*names, name[:-1], "", "\x1b[2J"))])
                case 2 | 3:
                    odd = [*ODD, *(PICKLED_ALONE if form != "safetensors" else ())]
                    edits.append(["odd", name, rng.choice(odd)])
                case 4 if form == "safetensors":
                    field = rng.choice(("shape", "data_offsets", "dtype"))
                    value = rng.choice(DTYPES) if field == "dtype" else _numbers(rng)
                    edits.append(["header", name, field, value])
                case _:
                    edits.append(["bytes", rng.randrange(1 << 30)])
        config = rng.random() < 0.6
        case = {"row": row, "format": form, "config": config, "edits": edits}
        return json.dumps(case).encode()

    def take(self, data: bytes) -> None:
        case = json.loads(data)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(saved(case["row"]), self._folder)
        for path in self._folder.iterdir():
            if path.suffix in (".safetensors", ".bin") or not case["config"]:
                path.unlink() if path.is_file() else shutil.rmtree(path)
        suffix = ".safetensors" if case["format"] == "safetensors" else ".bin"
        name = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
        (self._folder / name).write_bytes(self._content(case))
        load_and_step(self._folder, zoo.row(case["row"]))

    def _content(self, case: dict[str, Any]) -> bytes:
        tensors: dict[str, Any] = dict(tensors_of(case["row"]))
        for what, name, *how in case["edits"]:
            if what == "drop":
                tensors.pop(name, None)
            elif what == "rename" and name in tensors:
                tensors[how[0]] = tensors.pop(name)
            elif what == "odd" and isinstance(tensors.get(name), Tensor):
                with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
                    warnings.simplefilter("ignore")
                    tensors[name] = (ODD | PICKLED_ALONE)[how[0]](tensors[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some kinds of tensors are on their way out
            content = self._written(tensors, case["format"])
        for what, name, *how in case["edits"]:
            if what == "header":
                content = _with_header(content, name, *how)
        for what, seed, *_ in case["edits"]:
            if what == "bytes":
                content = mutated(content, Random(seed))
        return content

    def _written(self, tensors: dict[str, Any], form: str) -> bytes:
        if form == "safetensors":
            return save({name: value.contiguous() for name, value in tensors.items()})
        path = self._folder / "written"
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
        content = path.read_bytes()
        path.unlink()
        return content


def target_safetensors(folder: Path) -> Weights:
    return Weights(folder, ("safetensors",))


def target_pickled(folder: Path) -> Weights:
    return Weights(folder, ("zip", "legacy"))


def _numbers(rng: Random) -> list[Any]:
    return [rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 2, 3, 9, 100)))]


def _with_header(content: bytes, name: str, field: str, value: Any) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if name in header:
        header[name][field] = value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]
