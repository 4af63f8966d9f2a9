"""Archives of TorchScript: their parameters are read, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.errors import CheckpointError


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("table", torch.arange(6).view(2, 3).t(), persistent=False)
        self.register_buffer("rounded", torch.randn(5).bfloat16())
        self.sizes = [1, 2, 3]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + self.table.sum() + self.rounded.sum() + len(self.sizes)


def save(path: Path, *, traced: bool = False) -> nn.Module:
    model = nn.Sequential(Inner(), nn.Linear(3, 2, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.randn(2, 4)
        made = torch.jit.trace(model, example) if traced else torch.jit.script(model)
        torch.jit.save(made, path)
    return model


@pytest.mark.parametrize("traced", [True, False])
def test_parameters_and_buffers_as_torch_names_them(tmp_path, traced):
    model = save(tmp_path / "net.jit", traced=traced)
    checkpoint = open_checkpoint(str(tmp_path / "net.jit"))
    wanted = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert checkpoint.names == wanted.keys()
    for name, tensor in wanted.items():
        assert checkpoint.shape(name) == tensor.shape
        got = checkpoint.stored(name)
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)


def archive(path: Path, content: bytes, *, compress: bool = False, folder: str = "net") -> Path:
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as file:
        file.writestr(f"{folder}/data.pkl", content)
        file.writestr(f"{folder}/data/0", bytes(16))
    return path


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Storages(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Stored) else None


class Stored:
    def __init__(self, *pid: object) -> None:
        self.pid = pid


class Rebuilt:
    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    Storages(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def tensor(
    items: object = 4, offset: object = 0, size: object = (2, 2), stride: object = (2, 1)
) -> Rebuilt:
    stored = Stored("storage", torch.FloatStorage, "0", "cpu", items)
    return Rebuilt(stored, offset, size, stride, False, None)


def test_code_in_an_archive_is_not_run(tmp_path):
    made = tmp_path / "made"
    with pytest.raises(CheckpointError, match="which no archive of parameters needs"):
        open_checkpoint(str(archive(tmp_path / "net.jit", pickle.dumps(Touch(made)))))
    assert not made.exists()


@pytest.mark.parametrize(
    "value",
    [
        tensor(items=3),
        tensor(offset=1),
        tensor(offset=-1),
        tensor(size=(2, 3)),
        tensor(size=(1 << 20, 1 << 20), stride=(0, 0)),
        tensor(stride=(4, 1)),
        tensor(stride=(2, -1)),
        tensor(size=(2,)),
        tensor(size=("2", 2)),
        tensor(items=-4),
        tensor(items="4"),
        Rebuilt("storage", 0, (1,), (1,)),
        Stored("something", torch.FloatStorage, "0", "cpu", 4),
        Stored("storage", torch.FloatStorage, "../0", "cpu", 4),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(tmp_path, value):
    with pytest.raises(CheckpointError):
        open_checkpoint(str(archive(tmp_path / "net.jit", pickled(value))))
        pytest.fail("opened")


def modules(depth: int) -> bytes:
    """A pickle of modules, each of which holds the next one twice."""
    module = b"c__torch__\nNet\n)\x81"
    levels = b"".join(
        b"0%b}(X\1\0\0\0ah%bX\1\0\0\0bh%bub" % (module, at, at) + b"q" + bytes([at[0] + 1])
        for at in (bytes([i]) for i in range(depth))
    )
    return b"\x80\x02" + module + b"q\0" + levels + b"."


def test_modules_without_end_are_refused(tmp_path):
    assert not open_checkpoint(str(archive(tmp_path / "net.jit", modules(5)))).names
    with pytest.raises(CheckpointError, match="more than"):
        open_checkpoint(str(archive(tmp_path / "net.jit", modules(40))))


def test_functions_cannot_be_changed(tmp_path):
    changes = b"\x80\x02ctorch.jit._pickle\nbuild_intlist\n}(X\1\0\0\0aK\1ub."
    with pytest.raises(CheckpointError, match="changes a function"):
        open_checkpoint(str(archive(tmp_path / "net.jit", changes)))


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "net.jit"
    save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(str(path))
    bomb = b"\x80\x02" + b"(" * (20 << 20)
    nothing = b"\x80\x02]q\x00."
    for content, compress in ((bomb, True), (bomb, False), (nothing, True), (b"", False)):
        with pytest.raises(CheckpointError):
            open_checkpoint(str(archive(path, content, compress=compress)))
    with pytest.raises(CheckpointError, match="no archive of tensors"):
        open_checkpoint(str(archive(path, b"", folder="a/b")))


def test_a_storage_of_another_size_is_refused(tmp_path):
    path = archive(tmp_path / "net.jit", pickled(tensor(items=8)))
    checkpoint = open_checkpoint(str(path))
    (name,) = checkpoint.names
    with pytest.raises(CheckpointError, match="announced"):
        checkpoint.get(name)


def test_a_flipped_bit_is_found_where_it_is_read(tmp_path):
    path = tmp_path / "net.jit"
    save(path)
    checkpoint = open_checkpoint(str(path))
    name = "1.weight"
    content, stored = bytearray(path.read_bytes()), checkpoint.get(name).numpy().tobytes()
    content[content.index(stored)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"'1\.weight' cannot be read: .*damaged"):
        open_checkpoint(str(path)).get(name)
