"""Checkpoints: find, fetch, open and verify weights, one tensor at a time.

A checkpoint is a Hub name ("facebook/encodec_24khz"; "org/repo/some.safetensors", "org/repo/vqvae"
for one file or folder of a repository), a folder with a config.json, or a single file. Tensors are
read when they are asked for, so that loading an encoder neither reads nor allocates the decoder.
Of `.th`, `.pt`, `.pth`, `.bin`, `.ckpt` and TorchScript's `.jit` files only tensors are read, by an
unpickler of our own that runs nothing. A folder of two state dicts, NAME_encoder.pth and
NAME_decoder.pth (or .safetensors), is one checkpoint, whose names begin with `encoder.` and
`decoder.`.

Weights are floats of 16, 32 or 64 bits; all arithmetic on them is in 32 bits or more. Quantised
ones are refused: they are no weights without their scales.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from streamenc.checkpoints import hub
from streamenc.checkpoints.configs import configs, read_config
from streamenc.checkpoints.selection import WHOLE, of_part, part_of, weights_among
from streamenc.checkpoints.tensortypes import (
    CURE,
    DENSE,
    FLOATS,
    WANTED,
    UnusableTensor,
    odd_type,
    quantised_by,
    stated_method,
)
from streamenc.checkpoints.unpickling import PickledTensors
from streamenc.checkpoints.weightfiles import (
    MAX_TENSORS,
    Renamed,
    WeightFile,
    exists,
    open_file,
    reason_of,
)
from streamenc.errors import CheckpointError

log = logging.getLogger(__name__)

# What fills one of our parameters: the name of a tensor, or a function that makes it from several.
Origin: TypeAlias = "str | Callable[[Checkpoint], Tensor]"

# What damaged files raise where a tensor is read.
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
)


class Checkpoint:
    """Named tensors in one or several files, with the config beside them.

    name    As the user gave it, for messages.
    config  The folder's config.json; empty where there is none.
    preprocessor  How its input is prepared, from processor_config.json or
            preprocessor_config.json; likewise.
    beside  Whether these stood beside a file that was named by itself: they may be of another.
    folder  Where all of it lies; None of what is no folder of files.
    read    The names of the tensors that were read so far.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[WeightFile],
        config: dict[str, Any],
        preprocessor: dict[str, Any] | None = None,
        *,
        beside: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.config = config
        self.preprocessor = preprocessor or {}
        self.beside = beside
        self.read: list[str] = []
        self._files = {key: file for file in files for key in file.keys()}

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._files

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, tensor: str, axes: int = 0) -> tuple[int, ...]:
        """Raises CheckpointError where the tensor is missing, or has fewer than `axes` axes."""
        shape = self._file(tensor).shape(tensor)
        if len(shape) < axes:
            raise CheckpointError(
                f"{self.name}: {tensor} has the shape {shape}; {axes} axes or more were expected"
            )
        return shape

    def get(self, tensor: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """One tensor of floats, as float32; as float64 where it is stored so.

        Raises CheckpointError where it is missing, damaged, no floats, quantised, or not of
        `shape`.
        """
        # Before it is read: what is announced may be as large as a disk.
        if shape is not None and prod(self.shape(tensor)) > prod(shape):
            raise self._misfit(tensor, shape)
        value = self.stored(tensor)
        traced = quantised_by(self._files, tensor)
        if value.dtype not in FLOATS or traced:
            kind = str(value.dtype).removeprefix("torch.")
            method = stated_method(self.config) or traced
            raise CheckpointError(
                f"{self.name}: tensor {tensor!r} is of type {kind}"
                + (f", quantised by {method}" if method else "")
                + f"; wanted {WANTED}. "
                + (DENSE if value.is_complex() else CURE)
            )
        if shape is not None and value.shape != shape:
            raise self._misfit(tensor, shape)
        return value if value.dtype == torch.float64 else value.float()

    def _misfit(self, tensor: str, shape: tuple[int, ...]) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: tensor {tensor!r} has shape {self.shape(tensor)}; wanted {shape}. "
            "The weights do not fit the config, or are of another variant of the model"
        )

    def stored(self, tensor: str) -> Tensor:
        """One tensor as it is stored, of whatever type.

        Raises CheckpointError where it is missing, damaged, or no array of numbers.
        """
        file = self._file(tensor)
        try:
            value = file.get(tensor)
            odd = odd_type(value)
        except UnusableTensor as error:
            odd = str(error)
        except _UNREADABLE as error:
            raise CheckpointError(
                f"{self.name}: tensor {tensor!r} cannot be read: {reason_of(error)}. Is the file "
                "damaged? Fetch it again"
            ) from error
        if odd:
            raise CheckpointError(
                f"{self.name}: tensor {tensor!r} is {odd}; wanted {WANTED}. "
                + (CURE if "quantised" in odd else DENSE)
            )
        self.read.append(tensor)
        return value

    def saved_beside(self, *path: str) -> dict[str, Any]:
        """The numbers and the text of a dict that a training saved beside the weights, in their
        own pickle; empty where there is none.

        path  Its key, from the outermost dict on: ("cfg",), ("config", "model").
        """
        for file in dict.fromkeys(self._files.values()):
            if isinstance(file, PickledTensors) and (found := file.beside(*path)):
                return found
        return {}

    def check_used(self, *parts: str, besides: Sequence[str] = ()) -> None:
        """Raises CheckpointError where a tensor of a part that was filled was not read: a network
        that is smaller than its weights would go unnoticed, and what a training put beside it.

        parts    What the names of a part begin with.
        besides  What stands in the names of those that no layer needs.
        """
        left = sorted(
            name
            for name in self.names.difference(self.read)
            if name.startswith(parts) and not any(word in name for word in besides)
        )
        if left:
            more = f" (nor do {len(left) - 1} more tensors)" if len(left) > 1 else ""
            raise CheckpointError(
                f"{self.name}: {left[0]} belongs to no layer of this network{more}; does the "
                "config fit the weights, is another tensor of its layer missing, or is the model "
                "of another kind (one with LoRA has to be merged first)?"
            )

    def renamed(self, rename: Callable[[str], str]) -> Checkpoint:
        """The same tensors under other names: `rename` gives the new one of each."""
        files = [Renamed(file, rename) for file in dict.fromkeys(self._files.values())]
        made = Checkpoint(self.name, files, self.config, self.preprocessor, folder=self.folder)
        made.read = self.read
        return made

    def leave_config(self, family: str, stated: str) -> None:
        """For a config beside the weights that is of another model: it is not used, and that said.

        family  What the weights are; `stated`: what the config says.
        """
        log.warning(
            "%s: the config.json beside it is of %s, not of %s: it is not used, and sizes are "
            "those of the tensors or of the published model. If it is the weights' own, give it "
            "its model_type",
            *(self.name, repr(stated) if stated else "no stated model_type", family),
        )
        self.config, self.preprocessor = {}, {}

    def _file(self, tensor: str) -> WeightFile:
        try:
            return self._files[tensor]
        except KeyError:
            if method := stated_method(self.config) or quantised_by(self._files, tensor):
                raise CheckpointError(
                    f"{self.name}: tensor {tensor!r} is not there as the model was quantised by "
                    f"{method}; wanted {WANTED}. {CURE}"
                ) from None
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
        reason, value = "", None
        try:
            if not isinstance(origin, str):
                value = origin(checkpoint)
            elif prod(checkpoint.shape(origin)) <= target.numel():  # else it is not read at all
                value = checkpoint.get(origin)
        except (RuntimeError, ValueError) as error:
            reason = reason_of(error)
        sources = [origin] if isinstance(origin, str) else checkpoint.read[known:]
        if value is None or value.shape != target.shape:
            shapes = ", ".join(f"{source!r} {checkpoint.shape(source)}" for source in sources)
            raise CheckpointError(
                f"{checkpoint.name}: got {shapes}; {name} wants {tuple(target.shape)}. The weights "
                "do not fit the config, or are of another variant of the model"
                f"{reason and f' ({reason})'}"
            )
        filled = value.to(torch.float32).contiguous()
        if not torch.isfinite(filled).all():
            raise CheckpointError(
                f"{checkpoint.name}: {', '.join(sources)} has values that are not finite, or too "
                "large for float32"
            )
        wanted[name] = filled
    module.load_state_dict(wanted, assign=True)
    module.requires_grad_(False)


def open_checkpoint(name: str, *, revision: str | None = None, part: str = "both") -> Checkpoint:
    """Opens a folder, a file, or a repository of the Hugging Face Hub (cached; `revision` pins it).

    part  "encoder" or "decoder" leaves the other one's file alone, where a folder has two.
    Raises CheckpointError where nothing is found or a file is no checkpoint.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # "~somebody" who has no home here
        raise CheckpointError(f"{name!r:.200} is no name of weights: {error}") from error
    if not exists(path):
        path = hub.fetch(name, revision, part)
    if path.is_file():
        beside = path.name not in WHOLE
        weights, folder = [open_file(path)], path.parent
        return Checkpoint(name, weights, *configs(folder), beside=beside, folder=folder)
    if not path.is_dir():
        what = "a device or a pipe" if path.exists() else "nothing of that name in the repository"
        raise CheckpointError(f"{name} is neither a file nor a folder, but {what}")
    files: list[WeightFile] = []
    tensors = 0
    for file in of_part(found := _weight_files(path), part):
        side = part_of(file)
        opened = open_file(path / file)
        tensors += len(list(opened.keys()))
        if tensors > MAX_TENSORS:
            raise CheckpointError(
                f"{name} has more than {MAX_TENSORS} tensors, as no model here has"
            )
        # Of two state dicts, the names do not say of which part they are; archives' do.
        bare = len(found) == 2 and side and not file.endswith(".jit")
        files.append(Renamed(opened, f"{side}.{{}}".format) if bare else opened)
    return Checkpoint(name, files, *configs(path), folder=path)


def _weight_files(folder: Path) -> list[str]:
    try:
        files = {file.name for file in folder.iterdir()}
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {reason_of(error)}") from error
    return weights_among(files, str(folder), lambda index: read_config(folder / index))
