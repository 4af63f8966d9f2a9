"""Every registered model: a stream equals the model run once over all of it, however it is cut.

The models come from tests/support/zoo/, which fails where a family of the registry has no row;
what is checked is in streamenc/testing. Streams run past every window and ring: Mimi's attention
holds 20 positions here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamenc.errors import SnapshotError, UsageError
from streamenc.stream import Stream
from streamenc.testing import check_model
from streamenc.testing.signals import joined
from tests.support import zoo
from tests.support.compare import poisoned_memory
from tests.support.profile import FULL, examples

__all__ = ["poisoned_memory"]

cases = pytest.mark.parametrize(("name", "side"), zoo.CASES, ids=["-".join(c) for c in zoo.CASES])
# What float64 has shown of the same code, float32 need not show again with each commit.
SHOWN = () if FULL else ("steps", "state", "short", "far", "lanes")
# tests/test_reach.py measures what reaches an output by gradients, of all models; by other inputs
# it takes minutes. Windows that are shorter than their transform leave out what these take.
REACHES = {name for name, _ in zoo.CASES} if FULL else {"nano", "mimi"}
REACHES |= {row.name for row in zoo.ROWS if row.family in zoo.OF_TEXT}
REACHES -= {"mel-uncentred"}
# Each module rounds in its own way, and has the company of other streams in its own way, whatever
# the family and its options: with each commit its first row shows both.
FIRST = {zoo.FAMILIES[row.family]: row.name for row in reversed(zoo.ROWS)}
ROUNDED = [case for case in zoo.CASES if FULL or case[0] in FIRST.values()]
COMPANY = {"batch", "idle lanes", "lanes"}


@cases
def test_float64(name, side):
    """All that is left in float64 is a mistake, not rounding."""
    leave_out = set() if name in REACHES else {"reach"}
    fast = 3
    if (name, side) not in ROUNDED:
        leave_out |= COMPANY
        fast = 1
    cuts = examples(20, fast=fast)
    report = check_model(zoo.model(name, side), examples=cuts, leave_out=leave_out)
    assert report.tolerance == 1e-10
    print(report)


@pytest.mark.parametrize(("name", "side"), ROUNDED, ids=["-".join(c) for c in ROUNDED])
def test_float32(name, side):
    model = zoo.model(name, side, torch.float32)
    print(
        check_model(
            model,
            examples=examples(20, fast=3),
            seed=1,
            tolerance=zoo.row(name).float32_error,
            leave_out={*SHOWN, "reach"},
        )
    )


OTHER_PROCESS = """
import sys
import torch
import streamenc
from safetensors.torch import load_file, save_file

codec = streamenc.load(sys.argv[1])
stream = codec.stream()
stream.restore(open(sys.argv[2], "rb").read())
out = [stream.push(load_file(sys.argv[3])["rest"]), stream.flush()]
save_file({"codes": torch.cat(out, dim=-1)}, sys.argv[4])
"""


@pytest.mark.usefixtures("poisoned_memory")
def test_snapshot_goes_on_in_another_process(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    zoo.save_mimi(tmp_path / "model")
    codec = zoo.streamenc.load(str(tmp_path / "model"))
    x = zoo.signal(codec.encoder, 1000)
    stream = codec.stream(codebooks=3)
    first = stream.push(zoo.cut(x, 0, 701))
    (tmp_path / "stream").write_bytes(stream.snapshot())
    save_file({"rest": x[..., 701:].contiguous()}, tmp_path / "rest")
    arguments = [str(tmp_path / part) for part in ("model", "stream", "rest", "codes")]
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, *arguments], check=True, timeout=100)
    there = load_file(tmp_path / "codes")["codes"]
    here = [stream.push(zoo.cut(x, 701, 1000)), stream.flush()]
    assert torch.equal(there, joined(here))
    assert torch.equal(joined([first, there]), codec.encode(x, codebooks=3))


@pytest.mark.usefixtures("poisoned_memory")
def test_snapshots_of_others_and_damaged_ones_are_refused():
    model = zoo.model("mimi", "encoder", torch.float32)
    stream, other = Stream(model), Stream(zoo.model("encodec", "encoder", torch.float32))
    x = zoo.signal(model, 500)
    reference, before = Stream(model), stream.push(zoo.cut(x, 0, 300))
    blob, foreign = stream.snapshot(), Stream(model, batch=2).snapshot()
    other.push(zoo.signal(other.model, 100))
    flipped = bytearray(blob)
    flipped[-100] ^= 0x40
    bad = {
        "another model": other.snapshot(),
        "another dtype": Stream(zoo.model("mimi", "encoder")).snapshot(),
        "another side": Stream(zoo.model("mimi", "decoder", torch.float32)).snapshot(),
        "another batch": foreign,
        "truncated": blob[:-1],
        "a bit flipped": bytes(flipped),
        "a pickle": b"\x80\x04\x95" + bytes(100),
        "nothing": b"",
    }
    for what, damaged in bad.items():
        with pytest.raises(SnapshotError):
            stream.restore(damaged)
            pytest.fail(f"{what} was restored")
    # Unharmed by all of it.
    rest = [stream.push(zoo.cut(x, 300, 500)), stream.flush()]
    assert torch.equal(joined([before, *rest]), joined([reference.push(x), reference.flush()]))


def test_the_zoo_knows_each_family():
    assert {row.family for row in zoo.ROWS} == set(zoo.FAMILIES)
    with pytest.raises(UsageError):
        zoo.streamenc.load("mel", part="decoder")
