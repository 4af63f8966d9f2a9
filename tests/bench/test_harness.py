"""The harness on a clock of its own: what is paired, in which order, and what is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import cores
from bench.harness import (
    Contestant,
    Noise,
    Row,
    Table,
    condition,
    counts,
    loads,
    machine,
    measure,
    measure_each,
    median_interval,
    paired_ratios,
    percentile,
    print_tables,
    write_json,
)


class FakeClock:
    """Stands still but for what steps add to it."""

    def __init__(self) -> None:
        self.ns = 0
        self.log: list[tuple[str, int]] = []

    def __call__(self) -> int:
        return self.ns

    def step(self, name: str, ms: Callable[[int], float]) -> Callable[[int], None]:
        def run(index: int) -> None:
            self.log.append((name, index))
            self.ns += round(ms(index) * 1e6)

        return run


def run(clock: FakeClock, contestants: list[Contestant], **options: object) -> Table:
    settings: dict[str, object] = {"reference": "ours", "rounds": 8, "warmup": 2} | options
    return measure("t", "ms", contestants, pause_seconds=0, clock_ns=clock, **settings)  # type: ignore[arg-type]


def by_name(table: Table) -> dict[str, Row]:
    return {row.name: row for row in table.rows}


@pytest.mark.parametrize(
    ("percent", "wanted"), [(0, 1), (50, 3), (60, 3), (61, 4), (90, 5), (99, 5), (100, 5)]
)
def test_percentiles_are_of_nearest_rank(percent: float, wanted: float) -> None:
    assert percentile([5, 3, 1, 4, 2], percent) == wanted


def test_percentiles_of_one_value_are_that_value() -> None:
    assert [percentile([7.5], p) for p in (0, 50, 99, 100)] == [7.5] * 4


def test_the_99th_of_250_leaves_two_above() -> None:
    assert percentile(list(range(1, 251)), 99) == 248


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 101])
def test_the_interval_holds_the_median_and_narrows(count: int) -> None:
    low, high = median_interval(range(count))
    assert low <= (count - 1) / 2 <= high
    assert high - low <= count - 1
    if count == 101:
        # Of 101 values, the ranks 41 to 61 enclose the median with 95 %.
        assert (low, high) == (40, 60)


def test_a_machine_that_slows_down_leaves_paired_ratios_alone() -> None:
    clock = FakeClock()
    slowing = [1.0 + round_index for round_index in range(10)]
    ours = Contestant("ours", clock.step("ours", lambda i: 2 * slowing[i]))
    theirs = Contestant("theirs", clock.step("theirs", lambda i: 3 * slowing[i]))
    rows = by_name(run(clock, [ours, theirs]))
    assert rows["theirs"].ratio == rows["theirs"].ratio_low == rows["theirs"].ratio_high == 1.5
    assert rows["ours"].ratio == 1
    # Times in milliseconds, without the two rounds of warm-up.
    assert (rows["ours"].count, rows["ours"].p50_ms, rows["ours"].max_ms) == (8, 12.0, 20.0)


def test_the_ratio_is_the_median_of_pairs_and_not_of_sums() -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 1))
    # One round in which the machine stood still for theirs alone.
    theirs = Contestant("theirs", clock.step("theirs", lambda i: 1000 if i == 5 else 2))
    row = by_name(run(clock, [ours, theirs], rounds=9))["theirs"]
    assert row.ratio == 2
    assert row.max_ms == 1000


def test_each_round_runs_everyone_once_and_in_changing_order() -> None:
    clock = FakeClock()
    names = ["ours", "a", "b"]
    run(clock, [Contestant(n, clock.step(n, lambda i: 1)) for n in names], rounds=12, warmup=0)
    rounds = [clock.log[i : i + 3] for i in range(0, 36, 3)]
    assert all({index for _, index in entries} == {i} for i, entries in enumerate(rounds))
    orders = ["".join(name[0] for name, _ in entries) for entries in rounds]
    assert all(sorted(order) == ["a", "b", "o"] for order in orders)
    assert len(set(orders)) == 6
    # Everyone comes first, and last, equally often.
    for place in (0, -1):
        assert sorted(order[place] for order in orders) == sorted("abo" * 4)


def test_blocks_are_of_rounds_on_end() -> None:
    clock = FakeClock()
    names = ["ours", "a"]
    run(
        clock,
        [Contestant(n, clock.step(n, lambda i: 1)) for n in names],
        rounds=5,
        warmup=0,
        block=2,
    )
    assert clock.log == [
        *(("ours", 0), ("ours", 1), ("a", 0), ("a", 1)),
        *(("a", 2), ("a", 3), ("ours", 2), ("ours", 3)),
        *(("a", 4), ("ours", 4)),
    ]


def test_conditions_take_turns_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    class NoProcesses(cores.Busy):
        def keep(self, count: int) -> None:
            kept.append(count)

        def __init__(self, most: int) -> None:
            super().__init__(0)
            assert most == 3

    monkeypatch.setattr(cores, "Busy", NoProcesses)
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 10 * kept[-1] + i))
    quiet, busy = measure_each(
        (0, 3),
        "t",
        "ms",
        [ours],
        reference="ours",
        rounds=4,
        warmup=1,
        block=2,
        absent=[Row("theirs", note="no")],
        threads=2,
        pause_seconds=0,
        clock_ns=clock,
    )
    assert kept[1:] == [0, 3, 3, 0]
    # Before each half a round that is not timed.
    assert [index for _, index in clock.log] == [0, 1, 2, 0, 1, 2, 2, 3, 4, 2, 3, 4]
    assert (quiet.busy, busy.busy) == (0, 3)
    assert (quiet.condition, busy.condition) == ("2 threads", "2 threads, 3 busy processes beside")
    assert [by_name(table)["ours"].count for table in (quiet, busy)] == [4, 4]
    assert (by_name(quiet)["ours"].min_ms, by_name(quiet)["ours"].max_ms) == (1, 4)
    assert (by_name(busy)["ours"].min_ms, by_name(busy)["ours"].max_ms) == (31, 34)
    assert [row.name for row in busy.rows] == ["ours", "theirs"]
    assert "load average before and after" in busy.facts


def test_who_never_rests_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "settle", lambda seconds: False)
    clock = FakeClock()
    table = run(clock, [Contestant("ours", clock.step("ours", lambda i: 1))])
    assert table.facts["begun while threads before still spun"] == "ours"


def test_warmup_is_not_timed() -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 500 if i < 3 else 1))
    row = by_name(run(clock, [ours], rounds=5, warmup=3))["ours"]
    assert (row.count, row.max_ms) == (5, 1.0)


def test_long_calls_run_now_and_then_and_are_divided_by_their_units() -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: i + 1))
    whole = Contestant("whole", clock.step("whole", lambda i: 100), every=4, units=50)
    row = by_name(run(clock, [ours, whole], rounds=8, warmup=0))["whole"]
    assert [index for name, index in clock.log if name == "whole"] == [3, 7]
    assert (row.count, row.p50_ms) == (2, 2.0)
    # Rounds 0 to 3 took 1 to 4 ms, rounds 4 to 7 took 5 to 8.
    assert row.ratio == pytest.approx((2 / 2.5 + 2 / 6.5) / 2)


def test_long_calls_are_warmed_up_once() -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 1))
    whole = Contestant("whole", clock.step("whole", lambda i: 1), every=4)
    run(clock, [ours, whole], rounds=4, warmup=2)
    assert [index for name, index in clock.log if name == "whole"] == [0, 5]


def test_too_few_rounds_for_a_long_call_are_said() -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 1))
    whole = Contestant("whole", clock.step("whole", lambda i: 1), every=100)
    row = by_name(run(clock, [ours, whole]))["whole"]
    assert (row.count, row.ratio, row.note) == (0, None, "not run: too few rounds")


def test_a_copy_of_the_reference_tells_the_noise() -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 10))
    twin = Contestant("copy", clock.step("copy", lambda i: 5 + i))
    noise = run(clock, [ours], twin=twin, rounds=10, warmup=0).noise
    assert noise == Noise(ratio=0.95, p10=0.5, p90=1.3)
    assert "0.950" in str(noise)


def test_pairs_are_of_the_same_round() -> None:
    assert paired_ratios({2: 6.0, 3: 8.0}, {3: 2.0, 2: 3.0}, 1) == [2.0, 4.0]


def test_those_that_cannot_run_keep_their_row(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    ours = Contestant("ours", clock.step("ours", lambda i: 1))
    table = run(clock, [ours], absent=[Row("theirs", note="not installed (No module theirs)")])
    print_tables([table])
    printed = capsys.readouterr().out
    assert "theirs" in printed
    assert "not installed" in printed


def test_the_printed_table_has_ratio_noise_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("them", 3, 12.345, 13.0, 14.0, 1500.0, 1.87, 1.8, 1.95, 0.9991, "a note")
    facts = {"gaps": 0}
    print_tables(
        [Table("Title", "ms per step", [row], "us", 2, Noise(1.01, 0.9, 1.1), facts=facts)]
    )
    printed = capsys.readouterr().out
    for part in ("Title, 2 threads (ms per step)", "12.35", "1500", "x us", "1.87", "1.80-1.95"):
        assert part in printed, part
    for part in ("0.9991", "a note", "1.010", "gaps: 0"):
        assert part in printed, part


def test_json_holds_the_tables_and_where_they_are_from(tmp_path: Path) -> None:
    table = Table("T", "ms", [Row("a", 2, 1.0, 2.0, 2.0, 2.0)], "a", 2, Noise(1.0, 0.9, 1.1))
    path = tmp_path / "new" / "codecs.json"
    write_json(path, "codecs", [table], {"frames": 2}, {**machine(), "device": "none"})
    read = json.loads(path.read_text())
    assert read["name"] == "codecs"
    assert read["settings"] == {"frames": 2}
    assert read["machine"]["device"] == "none"
    assert read["machine"]["versions"]["torch"]
    assert Table.from_dict(read["tables"][0]) == table
    assert Table.from_dict(asdict(Table("T", "ms", []))) == Table("T", "ms", [])


def test_the_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMENC_PACKED_LINEAR", "never")
    here = machine()
    assert here["cpu"]
    assert here["cores"] >= 1
    assert here["versions"]["torch"]
    assert here["packed_linear"] == "never"
    assert {"moshi", "rustymimi", "transformers", "encodec"} <= here["versions"].keys()
    assert here["date"].endswith("+00:00")
    assert "commit" in here


def test_counts_are_read() -> None:
    assert counts("1,2,16") == [1, 2, 16]
    for wrong in ("0", "1,,2", "-1", "two"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 up"):
            counts(wrong)


def test_conditions_are_said_in_words() -> None:
    assert condition(1, 0) == "1 thread"
    assert condition(2, 1) == "2 threads, 1 busy process beside"


def test_loads_are_read() -> None:
    assert loads("0,3") == [0, 3]
    for wrong in ("", "-1", "three", "0,,1"):
        with pytest.raises(argparse.ArgumentTypeError, match="got"):
            loads(wrong)
