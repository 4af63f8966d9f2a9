"""Folders of Hugging Face: what a repository of data holds, and what `datasets` saves to a disk."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import yaml

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.filelist import FileList
from streamenc.bulk.inputs.tables.tablefile import ENDINGS
from streamenc.bulk.inputs.tables.tables import TableInput
from streamenc.bulk.items import Fault, Item
from streamenc.errors import UsageError

CARD, SAVED, SAVED_SPLITS = "README.md", "state.json", "dataset_dict.json"
SPLITS = "splits.json"
MAX_CARD_BYTES = 1 << 20
MAX_PATTERNS = 1000
# How files are called, by the split that they belong to.
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FRONT = re.compile(r"---\s*\n(.*?\n)---\s*(?:\n|$)", re.DOTALL)
_SPLIT = {
    split: re.compile(rf"(?:^|[-._ /\d])(?:{'|'.join(words)})(?:[-._ /\d]|$)", re.IGNORECASE)
    for split, words in WORDS.items()
}


class HuggingFaceInput(TableInput):
    """The tables of a folder: of one configuration, all splits in the order that its card has.

    Which files those are stands in the configurations of its README.md, or in what `datasets` saved
    beside them, and else all are taken, their splits by their names. Where there are several
    splits, rows have a column `split`.

    Args:
        config: Which configuration; by default the one that the card says, or its first.
        split: Which split; all if not given.
        column: As of TableInput.
    """

    kind = "huggingface"

    def __init__(
        self,
        address: str,
        takes: str,
        kept: Path,
        *,
        config: str = "",
        split: str = "",
        **options: Any,
    ) -> None:
        super().__init__(address, takes, kept, **options)
        self._hub = HubFiles(address, kept, config, split)
        self._files = self._hub

    def columns(self) -> pa.Schema:
        passed = super().columns()
        return passed.append(pa.field("split", pa.string())) if self._tells_split else passed

    @cached_property
    def _tells_split(self) -> bool:
        return len({*self._hub.splits}) > 1 and "split" not in super().columns().names

    def _finished(self, item: Item | Fault, number: int) -> Item | Fault:
        if isinstance(item, Fault) or not self._tells_split:
            return item
        columns = {**item.columns, "split": self._hub.splits[number] or None}
        return Item(item.key, item.media, columns=columns)


class HubFiles(FileList):
    """The tables of a folder, with their splits."""

    def __init__(self, address: str, kept: Path, config: str = "", split: str = "") -> None:
        super().__init__(address, kept, ENDINGS)
        self._config, self._split = config, split
        self._splits_path = kept / SPLITS

    @cached_property
    def splits(self) -> list[str]:
        """Of each of `names`; "" where nothing tells."""
        assert self.names
        splits: list[str] = json.loads(self._splits_path.read_bytes())
        return splits

    def _found(self) -> Iterator[str]:
        files = self._saved() or self._of_card() or self._by_names()
        if self._split:
            known = dict.fromkeys(split for split, _ in files if split)
            files = [(split, name) for split, name in files if split == self._split]
            if not files:
                raise UsageError(
                    f"there is no split {self._split!r} in {shown_address(self.address)!r}; there "
                    f"are {', '.join(known) or 'none'}"
                )
        with open(self._splits_path, "w") as file:
            json.dump([split for split, _ in files], file)
            file.flush()
            os.fsync(file.fileno())
        for _, name in files:
            yield name

    def _saved(self) -> list[tuple[str, str]]:
        """What `save_to_disk` wrote."""
        folders = [""]
        if filesystem.exists(self.root + SAVED_SPLITS):
            named = self._json(SAVED_SPLITS).get("splits", [])
            folders = [f"{_within(split)}/" for split in named]
        elif not filesystem.exists(self.root + SAVED):
            return []
        found = []
        for folder in folders:
            state = self._json(folder + SAVED)
            split = folder.rstrip("/") or str(state.get("_split") or "")
            for each in state.get("_data_files", []):
                found.append((split, folder + _within(each["filename"])))
        return found

    def _of_card(self) -> list[tuple[str, str]]:
        """By the configurations of README.md."""
        configs = [each for each in self._configs() if isinstance(each, dict)]
        if not configs and not self._config:
            return []
        names = [str(each.get("config_name", "default")) for each in configs]
        wanted = self._config
        if not wanted:
            default = [n for n, c in zip(names, configs, strict=True) if c.get("default")]
            wanted = (default or [n for n in names if n == "default"] or names)[0]
        if wanted not in names:
            raise UsageError(
                f"there is no configuration {wanted!r} in {CARD} of "
                f"{shown_address(self.address)!r}; there are {', '.join(names) or 'none'}"
            )
        config = configs[names.index(wanted)]
        before = f"{_within(config['data_dir'])}/" if config.get("data_dir") else ""
        found: dict[str, str] = {}
        for split, pattern in _patterns(config.get("data_files")):
            for name in self._matching(before + _within(pattern)):
                if name.lower().endswith(ENDINGS):
                    found.setdefault(name, split)
        if not found and not before:
            return []
        if not found:
            return [each for each in self._by_names() if each[1].startswith(before)]
        return [(split, name) for name, split in found.items()]

    def _by_names(self) -> list[tuple[str, str]]:
        names = list(super()._found())
        found = [
            (next((split for split, words in _SPLIT.items() if words.search(name)), ""), name)
            for name in names
        ]
        order = [*WORDS, ""]
        return sorted(found, key=lambda each: order.index(each[0]))

    def _configs(self) -> list[Any]:
        if not filesystem.exists(self.root + CARD):
            return []
        with filesystem.opened(self.root + CARD) as file, filesystem.reading(self.root):
            text = file.read(MAX_CARD_BYTES).decode(errors="replace")
        front = _FRONT.match(text)
        if front is None:
            return []
        try:
            card = yaml.safe_load(front[1])
        except (yaml.YAMLError, ValueError, RecursionError):
            return []  # a card is for people; what it holds beside that may be anything
        said = card.get("configs") if isinstance(card, dict) else None
        return said if isinstance(said, list) else []

    def _matching(self, name: str) -> list[str]:
        whole = self.root + name
        if filesystem.is_pattern(whole):
            inner = filesystem.root_of(whole)[len(self.root) :]
            return [inner + each for each in filesystem.matching(whole)]
        return [name] if filesystem.exists(whole) else []

    def _json(self, name: str) -> dict[str, Any]:
        with filesystem.opened(self.root + name) as file, filesystem.reading(self.root + name):
            content = file.read(MAX_CARD_BYTES)
        try:
            return msgspec.json.decode(content, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise UsageError(f"{shown_address(self.root + name)!r} is damaged: {error}") from error


def _patterns(said: Any) -> Iterator[tuple[str, str]]:
    """The splits of a configuration's `data_files`, in any of the ways to write them."""
    if isinstance(said, dict):
        said = [{"split": split, "path": path} for split, path in said.items()]
    listed = said if isinstance(said, list) else [said]
    for each in listed[:MAX_PATTERNS]:
        split, paths = "train", each
        if isinstance(each, dict):
            split, paths = str(each.get("split", "train")), each.get("path")
        for path in (paths if isinstance(paths, list) else [paths])[:MAX_PATTERNS]:
            if isinstance(path, str):
                yield split, path


def _within(name: Any) -> str:
    """A name that stands in a file, and leads nowhere else than into its folder."""
    if not isinstance(name, str) or "://" in name or os.path.isabs(name) or ".." in name.split("/"):
        raise UsageError(f"the folder names {name!r}, which is not within it")
    return name.rstrip("/")
