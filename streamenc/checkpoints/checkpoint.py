"""Checkpoints: find, fetch, open and verify weights, one tensor at a time.

A checkpoint is a Hub name ("facebook/encodec_24khz"; "org/repo/some.safetensors", "org/repo/vqvae"
for one file or folder of a repository), a folder with a config.json, or a single file. Tensors are
read when they are asked for, so that loading an encoder neither reads nor allocates the decoder.
`.th`, `.pt`, `.pth`, `.bin` and `.ckpt` files are opened with weights-only unpickling and never
otherwise; of TorchScript archives (`.jit`) only the parameters are read. A folder of two state
dicts, NAME_encoder.pth and NAME_decoder.pth (or .safetensors), is one checkpoint, whose names begin
with `encoder.` and `decoder.`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn

from streamenc.checkpoints.torchscript import TorchScriptFile
from streamenc.errors import CheckpointError

PICKLED = {".th", ".pt", ".pth", ".bin", ".ckpt"}
MAX_CONFIG_BYTES = 1 << 20

# What fills one of our parameters: the name of a tensor, or a function that makes it from several.
Origin: TypeAlias = "str | Callable[[Checkpoint], Tensor]"


class _File(Protocol):
    def keys(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def get(self, name: str) -> Tensor: ...


class Checkpoint:
    """Named tensors in one or several files, with the config beside them.

    name    As the user gave it, for messages and for `StreamInfo.model`.
    config  The folder's config.json; empty for a single file.
    preprocessor  Its preprocessor_config.json, likewise.
    read    The names of the tensors that were read so far.
    """

    def __init__(
        self,
        name: str,
        files: list[_File],
        config: dict[str, Any],
        preprocessor: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.preprocessor = preprocessor or {}
        self.read: list[str] = []
        self._files = {key: file for file in files for key in file.keys()}

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._files

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._file(tensor).shape(tensor)

    def get(self, tensor: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """One tensor, checked against `shape` before it is read.

        Raises CheckpointError where it is missing or of another shape.
        """
        if shape is not None and self.shape(tensor) != shape:
            raise CheckpointError(
                f"{self.name}: tensor {tensor!r} has shape {self.shape(tensor)}; wanted {shape}. "
                "The weights do not fit the config, or are of another variant of the model"
            )
        value = self._file(tensor).get(tensor)
        self.read.append(tensor)
        return value

    def _file(self, tensor: str) -> _File:
        try:
            return self._files[tensor]
        except KeyError:
            some = ", ".join(sorted(self._files)[:3])
            raise CheckpointError(
                f"{self.name}: tensor {tensor!r} is missing among {len(self._files)} tensors "
                f"({some}, ...); is this a checkpoint of another model, or only a part of one?"
            ) from None

    def folded(self, prefix: str) -> Tensor:
        """The weight of a layer, with weight normalisation folded in where the checkpoint has it.

        Knows `weight`, `weight_g` + `weight_v`, and `parametrizations.weight.original0` +
        `original1`.
        """
        for g, v in (
            (f"{prefix}.weight_g", f"{prefix}.weight_v"),
            (
                f"{prefix}.parametrizations.weight.original0",
                f"{prefix}.parametrizations.weight.original1",
            ),
        ):
            if g in self and v in self:
                direction = self.get(v)
                # The gain has an entry for each slice along one axis: nearly always the first.
                shape = self.shape(g)
                kept = next((i for i, n in enumerate(shape) if n != 1), 0)
                others = tuple(i for i in range(direction.ndim) if i != kept)
                norm = torch.linalg.vector_norm(direction.double(), dim=others, keepdim=True)
                gain = self.get(g, tuple(norm.shape)).double()
                folded: Tensor = direction * (gain / norm)
                return folded.to(direction.dtype)
        return self.get(f"{prefix}.weight")


def fill(module: nn.Module, origins: Mapping[str, Origin], checkpoint: Checkpoint) -> None:
    """Fills every parameter and buffer of `module`, which may lie on the meta device.

    origins  Where each one comes from, by its name in `module`.
    Raises CheckpointError naming the tensor, the shape that came and the shape that was wanted.
    """
    wanted = dict(module.state_dict())
    for name, target in wanted.items():
        origin = origins[name]
        known = len(checkpoint.read)
        reason = ""
        try:
            value = checkpoint.get(origin) if isinstance(origin, str) else origin(checkpoint)
        except (RuntimeError, ValueError) as error:
            reason = _reason(error)
        sources = checkpoint.read[known:]
        if reason or value.shape != target.shape:
            shapes = ", ".join(f"{source!r} {checkpoint.shape(source)}" for source in sources)
            raise CheckpointError(
                f"{checkpoint.name}: got {shapes}; {name} wants {tuple(target.shape)}. The weights "
                "do not fit the config, or are of another variant of the model"
                f"{reason and f' ({reason})'}"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{checkpoint.name}: {', '.join(sources)} has values that are not finite"
            )
        wanted[name] = value.to(torch.float32).contiguous()
    module.load_state_dict(wanted, assign=True)
    module.requires_grad_(False)


def open_checkpoint(name: str, *, revision: str | None = None, part: str = "both") -> Checkpoint:
    """Opens a folder, a file, or a repository of the Hugging Face Hub (cached; `revision` pins it).

    part  "encoder" or "decoder" leaves the other one's file alone, where a folder has two.
    Raises CheckpointError where nothing is found or a file is no checkpoint.
    """
    path = Path(name).expanduser()
    if not path.exists():
        path = _fetch(name, revision)
    if path.is_file():
        if path.name not in _FOLDER_FILES:
            return Checkpoint(name, [_open_file(path)], {})
        return Checkpoint(name, [_open_file(path)], *_configs(path.parent))
    if not path.is_dir():
        what = "a device or a pipe" if path.exists() else "nothing of that name in the repository"
        raise CheckpointError(f"{name} is neither a file nor a folder, but {what}")
    files: list[_File] = []
    for file in (found := _weight_files(path)):
        side = file.stem[-len("encoder") :]
        if len(found) < 2 or side not in _PARTS or file.suffix == ".jit":
            files.append(_open_file(file))
        elif part in ("both", side):
            files.append(_Prefixed(_open_file(file), f"{side}."))
    return Checkpoint(name, files, *_configs(path))


_FOLDER_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
# What two state dicts end in whose names do not say of which part they are: NAME_encoder.pth.
_PARTS = ("encoder", "decoder")
# A model in two archives; a third one beside them holds both parts once more.
_ARCHIVES = ("encoder.jit", "decoder.jit")


def _weight_files(folder: Path) -> list[Path]:
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            weight_map = _read_config(folder / index).get("weight_map")
            files = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
            if not files:
                raise CheckpointError(
                    f"{folder / index} has no weight_map; is it truncated, or not an index?"
                )
            return [folder / Path(file).name for file in sorted(files)]
    archives = [folder / file for file in _ARCHIVES if (folder / file).exists()]
    if archives:
        return archives
    for file in _FOLDER_FILES:
        if (folder / file).exists():
            return [folder / file]
    found = sorted(f for f in folder.iterdir() if f.suffix in {".safetensors", ".jit", *PICKLED})
    if len(found) == 1:
        return found
    if len(found) == 2 and {f.stem[-len("encoder") :] for f in found} == set(_PARTS):
        return found
    what = "no weights" if not found else "several: " + ", ".join(f.name for f in found)
    raise CheckpointError(
        f"{folder}: wanted model.safetensors or one file of weights, found {what}; "
        "name the file itself"
    )


def _configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config, preprocessor = "config.json", "preprocessor_config.json"
    return _read_config(folder / config), _read_config(folder / preprocessor)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    if path.stat().st_size > MAX_CONFIG_BYTES * 16:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes is too large for a config")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: wanted a JSON object, got a {type(config).__name__}")
    return config


def _fetch(name: str, revision: str | None) -> Path:
    parts = name.split("/")
    looks_like_hub = len(parts) >= 2 and all(parts) and not name.startswith((".", "/", "~"))
    if not looks_like_hub:
        raise CheckpointError(
            f"{name!r} is neither a file, a folder nor a Hub name such as kyutai/mimi; "
            "see `streamenc models`"
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        repo, inner = "/".join(parts[:2]), "/".join(parts[2:])
        if Path(inner).suffix in {".safetensors", ".jit", *PICKLED}:
            return Path(hf_hub_download(repo, inner, revision=revision))
        inside = f"{inner}/" if inner else ""
        configs = ["config.json", "preprocessor_config.json"]

        def fetched(weights: list[str]) -> Path:
            patterns = [inside + pattern for pattern in (*configs, *weights)]
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns)) / inner

        weights = ["*.safetensors", "*.safetensors.index.json", *_ARCHIVES]
        folder = fetched(weights)
        if not any(f for pattern in weights for f in folder.glob(pattern)):
            # Older repositories hold pickles only, of which tensors are read and nothing else.
            folder = fetched(["pytorch_model*.bin", "pytorch_model.bin.index.json"])
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is no local path and could not be fetched from the Hugging Face Hub: "
            f"{_reason(error)}. Check the name and the network, or give a local folder"
        ) from error


def _open_file(path: Path) -> _File:
    try:
        if path.suffix == ".safetensors":
            return _SafetensorsFile(path)
        if path.suffix == ".jit":
            return TorchScriptFile(path)
        if path.suffix in PICKLED:
            return _PickledFile(path)
    except Exception as error:  # the unpickler raises whatever its opcodes stumble over
        raise CheckpointError(
            f"{path} is no readable checkpoint: {_reason(error)}. Is it truncated? "
            "Only tensors are read from it, never code"
        ) from error
    raise CheckpointError(
        f"{path}: unknown ending {path.suffix!r}; wanted .safetensors, .jit or one of "
        f"{sorted(PICKLED)}"
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self._open: Any = safe_open(path, framework="pt")

    def keys(self) -> Iterable[str]:
        return list(self._open.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._open.get_tensor(name)
        return tensor


class _Prefixed:
    """A file whose names do not say of which part of the model they are."""

    def __init__(self, file: _File, prefix: str) -> None:
        self._file, self._prefix = file, prefix

    def keys(self) -> Iterable[str]:
        return [self._prefix + name for name in self._file.keys()]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.shape(name.removeprefix(self._prefix))

    def get(self, name: str) -> Tensor:
        return self._file.get(name.removeprefix(self._prefix))


class _PickledFile:
    def __init__(self, path: Path) -> None:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "best_state", "model_state_dict", "model"):
            if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
                loaded = loaded[wrapper]
        if not isinstance(loaded, dict):
            raise pickle.UnpicklingError(f"wanted a dict of tensors, got a {type(loaded).__name__}")
        self._tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}

    def keys(self) -> Iterable[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]
