"""Everything that is said about a GPU, by one script: first proved on the device, then timed.

    python -m bench.gpu [--minutes M] [--out DIR]
    python -m bench.gpu --dry-run

Each kernel is compared with its definition in float64, each model with the CPU, each graph with
eager steps; what fails is reported, is not timed, and makes the exit status 1. It needs torch,
triton, numpy and safetensors only, and PYTHONPATH=.:kernels where streamenc is not installed.
Phases come in the order of their importance; each has its share of the time and says what it had
none for.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.gpu import cosmos, kernels
from bench.gpu import steps as gpusteps
from bench.gpu.roofline import Budget, Peaks, peaks
from bench.harness import Row, Table, machine, write_json

RESULTS = Path(__file__).parents[1] / "results"
MINUTES, DRY_MINUTES = 8.5, 0.7
# Shares of the time.
PHASES = {
    "kernels against their definitions": 8.0,
    "models and graphs against the CPU and eager steps": 14.0,
    "peaks of the device": 2.0,
    "Mimi encode": 14.0,
    "streams that keep up": 12.0,
    "kernels in time": 16.0,
    "beside moshi": 10.0,
    "Mimi encode in bfloat16": 8.0,
    "video against the CPU and eager steps": 14.0,
    "video": 16.0,
    "other models": 22.0,
}


@dataclass
class Report:
    """What is known so far; written after each phase, so that a run cut short leaves it.

    failed  By what was checked, what is wrong.
    """

    device: torch.device
    dry: bool
    path: Path | None
    settings: dict[str, Any]
    where: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    checks: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    peaks: Peaks = field(default_factory=lambda: Peaks(math.inf, math.inf, math.inf))

    def check(self, name: str, call: Callable[[], str]) -> None:
        """Notes what a check finds; "" is that all is well."""
        start = time.monotonic()
        try:
            wrong = call()
        except Exception as error:  # whatever a compiler or a launch raises, others still run
            wrong = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if wrong:
            self.failed[name] = wrong
            print(f"FAILED: {name}: {wrong}", file=sys.stderr, flush=True)
        note = wrong or f"equal, {time.monotonic() - start:.1f} s"
        self.checks.append(Row(name, agreement=0.0 if wrong else 1.0, note=note))

    def add(self, name: str, call: Callable[[], Table]) -> None:
        """Prints and keeps a table; one that fails is a failure, and others still come."""
        try:
            table = call()
        except Exception as error:  # as above
            self.failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            print(f"FAILED: {name}: {self.failed[name]}", file=sys.stderr, flush=True)
            return
        self.tables.append(table)
        print_table(table)

    def write(self) -> None:
        if self.path is None:
            return
        checks = Table("Checks", "", self.checks, facts={"failed": self.failed})
        write_json(self.path, "gpu", [checks, *self.tables], self.settings, self.where)


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} "
            + ("finds no GPU" if torch.version.cuda else "is built without CUDA")
            + "; nothing was measured. `python -m bench` measures on the CPU",
            file=sys.stderr,
        )
        return 1
    # Products in TF32 keep ten bits: codes would not be those of the CPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cpu" if args.dry_run else "cuda")
    minutes = args.minutes or (DRY_MINUTES if args.dry_run else MINUTES)
    report = Report(
        device,
        args.dry_run,
        None if args.dry_run else args.out / "gpu.json",
        {"minutes": minutes, "lanes": gpusteps.LANES},
        {**machine(), **_describe(device)},
    )
    print(f"{report.where['device']}, torch {torch.__version__}", flush=True)
    budget = Budget(60 * minutes, PHASES)
    with tempfile.TemporaryDirectory(prefix="streamenc-bench-") as folder:
        for phase, run in zip(PHASES, RUNS, strict=True):
            budget.begin(phase)
            print(f"\n{phase}, {max(0.0, budget.left_seconds()):.0f} s", flush=True)
            run(report, budget, Path(folder))
            if budget.skipped:
                print(f"  no time for: {', '.join(budget.skipped)}")
            report.write()
    if report.path is not None:
        print(f"\nwrote {report.path}")
    for name, wrong in report.failed.items():
        print(f"FAILED: {name}: {wrong}")
    return 1 if report.failed else 0


def _check_kernels(report: Report, budget: Budget, folder: Path) -> None:
    how = kernels.implementation_on(report.device)
    for case in kernels.cases(small=report.dry):
        # Not left out for want of time: what was not checked is not timed.
        report.check(case.title, lambda case=case: case.check(report.device, how))  # type: ignore[misc]
    print(f"  {len(report.checks) - len(report.failed)} of {len(report.checks)} are right")


def _check_steps(report: Report, budget: Budget, folder: Path) -> None:
    steps = 2 if report.dry else gpusteps.CHECKED_STEPS
    for case in _step_cases(report):
        if not budget.allows(case.title):
            continue
        if case.dtype == torch.float32:  # codes in less are not those of the CPU
            report.check(
                case.title,
                lambda case=case: gpusteps.check_model(case, folder, report.device, steps=steps),  # type: ignore[misc]
            )
        report.check(
            f"{case.title}, by a graph",
            lambda case=case: gpusteps.check_graph(case, folder, report.device),  # type: ignore[misc]
        )
    for row in report.checks:
        print(f"  {row.name}: {row.note}")


def _peaks(report: Report, budget: Budget, folder: Path) -> None:
    report.peaks = found = peaks(report.device, budget.left_seconds() / 2, small=report.dry)
    facts = {
        "memory, read and written": f"{found.bytes_per_second / 1e9:.0f} GB/s",
        "products in float32": f"{found.float32_per_second / 1e12:.1f} TFLOP/s",
        "products in bfloat16": f"{found.bfloat16_per_second / 1e12:.1f} TFLOP/s",
    }
    report.add("peaks", lambda: Table("Peaks of the device", "", [], facts=facts))


def _mimi(report: Report, budget: Budget, folder: Path) -> None:
    _time_steps(report, budget, folder, gpusteps.MIMI)


def _mimi_half(report: Report, budget: Budget, folder: Path) -> None:
    _time_steps(report, budget, folder, gpusteps.MIMI_HALF)


def _capacity(report: Report, budget: Budget, folder: Path) -> None:
    case = _step_cases(report)[0]
    if not _is_proved(report, case):
        return
    dry: dict[str, Any] = {"start": 2, "most": 4, "seconds": 0.05} if report.dry else {}
    report.add(
        "streams that keep up",
        lambda: gpusteps.capacity_table(case, folder, report.device, budget, **dry),
    )


def _time_kernels(report: Report, budget: Budget, folder: Path) -> None:
    for case in kernels.cases(small=report.dry):
        if case.title in report.failed:
            print(f"  {case.title}: not timed, it is wrong")
        elif budget.allows(case.title):
            report.add(
                f"{case.title}, in time",
                lambda case=case: kernels.time_case(  # type: ignore[misc]
                    case, report.device, report.peaks, budget, small=report.dry
                ),
            )


def _beside_moshi(report: Report, budget: Budget, folder: Path) -> None:
    if report.dry or not _is_proved(report, gpusteps.MIMI):
        return
    report.add(
        "beside moshi",
        lambda: gpusteps.moshi_table(folder, report.device, budget, gpusteps.LANES),
    )


def _check_video(report: Report, budget: Budget, folder: Path) -> None:
    first = len(report.checks)
    for case in _video_cases(report):
        if budget.allows(case.title):
            report.check(
                case.title,
                lambda case=case: cosmos.check(case, folder, report.device),  # type: ignore[misc]
            )
            report.check(
                f"{case.title}, by a graph",
                lambda case=case: cosmos.check_graph(case, folder, report.device),  # type: ignore[misc]
            )
    for row in report.checks[first:]:
        print(f"  {row.name}: {row.note}")


def _video(report: Report, budget: Budget, folder: Path) -> None:
    cases = [case for case in _video_cases(report) if _is_proved(report, case)]
    how: dict[str, Any] = {"lane_counts": (1, 2), "seconds": 0.05} if report.dry else {}
    for index, case in enumerate(cases):
        if budget.allows(case.title):
            part = budget.part(budget.left_seconds() / (len(cases) - index))
            report.add(
                f"{case.title}, in time",
                lambda case=case, part=part: cosmos.table(  # type: ignore[misc]
                    case, folder, report.device, part, report.peaks, **how
                ),
            )


def _video_cases(report: Report) -> tuple[cosmos.Case, ...]:
    return cosmos.DRY_CASES if report.dry else cosmos.CASES


def _others(report: Report, budget: Budget, folder: Path) -> None:
    cases = () if report.dry else gpusteps.CASES
    for index, case in enumerate(cases):
        if budget.allows(case.title):
            # A share of what is left, so that the first does not take it from the rest.
            share = budget.left_seconds() / (len(cases) - index)
            _time_steps(report, budget.part(share), folder, case)


RUNS = (
    _check_kernels,
    _check_steps,
    _peaks,
    _mimi,
    _capacity,
    _time_kernels,
    _beside_moshi,
    _mimi_half,
    _check_video,
    _video,
    _others,
)


def _step_cases(report: Report) -> tuple[gpusteps.Case, ...]:
    """The most important first."""
    if report.dry:
        nano = next(case for case in gpusteps.CASES if case.name == "nano")
        return (nano, next(c for c in gpusteps.CASES if c.name == "nano" and c.part == "decoder"))
    return (gpusteps.MIMI, gpusteps.MIMI_HALF, *gpusteps.CASES)


def _is_proved(report: Report, case: gpusteps.Case | cosmos.Case) -> bool:
    wrong = [name for name in report.failed if name.startswith(case.title)]
    known = any(row.name.startswith(case.title) for row in report.checks)
    if wrong or not known:
        print(f"  {case.title}: not timed, it {'is wrong' if wrong else 'was not checked'}")
    return known and not wrong


def _time_steps(report: Report, budget: Budget, folder: Path, case: gpusteps.Case) -> None:
    if report.dry:
        case = _step_cases(report)[0]
    if not _is_proved(report, case):
        return
    lanes = (1, 3) if report.dry else gpusteps.LANES
    seconds = 0.05 if report.dry else gpusteps.CASE_SECONDS
    report.add(
        f"{case.title}, in time",
        lambda: gpusteps.steps_table(case, folder, report.device, budget, lanes, seconds=seconds),
    )


def print_table(table: Table) -> None:
    """Plain text, without any package."""
    print(f"\n{table.title}{table.unit and f' ({table.unit})'}")
    width = max((len(row.name) for row in table.rows), default=0)
    if table.rows:
        print(f"  {'':{width}}{'p50':>10}{'p90':>10}{'p99':>10}{'count':>7}")
    for row in table.rows:
        times = "".join(
            f"{'' if value is None else f'{value:.4f}':>10}"
            for value in (row.p50_ms, row.p90_ms, row.p99_ms)
        )
        extra = [row.note] if row.note else []
        if row.ratio is not None:
            extra.append(f"x {table.reference} {row.ratio:.2f}")
        if row.agreement is not None:
            extra.append(f"agrees {row.agreement:.4f}")
        print(f"  {row.name:{width}}{times}{row.count or '':>7}  {'; '.join(extra)}".rstrip())
    for key, value in table.facts.items():
        print(f"  {key}: {value}")
    sys.stdout.flush()


def _describe(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": "a dry run on the CPU, whose figures mean nothing"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "l2_cache_bytes": properties.L2_cache_size,
        "processors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": False,
    }


def _driver() -> str | None:
    """As Linux tells it, without another program."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0] if path.exists() else None


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"{text} minutes; wanted more than 0, up to 600")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Proves kernels, models and graphs on a GPU, then times them.",
        epilog="examples:\n  python -m bench.gpu\n  python -m bench.gpu --minutes 3\n"
        "  python -m bench.gpu --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=_minutes, metavar="M", help=f"for the whole run ({MINUTES:g})"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="small shapes on the CPU; nothing is written"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="for gpu.json (bench/results)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
