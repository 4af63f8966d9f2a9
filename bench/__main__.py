"""`python -m bench`: runs the measurements, prints their tables and writes them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from bench.harness import (
    Settings,
    Table,
    count,
    counts,
    loads,
    machine,
    print_tables,
    write_json,
)

NAMES = (
    "codecs", "loading", "features", "latency", "engine", "sessions", "remote", "serve", "video",
    "encoders", "tokenize",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"
FRAMES, QUICK_FRAMES = 250, 2
BUSY = [0, 3]

EXAMPLES = """\
codecs   time of a step beside moshi, rustymimi, transformers and encodec, as far as installed
loading  seconds to a first frame in a new process, with and without what is kept on disk
features cost of HuBERT live, beside windows that are computed anew; an hour of it
latency  file -> graph -> ZeroMQ -> a subscriber in another process, in real time
engine   what `await session.step` costs beyond the step, and hundreds of sessions together
sessions how many live streams keep up, beside moshi in batches
remote   live sessions in two client processes, on an engine in a third
serve    live sessions over WebSockets on `streamenc serve`, beside its engine alone
video    Cosmos on a stream, beside diffusers over whole clips and restarted every 17 frames
encoders every other encoder, live and at once, beside the published one over the whole clip
tokenize a folder to tokens, beside a loop, a pool of processes and datasets.map

examples:
  python -m bench all                        everything, in some hours
  python -m bench codecs --threads 1         one thread only
  python -m bench codecs --busy 0            on quiet cores only
  python -m bench codecs --only nano         those whose title has it
  python -m bench engine latency             two of them
  python -m bench video --video talk.mp4     moving images of yours; --small leaves 720p out
  python -m bench encoders --only dac        those whose name has it
  python -m bench all --quick --out /tmp/b   only shows that all of it runs

All weights are random and of the published sizes; nothing is downloaded.
`python -m bench.gpu` measures on a GPU.
"""


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    args.frames = args.frames or (QUICK_FRAMES if args.quick else FRAMES)
    if args.child is not None:
        return _measure(args.benchmarks[0], _settings(args), args.child)
    names = NAMES if "all" in args.benchmarks else tuple(dict.fromkeys(args.benchmarks))
    with tempfile.TemporaryDirectory(prefix="streamenc-bench-") as folder:
        for name in names:
            where = machine()
            tables: list[Table] = []
            # Live work is measured with one setting: the last, which is the fastest.
            for threads in args.threads if name == "codecs" else args.threads[-1:]:
                settings = Settings(
                    threads,
                    args.frames,
                    Path(folder),
                    args.quick,
                    args.small,
                    args.video and args.video.resolve(),
                    args.cosmos and args.cosmos.resolve(),
                    args.only,
                    tuple(args.busy),
                )
                made = _in_child(name, settings)
                if made is None:
                    print(f"{name} failed with {threads} threads; see above", file=sys.stderr)
                    return 1
                print_tables(made)
                tables += made
            about = {"threads": args.threads, "frames": args.frames, "quick": args.quick}
            if name == "codecs":
                about["busy"] = args.busy
            if name == "video":
                given = {"video": args.video, "cosmos": args.cosmos}
                about |= {key: path and path.name for key, path in given.items()}
                about["small"] = args.small
            path = args.out / f"{name}.json"
            write_json(path, name, tables, about, where)
            print(f"wrote {path}\n")
    return 0


def _in_child(name: str, settings: Settings) -> list[Table] | None:
    """The tables from a process of their own: thread pools get their size when libraries load."""
    output = settings.folder / "tables.json"
    threads = str(settings.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "STREAMENC_CACHE": str(settings.folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "bench", name, "--child", str(output), "--threads", threads]
    command += ["--frames", str(settings.frames), "--folder", str(settings.folder)]
    command += ["--quick"] if settings.quick else []
    command += ["--small"] if settings.small else []
    command += ["--video", str(settings.video)] if settings.video else []
    command += ["--cosmos", str(settings.cosmos)] if settings.cosmos else []
    command += ["--only", settings.only] if settings.only else []
    command += ["--busy", ",".join(map(str, settings.busy))]
    root = Path(__file__).parent.parent
    if subprocess.run(command, env=environment, cwd=root).returncode:
        return None
    return [Table.from_dict(plain) for plain in json.loads(output.read_text())]


def _measure(name: str, settings: Settings, output: Path) -> int:
    tables = []
    for table in import_module(f"bench.cpu.{name}").tables(settings):
        print(f"measured: {table.title}", file=sys.stderr)
        tables.append(asdict(table))
    output.write_text(json.dumps(tables))
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        args.threads[0],
        args.frames,
        args.folder,
        args.quick,
        args.small,
        args.video,
        args.cosmos,
        args.only,
        tuple(args.busy),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures steps, latency and overhead beside the published implementations.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmarks", nargs="*", choices=(*NAMES, "all"), default=["all"])
    parser.add_argument(
        "--threads",
        type=counts,
        default=[n for n in (1, 2) if n <= (os.cpu_count() or 1)],
        metavar="N,N",
        help="CPU threads of a step, one run for each (default: 1,2)",
    )
    parser.add_argument(
        "--busy",
        type=loads,
        default=BUSY,
        metavar="N,N",
        help="processes that keep the cores busy while codecs are timed, in turns (default: 0,3)",
    )
    parser.add_argument("--frames", type=count, metavar="N", help=f"to time (default: {FRAMES})")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="for the JSON files (default: bench/results)",
    )
    parser.add_argument("--quick", action="store_true", help="a few frames: no times to rely on")
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="a clip to encode (default: one that is made)"
    )
    parser.add_argument(
        "--cosmos", type=Path, metavar="DIR", help="a diffusers folder of Cosmos CV8x8x8 for video"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="of the encoders, or of the tables of codecs, those whose name has it",
    )
    parser.add_argument("--small", action="store_true", help="video without 720p")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
