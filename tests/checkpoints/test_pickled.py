"""What torch.save wrote: tensors are read in both formats, and nothing else comes to life."""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from streamenc.errors import CheckpointError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def tensors() -> dict[str, Tensor]:
    base = torch.arange(24.0)
    return {
        "a.weight": torch.arange(6.0).reshape(2, 3),
        "a.bias": torch.tensor([7.0, 8.0]),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "part": base[4:10],
        "other part": base[10:].view(2, 7)[:, 1:4],
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 4),
        "half": torch.arange(5.0).half(),
        "bfloat16": torch.arange(5.0).bfloat16(),
        "double": torch.arange(5.0).double(),
        "count": torch.tensor([1, 2, 3]),
        "mask": torch.tensor([True, False]),
    }


def save(content: Any, path: Path, *, zipped: bool = True) -> str:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return str(path)


def check(checkpoint: Checkpoint) -> None:
    wanted = tensors()
    assert checkpoint.names == wanted.keys()
    for name, tensor in wanted.items():
        assert checkpoint.shape(name) == tensor.shape
        got = checkpoint.stored(name)
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)


@pytest.mark.parametrize("suffix", [".th", ".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "best_state", "model"])
@FORMATS
def test_tensors_are_read(tmp_path: Path, suffix: str, wrapper: str | None, zipped: bool) -> None:
    content: Any = {**tensors(), "epoch": 3}
    content = content if wrapper is None else {wrapper: content}
    check(open_checkpoint(save(content, tmp_path / f"w{suffix}", zipped=zipped)))


@FORMATS
def test_a_modules_own_state_dict(tmp_path: Path, zipped: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    content = module.state_dict(keep_vars=True)
    assert isinstance(content, OrderedDict) and hasattr(content, "_metadata")
    checkpoint = open_checkpoint(save(content, tmp_path / "w.pt", zipped=zipped))
    for name, tensor in module.state_dict().items():
        assert torch.equal(checkpoint.stored(name), tensor)


def test_a_view_of_a_storage(tmp_path: Path) -> None:
    """As the first releases of torch wrote them: a part of a storage that stands there once."""

    class Part:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, Part):
                return ("storage", torch.FloatStorage, "7", "cpu", 10, ("8", 3, 4))
            return None

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor, (Part(), 1, (3,), (1,))

    with (tmp_path / "w.pt").open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        Pickler(file, protocol=2).dump({"a": Rebuilt()})
        pickle.dump(["7"], file, protocol=2)
        file.write((10).to_bytes(8, "little") + torch.arange(10.0).numpy().tobytes())
    assert open_checkpoint(str(tmp_path / "w.pt")).get("a").tolist() == [4.0, 5.0, 6.0]


@FORMATS
def test_tensors_with_attributes_and_parameters_with_state(tmp_path: Path, zipped: bool) -> None:
    tagged, parameter = torch.arange(3.0), nn.Parameter(torch.arange(4.0))
    tagged.tag = parameter.tag = "mine"  # type: ignore[attr-defined]
    path = save({"tagged": tagged, "parameter": parameter}, tmp_path / "w.pt", zipped=zipped)
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.get("tagged"), tagged)
    assert torch.equal(checkpoint.get("parameter"), parameter.detach())


def test_an_archive_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save(tensors(), tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert all(not entry.CRC for entry in zipfile.ZipFile(tmp_path / "w.pt").infolist())
    check(open_checkpoint(str(tmp_path / "w.pt")))


class Dictionary:
    """As trainings keep one beside the weights: a class that is not here when they are read."""

    made: list[Any] = []

    def __init__(self, *words: str) -> None:
        self.words = list(words)
        self.made.append(self)


class Words(list):  # type: ignore[type-arg]
    def append(self, item: Any) -> None:
        Dictionary.made.append(item)
        super().append(item)


class Table(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: Any, value: Any) -> None:
        Dictionary.made.append(value)
        super().__setitem__(key, value)


class Told:
    def __setstate__(self, state: Any) -> None:
        Dictionary.made.append(state)


class Called:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Dictionary, ("called",)


@FORMATS
def test_a_trainings_whole_checkpoint(tmp_path: Path, zipped: bool) -> None:
    """Arguments, dictionaries and an optimizer stand in it; none of their classes is used."""
    told = Told()
    told.__dict__["key"] = 1
    content = {
        "args": argparse.Namespace(arch="hubert", normalize=False, sizes=[1, 2]),
        "cfg": {"task": argparse.Namespace(data=Path("/somewhere"))},
        "task_state": {"target_dictionary": Dictionary("a", "b"), "called": Called()},
        "net": nn.Sequential(nn.Linear(2, 2)),
        "words": Words(["a", "b"]),
        "table": Table(a=1),
        "told": told,
        "model": OrderedDict(tensors()),
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 400_000}],
        "last_optimizer_state": {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}},
        Dictionary: "a class as a key",
    }
    path = save(content, tmp_path / "w.pt", zipped=zipped)
    Dictionary.made.clear()
    check(open_checkpoint(path))
    assert not Dictionary.made
    torch.load(path, weights_only=False)
    assert len(Dictionary.made) >= 3, "nothing would have been made anyway, and this shows nothing"


class Bomb:
    """Makes the folder BOOM in the working directory where it is unpickled as code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("BOOM",)


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
def test_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"bomb": Bomb(), **tensors()}
    file = tmp_path / "bomb.pt"
    if writer == "pickle":
        file.write_bytes(pickle.dumps(content["bomb"]))
        with pytest.raises(CheckpointError, match="never code"):
            open_checkpoint(str(file))
    else:
        check(open_checkpoint(save(content, file, zipped=writer == "zip")))
    assert not (tmp_path / "BOOM").exists()
    pickle.loads(pickle.dumps(content["bomb"]))
    assert (tmp_path / "BOOM").exists(), "the bomb is a dud, and this test shows nothing"


ABSURD = {
    "names without end": b"".join(b"cm\nn%d\n0" % i for i in range(100_000)) + b"]",
    "lists within lists": b"]" * 500_000 + b"a" * 499_999,
    "many bytes": b"cbuiltins\nbytearray\n\x8a\x05" + (1 << 33).to_bytes(5, "little") + b"\x85R",
}


@pytest.mark.parametrize("what", ABSURD)
def test_what_asks_for_much_gets_little(tmp_path: Path, what: str) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("w/data.pkl", b"\x80\x02" + ABSURD[what] + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="wanted a dict of tensors"):
        open_checkpoint(str(tmp_path / "w.pt"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "dict of tensors, got 'list'"),
        ({"epoch": 3}, "a dict without any"),
        (Dictionary("a"), "got 'tests.checkpoints.test_pickled.Dictionary'; save.*state_dict"),
    ],
)
def test_what_holds_no_state_dict(tmp_path: Path, content: Any, message: str, zipped: bool) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(save(content, tmp_path / "w.pt", zipped=zipped))


@FORMATS
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
        (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised tensor"),
        (lambda: torch.ones(3, device="meta"), "without values"),
        (lambda: torch.ones(3).to(torch.float8_e5m2), "float8_e5m2"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex64"),
        (lambda: torch.ones(3, dtype=torch.uint16), "uint16"),
    ],
)
def test_tensors_of_other_kinds_are_told_of_when_they_are_wanted(
    tmp_path: Path, make: Any, message: str, zipped: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save({"odd": make(), "a.bias": torch.ones(2)}, tmp_path / "w.pt", zipped=zipped)
    checkpoint = open_checkpoint(path)
    assert torch.equal(checkpoint.get("a.bias"), torch.ones(2))
    with pytest.raises(CheckpointError, match=f"'odd' is .*{message}; wanted floats"):
        checkpoint.get("odd")


def test_a_deflated_archive_is_not_inflated(tmp_path: Path) -> None:
    save({"a": torch.zeros(1 << 20)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in whole.namelist():
            stored = not name.endswith("/data/0")
            how = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            small.writestr(name, whole.read(name), how)
    with pytest.raises(CheckpointError, match=r"'a' cannot be read: .*uncompressed"):
        open_checkpoint(str(tmp_path / "small.pt")).get("a")


@FORMATS
def test_numbers_that_end_early(tmp_path: Path, zipped: bool) -> None:
    path = Path(save({"a": torch.zeros(100)}, tmp_path / "w.pt", zipped=zipped))
    whole = path.read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(str(path)).get("a")


@FORMATS
def test_flipped_bits_are_refused_or_change_nothing_but_numbers(
    tmp_path: Path, zipped: bool
) -> None:
    path = Path(save(tensors(), tmp_path / "w.pt", zipped=zipped))
    whole = path.read_bytes()
    for at in range(0, len(whole), 17):
        content = bytearray(whole)
        content[at] ^= 1 << (at % 8)
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(str(path))
            for name in checkpoint.names:
                checkpoint.stored(name)
        except CheckpointError as error:
            assert "weights_only" not in str(error) and str(error).isprintable()


@FORMATS
def test_beside_the_weights_are_numbers_and_text(tmp_path: Path, zipped: bool) -> None:
    inner: dict[str, Any] = {
        "deep_norm": True,
        "layers": 12,
        "eps": 1e-5,
        "act": "gelu",
        "no": None,
    }
    odd: dict[Any, Any] = {"list": [1], "dict": {}, 3: 4, "class": argparse.Namespace(a=1)}
    odd["itself"] = odd
    content = {"model": tensors(), "cfg": inner | odd, "config": {"model": {"rank": 8}}, "epoch": 3}
    checkpoint = open_checkpoint(save(content, tmp_path / "a.pt", zipped=zipped))
    assert checkpoint.saved_beside("cfg") == inner
    assert checkpoint.saved_beside("config", "model") == {"rank": 8}
    for path in (("epoch",), ("none",), ("cfg", "act"), ("config", "model", "rank")):
        assert checkpoint.saved_beside(*path) == {}
    bare = open_checkpoint(save(tensors(), tmp_path / "b.pt", zipped=zipped))
    assert bare.saved_beside("cfg") == {}
