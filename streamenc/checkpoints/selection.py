"""Which of a folder's files hold the weights: one choice for folders here and for those of the Hub.

Of files that hold the same weights in other types or formats, one is taken: whole ones before
shards, safetensors before pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Any

from streamenc.checkpoints.weightfiles import ENDINGS
from streamenc.errors import CheckpointError

# In the order of preference. An index tells which files are the shards.
WHOLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
)
_INDEX = ".index.json"
MAX_SHARDS = 1000
# A model in two archives; a third one beside them holds both parts once more.
_ARCHIVES = ("encoder.jit", "decoder.jit")
# What two state dicts end in whose names do not say of which part they are: NAME_encoder.pth.
PARTS = ("encoder", "decoder")


def weights_among(
    files: Collection[str], where: str, index: Callable[[str], dict[str, Any]]
) -> list[str]:
    """The names of the files that hold a folder's weights.

    files  The names of all files in the folder.
    where  What the folder is called in messages.
    index  Reads one of them, an index of shards.

    Raises CheckpointError where there are none, or where nothing says which ones.
    """
    if archives := [file for file in _ARCHIVES if file in files]:
        return archives
    for file in WHOLE:
        if file in files:
            return _shards(index(file), f"{where}/{file}") if file.endswith(_INDEX) else [file]
    found = sorted(file for file in files if PurePosixPath(file).suffix in ENDINGS)
    if len(found) == 1 or (len(found) == 2 and set(map(part_of, found)) == set(PARTS)):
        return found
    what = "no weights" if not found else "several: " + ", ".join(found)
    raise CheckpointError(
        f"{where}: wanted model.safetensors or one file of weights, found {what}; "
        "name the file itself"
    )


def part_of(file: str) -> str:
    """Of which part of a model a file is by its name; "" where that does not tell."""
    end = PurePosixPath(file).stem[-len(PARTS[0]) :]
    return end if end in PARTS else ""


def of_part(files: list[str], part: str) -> list[str]:
    """Of a model in two files, that of the part that is wanted; else all."""
    if part == "both" or set(map(part_of, files)) != set(PARTS):
        return files
    return [file for file in files if part_of(file) == part]


def _shards(index: dict[str, Any], where: str) -> list[str]:
    weight_map = index.get("weight_map")
    files = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if not files:
        raise CheckpointError(f"{where} has no weight_map; is it truncated, or not an index?")
    # Only names: an index does not lead out of its folder.
    names = sorted({Path(file).name for file in files})
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{where} lists {len(names)} files; wanted at most {MAX_SHARDS}")
    return names
