"""Every registered model: a stream equals the model run once over all of it, however it is cut.

The models come from tests/support/zoo.py, which fails where a family of the registry has no row.
Streams run past every window and ring: Mimi's attention holds 20 positions here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamenc import state as states
from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.layers.fsq import FSQ
from streamenc.layers.quantize import ResidualVQ
from streamenc.models.model import Model, Scaled, Signal
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.compare import (
    TIE,
    assert_close,
    assert_codes_equal,
    poisoned_memory,
    relative_error,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

cases = pytest.mark.parametrize(("name", "side"), zoo.CASES, ids=["-".join(c) for c in zoo.CASES])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
FLOAT64_ERROR = 1e-10
ROUGH = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Sizes of chunks, each in hops and items; a list is repeated until the signal is used up.
chunks = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-2, 2)), min_size=1, max_size=6
) | st.just([(0, 1)])


def pieces(model: Model, x: Signal, sizes: list[tuple[int, int]]) -> Iterator[Signal]:
    total = length(x)
    counts = [max(0, hops * model.spec.hop + items) for hops, items in sizes]
    if not any(counts):
        counts = [1]
    if max(counts) * 100 < total:
        counts.append(total // 100)
    start = 0
    for count in cycle(counts):
        yield zoo.cut(x, start, start + count)
        start += count
        if start >= total:
            return


def length(x: Signal) -> int:
    return (x.codes if isinstance(x, Scaled) else x).shape[2]


def joined(outputs: list[Signal]) -> Tensor:
    """Outputs one after the other; those of no items have as many channels as the spec says."""
    tensors = [y.codes if isinstance(y, Scaled) else y for y in outputs]
    some = [y for y in tensors if y.shape[2]]
    return torch.cat(some, dim=2) if some else tensors[-1]


def run(model: Model, parts: Iterator[Signal], *, batch: int = 1, hops: int = 1) -> Tensor:
    stream = Stream(model, batch=batch, hops=hops)
    outputs = [stream.push(part) for part in parts]
    return joined([*outputs, stream.flush()])


def offline(model: Model, x: Signal) -> Tensor:
    with torch.inference_mode():
        return model(model.before(x))


def items_for(model: Model, hops: int, rest: float) -> int:
    """A length of some hops beyond what the first step takes, or within it, and a part of a hop."""
    spec = model.spec
    return max(0, spec.lead + (hops - 2) * spec.hop) + int(rest * spec.hop)


def most_hops(model: Model) -> int:
    """Three attention windows, in hops; segments are long, and a few of them do."""
    return 5 if model.spec.hop > 500 or model.spec.hop_out > 500 else 30


def tolerance(name: str, dtype: torch.dtype) -> float:
    return FLOAT64_ERROR if dtype == torch.float64 else zoo.row(name).float32_error


def check(ours: Tensor, theirs: Tensor, rel: float) -> None:
    if not theirs.shape[2]:
        assert not ours.shape[2]
    else:
        assert_close(ours, theirs, rel)


@cases
@dtypes
def test_stream_equals_offline_however_it_is_cut(name, side, dtype):
    model = zoo.model(name, side, dtype)

    @ROUGH
    @given(
        part=st.floats(0, 1),
        rest=st.floats(0, 0.99),
        one=chunks,
        other=chunks,
        hops=st.sampled_from([1, 1, 2, 5]),
        batch=st.sampled_from([1, 1, 3]),
        seed=st.integers(0, 99),
    )
    def check_one(part, rest, one, other, hops, batch, seed):
        items = items_for(model, round(part * most_hops(model)), rest)
        x = zoo.signal(model, items, batch=batch, seed=seed)
        latents: list[Tensor] = []
        noted = zoo.recording(model, latents, model.after)
        y = run(noted, pieces(model, x, one), batch=batch, hops=hops)
        again = run(model, pieces(model, x, other), batch=batch, hops=hops)
        assert torch.equal(y, again), "another way of cutting changed the output"
        whole = offline(model, x)
        check(joined(latents or [whole]), whole, tolerance(name, dtype))
        if model.spec.output.kind == "codes":
            check_codes(model, y, whole)

    check_one()


def check_codes(model: Model, codes: Tensor, latents: Tensor) -> None:
    left = model.after(latents)
    if isinstance(left, Scaled):
        assert relative_error(left.scale, latents[:, -1:]) == 0
        left, latents = left.codes, latents[:, :-1]
    assert codes.dtype == left.dtype == torch.int64
    for fsq in (m for m in model.modules() if isinstance(m, FSQ)):
        # A tie: a value that lies half-way between two levels.
        gap = (fsq.bounded(latents).frac().abs() - 0.5).abs().amin(dim=1, keepdim=True)
        assert codes.shape == left.shape and (gap[codes != left] <= TIE).all()
        return
    quantizers = [m for m in model.modules() if isinstance(m, ResidualVQ)]
    # A grid of codes is as many of them, one after the other.
    assert_codes_equal(codes.flatten(2), left.flatten(2), latents.flatten(2), quantizers)


@cases
@pytest.mark.parametrize("hops", [1, 7])
def test_far_past_every_window(name, side, hops):
    model = zoo.model(name, side)
    # Eight times the attention window; segments and spectra have no longer memory than a few hops.
    items = items_for(model, 12 if model.spec.hop > 500 else 8 * 20, 0.4)
    x = zoo.signal(model, items, seed=3)
    latents = run(zoo.raw(model), pieces(model, x, [(3, 1)]), hops=hops)
    check(latents, offline(model, x), FLOAT64_ERROR)


@cases
def test_short_streams(name, side):
    """No item, one item, and every edge of the first step and the one after it."""
    model = zoo.model(name, side)
    spec = model.spec
    edges = {0, 1, 2, spec.hop - 1, spec.hop, spec.hop + 1}
    for start in (spec.lead, spec.lead + spec.hop):
        edges |= {start - 1, start, start + 1}
    for items in sorted(edges):
        x = zoo.signal(model, items, seed=items)
        whole = offline(model, x)
        check(run(zoo.raw(model), pieces(model, x, [(1, 0)])), whole, FLOAT64_ERROR)
        assert not torch.isnan(whole).any()


@cases
def test_snapshot_goes_on_in_a_fresh_stream(name, side):
    model = zoo.model(name, side, torch.float32)

    @ROUGH
    @given(
        part=st.floats(0, 1),
        rest=st.floats(0, 0.99),
        at=st.floats(0, 1),
        hops=st.sampled_from([1, 3]),
    )
    def check_one(part, rest, at, hops):
        x = zoo.signal(model, items_for(model, round(part * most_hops(model)), rest), seed=4)
        split = round(at * length(x))
        straight, first = Stream(model, hops=hops), Stream(model, hops=hops)
        expected = [straight.push(x), straight.flush()]
        outputs = [first.push(zoo.cut(x, 0, split))]
        blob = first.snapshot()
        for _ in range(2):  # from the same bytes twice: nothing was written into them
            second = Stream(model)
            second.restore(blob)
            assert (second.hops, second.pushed, second.pending) == (hops, split, first.pending)
            rest_of_it = [second.push(zoo.cut(x, split, length(x))), second.flush()]
            assert torch.equal(joined(outputs + rest_of_it), joined(expected))

    check_one()


@cases
def test_snapshot_at_a_step_may_be_followed_by_the_end(name, side):
    model = zoo.model(name, side)
    x = zoo.signal(model, model.spec.lead + 2 * model.spec.hop, seed=8)
    stream = Stream(model)
    before = stream.push(x)
    restored = Stream(model)
    restored.restore(stream.snapshot())
    assert restored.pending == 0
    assert torch.equal(joined([before, restored.flush()]), joined([before, stream.flush()]))


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


WITH_BOOKS = [
    name
    for name, side in zoo.CASES
    if (output := zoo.model(name, side).spec.output).kind == "codes" and output.channels > 1
]


@pytest.mark.parametrize("name", WITH_BOOKS)
def test_fewer_codebooks_are_the_first_ones(name):
    model = zoo.model(name, "encoder", torch.float32)
    x = zoo.signal(model, items_for(model, 6, 0.3), seed=5)
    full = run(model, pieces(model, x, [(1, 0)]))
    stream, frame = Stream(model), 0
    wanted = cycle([None, 1, 3, model.spec.output.channels, 2])
    for part in pieces(model, x, [(1, 3)]):
        stream.codebooks = levels = next(wanted)
        codes = joined([stream.push(part)])
        assert codes.shape[1] == (levels or model.spec.output.channels)
        assert torch.equal(codes, full[:, :levels, frame : frame + codes.shape[-1]])
        frame += codes.shape[-1]
    stream.codebooks = 1
    assert torch.equal(joined([stream.flush()]), full[:, :1, frame:])
    for outside in (0, model.spec.output.channels + 1, -1):
        with pytest.raises(InputError, match="codebooks"):
            stream.codebooks = outside
    assert stream.codebooks == 1


@cases
def test_a_new_stream_after_flush_and_after_reset(name, side):
    """As after a gap: nothing of the first stream is left."""
    model = zoo.model(name, side, torch.float32)
    x = zoo.signal(model, items_for(model, 5, 0.5), seed=6)
    stream = Stream(model)
    expected = joined([stream.push(x), stream.flush()])
    assert stream.state is None and stream.pending == stream.pushed == stream.emitted == 0
    assert torch.equal(joined([stream.push(x), stream.flush()]), expected)
    stream.push(zoo.signal(model, items_for(model, 4, 0.7), seed=7))
    stream.reset()
    assert torch.equal(joined([stream.push(x), stream.flush()]), expected)
    assert not length(stream.flush())


@cases
def test_bad_input_leaves_the_stream_unharmed(name, side):
    model = zoo.model(name, side, torch.float32)
    x = zoo.signal(model, items_for(model, 5, 0.5), seed=9)
    half = length(x) // 2
    stream, reference = Stream(model), Stream(model)
    before = stream.push(zoo.cut(x, 0, half))
    good = zoo.cut(x, 0, 3)
    for bad in list(spoilt(model, good)):
        with pytest.raises(InputError):
            stream.push(bad)
    assert stream.pushed == half
    rest = [stream.push(zoo.cut(x, half, length(x))), stream.flush()]
    assert torch.equal(joined([before, *rest]), joined([reference.push(x), reference.flush()]))


def spoilt(model: Model, good: Signal) -> Iterator[object]:
    """What `model` must not take."""
    if isinstance(good, Scaled):
        yield good.codes
        yield Scaled(good.codes, good.scale[..., :1])
        yield Scaled(good.codes, torch.full_like(good.scale, float("nan")))
        yield Scaled(good.codes + model.spec.codebook_size, good.scale)
    elif model.spec.input.kind == "codes":
        yield good + model.spec.codebook_size
        yield -good - 1
        yield good.double()
        yield torch.cat([good] * 2, dim=0)
        yield torch.cat([good] * 2, dim=1)
        yield good[:, :0]
    else:
        for value in (float("nan"), float("inf"), -float("inf")):
            spoilt_one = good.clone()
            spoilt_one[:, :, 1] = value
            yield spoilt_one
        yield (good * 32768).to(torch.int16)
        yield torch.cat([good] * 2, dim=0)
        yield torch.cat([good] * 3, dim=1)
        yield good[None]
        yield torch.tensor(0.5)
        yield "audio"


def test_the_zoo_knows_each_family():
    assert {row.family for row in zoo.ROWS} == set(zoo.FAMILIES)
    with pytest.raises(UsageError):
        zoo.streamenc.load("mel", part="decoder")


@cases
def test_state_keeps_its_shapes(name, side):
    """Memory is flat, and lanes can be copied: no step changes the state's form."""
    model = zoo.model(name, side)
    stream = Stream(model)
    stream.push(zoo.signal(model, model.spec.lead))
    shapes = [(leaf.shape, leaf.dtype) for leaf in states.leaves(stream.state)]
    stream.push(zoo.signal(model, 9 * model.spec.hop))
    assert [(leaf.shape, leaf.dtype) for leaf in states.leaves(stream.state)] == shapes
