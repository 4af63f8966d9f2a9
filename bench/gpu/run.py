"""The run: phases as processes, each with a time limit, whose rows are written as they come.

    python -m bench.gpu --out DIR [--phases a,b] [--minutes M]
    python -m bench.gpu --out DIR --dry-run

It needs torch, triton, numpy and safetensors only, and PYTHONPATH=.:kernels where streamenc is not
installed. A phase that raises, hangs or loses its device ends alone. DIR gets gpu.jsonl, a row a
line as soon as it is known, gpu.log, what the phases said to stderr, and at the end gpu.json, as
the other measurements in bench/results have it; a second run in the same DIR writes gpu-2.*, and so
on. The exit status is 1 where a check failed or a phase did not end by itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType

from bench.gpu import phase as phases
from bench.gpu import rows
from bench.gpu.rows import RUN, Line

ROOT = Path(__file__).parents[2]
# What a phase is ended with where it does not end itself at its limit, and how long that may take.
GRACE_SECONDS, KILL_SECONDS = 2.0, 5.0
# Limits are for a GPU; a dry run is on a processor that others may keep busy.
DRY_TIMES = 5
NO_DEVICE, STOPPED = 3, 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Plan:
    """target  "module:function", called with a Phase.
    seconds  The phase's limit; what it has no time for is told in its rows.
    asked    It runs only where `--phases` names it.
    """

    target: str
    seconds: float
    caption: str
    asked: bool = False


PHASES = "bench.gpu.phases"
# In the order of their importance; those that run by default take 4 minutes at most. The first one
# reads torch from a disk that is cold.
PLANS = {
    "rates": Plan(f"{PHASES}.rates:run", 20, "versions, flags, copies, products, a graph's node"),
    "compile": Plan(f"{PHASES}.compiling:run", 44, "all kernels, side by side, into a cache"),
    "kernels": Plan(f"{PHASES}.kernels:check", 22, "kernels against definitions in float64"),
    "latents": Plan(f"{PHASES}.models:check", 40, "models against the CPU; graphs; buckets"),
    "graphs": Plan(f"{PHASES}.graphs:run", 16, "life of graphs: forgotten, evicted, failed"),
    "mimi": Plan(f"{PHASES}.steps:mimi", 38, "Mimi encode by lanes, with full rings; a profile"),
    "convolutions": Plan(f"{PHASES}.convolutions:run", 24, "Mimi's convolutions, four ways"),
    "ops": Plan(f"{PHASES}.kernels:time", 16, "kernels in time, beside plain torch"),
    "engine": Plan(f"{PHASES}.live:run", 20, "sessions on an engine, from due to codes"),
    "others": Plan(f"{PHASES}.steps:others", 60, "decoders, EnCodec, nano; bfloat16", asked=True),
    "capacity": Plan(f"{PHASES}.steps:capacity", 60, "lanes that keep up", asked=True),
    "moshi": Plan(f"{PHASES}.steps:moshi", 60, "Mimi beside Kyutai's package", asked=True),
    "video": Plan(f"{PHASES}.cosmos:run", 120, "Cosmos: checked, timed, profiled", asked=True),
}


class Stopped(BaseException):
    """The whole run was told to end."""


@dataclass(frozen=True, slots=True)
class Files:
    """Of one run, all in one folder."""

    rows: Path
    log: Path
    result: Path

    @classmethod
    def unused(cls, folder: Path) -> Files:
        """Those of earlier runs stay."""
        for number in count(1):
            stem = "gpu" if number == 1 else f"gpu-{number}"
            files = cls(*(folder / f"{stem}.{end}" for end in ("jsonl", "log", "json")))
            if not any(path.exists() for path in (files.rows, files.log, files.result)):
                return files
        raise AssertionError


def main(arguments: Sequence[str] | None = None, plans: Mapping[str, Plan] = PLANS) -> int:
    parser = _parser(plans)
    args = parser.parse_args(arguments)
    if args.child is not None:
        return _child(args)
    if args.out is None:
        parser.error("say where the rows go: --out DIR")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; wanted a folder")
    names = args.phases or [name for name, plan in plans.items() if not plan.asked]
    whole = sum(plans[name].seconds for name in names)
    share = min(1.0, 60 * args.minutes / whole) if args.minutes else 1.0
    args.out.mkdir(parents=True, exist_ok=True)
    files = Files.unused(args.out)
    settings = {"phases": names, "seconds": round(share * whole), "dry": args.dry_run}
    with tempfile.TemporaryDirectory(prefix="streamenc-bench-") as folder, _stoppable():
        try:
            for name in names:
                plan = plans[name]
                seconds = share * plan.seconds * (DRY_TIMES if args.dry_run else 1)
                ended = _run_phase(name, plan, files, folder, seconds, args.dry_run)
                if ended == NO_DEVICE and name == names[0]:
                    files.rows.unlink(missing_ok=True)
                    files.log.unlink(missing_ok=True)
                    return 1
            stopped = False
        except Stopped:
            stopped = True
            rows.append(files.rows, Line(name, RUN, "told to end", ok=False, dry=args.dry_run))
        lines = rows.read(files.rows)
        rows.write(files.result, lines, settings)
    for text in rows.summary(lines):
        print(text)
    print(f"wrote {files.result} and {files.rows}", flush=True)
    return STOPPED if stopped else int(any(line.ok is False for line in lines))


def _run_phase(
    name: str, plan: Plan, files: Files, folder: str, seconds: float, dry: bool
) -> int | None:
    """Its exit status, None where it could not even be killed; how it ended is written."""
    print(f"\n{name}, at most {seconds:.0f} s: {plan.caption}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "bench.gpu", "--child", plan.target, name]
    command += [str(files.rows), folder, repr(start + seconds)]
    command += ["--dry-run"] if dry else []
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
    }
    with files.log.open("ab") as log:
        log.write(f"--- {name}\n".encode())
        log.flush()
        # A group of its own, so that what it has started ends with it.
        process = subprocess.Popen(command, env=environment, stderr=log, process_group=0)
        try:
            status = _wait(process, seconds + GRACE_SECONDS)
        finally:
            _kill(process)
    spent = time.monotonic() - start
    if status == 0:
        how, note = f"done in {spent:.1f} s", ""
    elif spent >= seconds:
        how, note = f"ended at its limit of {seconds:.0f} s", _last(files.log)
    else:
        how, note = f"ended with {_status(status)} after {spent:.1f} s", _last(files.log)
    ok = None if status == 0 else False
    rows.append(files.rows, Line(name, RUN, how, ok=ok, note=note, dry=dry, at_s=round(spent, 2)))
    return status


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends it and its children, where they still run; one that a driver holds is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _wait(process, KILL_SECONDS)


def _status(status: int | None) -> str:
    if status is None:
        return "no exit status"
    return f"signal {-status}" if status < 0 else f"status {status}"


def _last(log: Path) -> str:
    """The last line that a phase said, or where it hung."""
    text = log.read_text(encoding="utf-8", errors="replace").rpartition("--- ")[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    hung = [line for line in lines if line.startswith("File ")] if "Timeout (" in text else []
    return (hung[:1] or lines[-1:] or [""])[0][:300]


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT raise Stopped, once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for one in kept:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped

    kept = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in kept.items():
            signal.signal(one, handler)


def _child(args: argparse.Namespace) -> int:
    target, name, written, folder, deadline = args.child
    phase = phases.Phase(name, Path(written), Path(folder), float(deadline), dry=args.dry_run)
    phases.run(target, phase, float(deadline) - time.monotonic())
    return 0


def _parser(plans: Mapping[str, Plan]) -> argparse.ArgumentParser:
    def known(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in plans:
                raise argparse.ArgumentTypeError(f"no phase {name!r}; known: {', '.join(plans)}")
        return names

    def minutes(text: str) -> float:
        value = float(text)
        if not 0 < value <= 600:
            raise argparse.ArgumentTypeError(f"{text} minutes; wanted more than 0, up to 600")
        return value

    phases_said = "\n".join(
        f"  {name:13} {plan.seconds:4.0f} s  {plan.caption}{'; only if asked for' * plan.asked}"
        for name, plan in plans.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Proves kernels, models and graphs on a GPU, then times them.",
        epilog=f"phases:\n{phases_said}\n\nexamples:\n  python -m bench.gpu --out /tmp/gpu\n"
        "  python -m bench.gpu --out /tmp/gpu --phases rates,mimi\n"
        "  python -m bench.gpu --out /tmp/gpu --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the rows and the result")
    parser.add_argument(
        "--phases", type=known, metavar="A,B", help="those alone (default: all but a few)"
    )
    parser.add_argument(
        "--minutes", type=minutes, metavar="M", help="for the whole run; limits shrink to it"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="in small on the CPU, without figures of speed"
    )
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    return parser
