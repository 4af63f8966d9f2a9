"""The kernels' checks: they pass by the definitions, and can fail."""

from __future__ import annotations

import pytest
import torch

from bench.gpu.phase import Found
from bench.gpu.phases import kernels
from bench.gpu.phases.ops import PLAIN, Plain
from bench.gpu.timing import Peaks
from bench.harness import Row
from streamenc_kernels import rvq_search

CPU = torch.device("cpu")


def test_the_definitions_pass_and_are_timed(phase, all_right) -> None:
    kernels.check(phase)
    kernels.time(phase)
    found = all_right()
    timed = [line for line in found if line.table == kernels.TABLE]
    assert len(timed) >= 2 * len(kernels.cases(small=True))
    assert all(line.count and line.proved for line in timed if line.name.endswith(kernels.KERNEL))


def test_a_wrong_search_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = kernels.cases(small=True)[0]

    def off_by_one(halves, **options):
        codes, sums = rvq_search(halves, **options)
        codes[-1, -1] = (codes[-1, -1] + 1) % 48
        return codes, sums

    monkeypatch.setattr(kernels, "rvq_search", off_by_one)
    assert "off the nearest" in case.check(CPU, "torch").wrong


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda y, keys: y.add_(1e-3), ""),
        (lambda y, keys: y.fill_(float("nan")), ""),
        (lambda y, keys: keys.add_(1e-3), "that are not new"),
    ],
)
def test_wrong_attention_is_seen(monkeypatch: pytest.MonkeyPatch, harm, said: str) -> None:
    right = kernels.ring_attention

    def wrong(q, k, v, keys, values, plan):
        y = right(q, k, v, keys, values, plan)
        harm(y, keys)
        return y

    monkeypatch.setattr(kernels, "ring_attention", wrong)
    found = kernels.cases(small=True)[1].check(CPU, "torch")
    assert not found.ok and said in found.wrong


def plain(ours) -> Plain:
    return Plain(
        "a sum",
        nbytes=4 * 3 * 7,
        flops=2 * 7,
        make=lambda device, seed: (torch.full((2, 7), float(seed), device=device), 1),
        ours=lambda x, axis, implementation: ours(x, axis),
        definition=lambda x, axis: x.sum(dim=axis),
    )


@pytest.mark.parametrize(
    ("ours", "right"),
    [
        (lambda x, axis: x.sum(dim=axis), True),
        (lambda x, axis: x.sum(dim=axis) * (1 + 1e-4), False),
        (lambda x, axis: x.sum(dim=0), False),
    ],
)
def test_an_op_in_a_row_of_the_table(ours, right: bool) -> None:
    op = plain(ours)
    assert op.check(CPU, "torch").ok is right
    assert op.ways(CPU, "torch")[PLAIN](3)().tolist() == [21, 21]


def test_the_least_bytes_and_operations() -> None:
    search = kernels.Search("", rows=3, levels=(1, 2), entries=5, dim=7)
    assert search.flops == 2 * 3 * 3 * 5 * 7
    assert search.nbytes == 4 * (2 * 3 * 7 + 3 * 5 * 7 + 3 * 5) + 8 * 3 * 3
    ring = kernels.Ring(3, torch.bfloat16, heads=2, dim=16, window=9)
    assert ring.flops == 2 * 2 * 3 * 2 * 2 * 9 * 16  # scores and mixtures
    assert ring.nbytes == 2 * 3 * 2 * 16 * (2 * 8 + (3 + 2 + 1) * 2)
    peaks = Peaks(1e12, 1e13)
    assert peaks.floor_ms(2e9, 1e9) == pytest.approx(2)
    assert peaks.floor_ms(1e6, 1e11) == pytest.approx(10)


def test_the_roofline_is_spoken_of_where_rates_are_known() -> None:
    op, row = plain(torch.sum), Row.of("kernel", [2.0])
    before = {"plain torch": Row.of("plain torch", [4.0])}
    assert "no rates were measured" in kernels._beside(op, Peaks(None, None), {}, row)
    said = kernels._beside(op, Peaks(84e3, 1e12), before, row)
    assert "2.00 times the roofline's 1.0000 ms" in said and "0.50 times the plain torch" in said


def test_what_failed_is_timed_and_marked(phase, lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.Search, "check", lambda *_: Found(wrong="wrong"))
    few = kernels.cases(small=True)[:2]
    monkeypatch.setattr(kernels, "cases", lambda small: few)
    kernels.check(phase)
    kernels.time(phase)
    marked = {line.subject: line.proved for line in lines() if line.subject and line.count}
    assert marked["rvq_search, two quantisers, 5 rows"] is False
    assert marked["ring_attention, 3 lanes, float32"] is True
