"""The GPU script where there is none: what it says, that its checks can fail, and a dry run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import weights
from bench.gpu import kernels, run, steps
from bench.gpu.roofline import Budget, Peaks, relative_error, times_ms
from bench.harness import Row, Table
from streamenc_kernels import rvq_search

CPU = torch.device("cpu")
ROOT = Path(run.__file__).parents[2]
NANO = next(case for case in steps.CASES if case.name == "nano")
ENCODEC = next(case for case in steps.CASES if case.name.startswith("EnCodec"))

# What a machine that is lent for an hour need not have; torch, triton, numpy and safetensors stay.
BLOCKED = """
import sys
from importlib.machinery import PathFinder

NAMES = {
    "aiomqtt", "anyio", "av", "diffusers", "encodec", "huggingface_hub", "librosa", "matplotlib",
    "moshi", "msgspec", "onnx", "onnxruntime", "onnxscript", "pesq", "pyarrow", "pytest", "rich",
    "rustymimi", "scipy", "sounddevice", "soxr", "transformers", "typer", "zmq",
}

class Few(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else super().find_spec(name, path, target)

sys.meta_path[:] = [Few if finder is PathFinder else finder for finder in sys.meta_path]
for name in NAMES:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is not blocked")
from bench.gpu import run
sys.exit(run.main(sys.argv[1:]))
"""


def test_without_cuda_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--out", str(tmp_path)]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_goes_through_all_phases_with_few_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    assert all(f"\n{phase}, " in done.stdout for phase in run.PHASES)
    for title in (
        "rvq_search",
        "ring_attention",
        "nano encode",
        "lanes that keep up",
        "Peaks",
        "Cosmos",
    ):
        assert title in done.stdout
    assert "mean nothing" in done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", kernels.cases(small=True), ids=lambda case: case.title)
def test_the_definitions_pass_their_own_check(case: kernels.Case) -> None:
    assert case.check(CPU, "torch") == ""


def test_a_wrong_search_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = kernels.cases(small=True)[0]

    def off_by_one(halves, **options):
        codes, sums = rvq_search(halves, **options)
        codes[-1, -1] = (codes[-1, -1] + 1) % 48
        return codes, sums

    monkeypatch.setattr(kernels, "rvq_search", off_by_one)
    assert "off the nearest entry" in case.check(CPU, "torch")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda y, keys: y.add_(1e-3), "is off by"),
        (lambda y, keys: y.fill_(float("nan")), "is off by"),
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
    assert said in kernels.cases(small=True)[1].check(CPU, "torch")


def test_the_least_bytes_and_operations() -> None:
    search = kernels.Search("", rows=3, levels=(1, 2), entries=5, dim=7)
    assert search.flops == 2 * 3 * 3 * 5 * 7
    assert search.nbytes == 4 * (2 * 3 * 7 + 3 * 5 * 7 + 3 * 5) + 8 * 3 * 3
    ring = kernels.Ring(3, torch.bfloat16, heads=2, dim=16, window=9)
    assert ring.flops == 2 * 2 * 3 * 2 * 2 * 9 * 16  # scores and mixtures
    assert ring.nbytes == 2 * 3 * 2 * 16 * (2 * 8 + (3 + 2 + 1) * 2)
    peaks = Peaks(1e12, 1e13, 1e14)
    assert peaks.floor_ms(2e9, 1e9) == pytest.approx(2)
    assert peaks.floor_ms(1e6, 1e11) == pytest.approx(10)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_models_are_compared_with_the_cpu(part, tmp_path: Path) -> None:
    case = replace(ENCODEC, part=part)
    assert steps.check_model(case, tmp_path, CPU, steps=2) == ""


def test_the_comparison_with_the_cpu_can_fail(tmp_path: Path) -> None:
    seeds = iter(range(2))

    def others(folder: Path) -> str:
        seed = next(seeds)
        return f"encodec:{weights.encodec(folder / str(seed), seed=seed)}"

    case = replace(ENCODEC, weights=others)
    assert "equals that of the CPU" in steps.check_model(case, tmp_path, CPU, steps=2)


def test_a_graph_that_gives_something_else_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stale(steps.GraphedStep):
        kept = None

        def __call__(self, x, state, active):
            self.kept = super().__call__(x, state, active) if self.kept is None else self.kept
            return self.kept

    assert steps.check_graph(NANO, tmp_path, CPU) == ""
    monkeypatch.setattr(steps, "GraphedStep", Stale)
    assert "by a graph is off" in steps.check_graph(NANO, tmp_path, CPU)


def test_half_precision_steps(tmp_path: Path) -> None:
    half = replace(NANO, dtype=torch.bfloat16)
    assert steps.check_graph(half, tmp_path, CPU) == ""


def test_every_lane_gets_another_place_of_the_voice(tmp_path: Path) -> None:
    lanes = steps.Lanes(NANO, NANO.load(tmp_path, CPU), 3)
    assert [tuple(x.shape) for x in lanes.inputs] == [(3, 1, 1280)] * steps.INPUT_SETS
    assert not torch.equal(lanes.inputs[0][0], lanes.inputs[0][1])


def test_the_most_lanes_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a device where a lane takes 0.01 ms, and 10,000 are out of memory."""

    def row(name, case, model, count, *rest):
        return Row(name) if count >= 10_000 else Row.of(name, [0.01 * count])

    monkeypatch.setattr(steps, "_steps_row", row)
    budget = Budget(60, {"capacity": 1})
    budget.begin("capacity")
    for start in (512, 2048, 16_384):
        table = steps.capacity_table(NANO, tmp_path, CPU, budget, start=start)
        held = int(table.facts["streams at p99 under 40 ms"].replace(",", ""))
        assert 3600 <= held < 4000
    assert not budget.skipped


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    report = run.Report(CPU, True, tmp_path / "gpu.json", {}, {})

    def breaks() -> str:
        raise ValueError("no such instruction\nmore")

    report.check("a kernel", breaks)
    report.check("another", lambda: "")
    report.add("a table", lambda: Table("one", "ms", [Row.of("row", [1.0])]))
    report.write()
    assert report.failed == {"a kernel": "ValueError: no such instruction"}
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [t["title"] for t in written["tables"]] == ["Checks", "one"]
    assert written["tables"][0]["facts"]["failed"] == report.failed


@pytest.mark.slow
def test_what_is_wrong_is_not_timed_and_the_exit_status_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels.Search, "check", lambda *_: "wrong")
    monkeypatch.setattr(steps, "check_model", lambda *_, **__: "wrong as well")
    assert run.main(["--dry-run"]) == 1
    said = capsys.readouterr()
    assert "5 rows: not timed, it is wrong" in said.out and "5 rows: wrong" in said.err
    assert "nano encode, float32: not timed, it is wrong" in said.out
    assert "ring_attention, 3 lanes, float32 (ms" in said.out


def test_phases_share_the_time() -> None:
    budget = Budget(10, {"one": 1, "two": 4})
    budget.begin("one")
    assert 1.9 < budget.left_seconds() <= 2
    assert budget.allows("short", 1) and not budget.allows("long", 3)
    assert not budget.part(1).allows("too long", 1.5)
    assert budget.skipped == ["long", "too long"]
    budget.begin("two")
    assert budget.left_seconds() > 9.9 and not budget.skipped


def test_times_end_in_time() -> None:
    assert len(times_ms(lambda _: None, CPU, 10, calls=7)) == 7
    assert len(times_ms(lambda _: None, CPU, 0)) == 5


def test_not_a_number_is_an_infinite_error() -> None:
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
