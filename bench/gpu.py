"""Steps on a GPU: first that they compute what the CPU computes, then their times by batch.

    python -m bench.gpu [--frames N] [--batches 1,2,4] [--out DIR]

Times are those of CUDA events around one `Stream.push` of 80 ms for all streams of the batch, input
and output on the device. Weights are random and of the published sizes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import streamenc
from bench import signals, weights
from bench.codecs import FRAME, LEAST_AGREEMENT, PER_FRAME, RATE, agreement
from bench.harness import (
    Row,
    Table,
    count,
    counts,
    machine,
    percentile,
    print_tables,
    write_json,
)
from streamenc.codec import Codec
from streamenc.registry import Part
from streamenc.stream import Stream

RESULTS = Path(__file__).parent / "results"
BATCHES = [1, 2, 4, 8, 16, 32, 64]
WARMUP_STEPS = 10
CHECKED_FRAMES, CHECKED_STREAMS = 25, 3
FRAME_MS = FRAME / RATE * 1e3


@dataclass(frozen=True, slots=True)
class Case:
    """A model, one way.

    codes_per_frame  Frames of codes in 80 ms: hops of a step.
    """

    title: str
    weights: Callable[[Path], Path]
    encodes: bool
    codes_per_frame: int

    def load(self, folder: Path, device: str) -> Codec:
        part: Part = "encoder" if self.encodes else "decoder"
        return streamenc.load(str(self.weights(folder)), part=part, device=device)

    def stream(self, codec: Codec, batch: int) -> Stream:
        if self.encodes:
            return codec.stream(batch=batch, hops=self.codes_per_frame, codebooks=8)
        return codec.decode_stream(batch=batch, hops=self.codes_per_frame)

    def inputs(self, codec: Codec, batch: int, frames: int) -> list[Tensor]:
        """80 ms for each of `batch` streams at a time: another place of the clip for each."""
        if self.encodes:
            whole = torch.from_numpy(signals.speech(RATE, (frames + batch) * FRAME))
            lanes = [whole[lane * FRAME :][: frames * FRAME] for lane in range(batch)]
            x, length = torch.stack(lanes)[:, None], FRAME
        else:
            generator = torch.Generator().manual_seed(0)
            length = self.codes_per_frame
            shape = (batch, 8, frames * length)
            x = torch.randint(codec.decoder.spec.codebook_size, shape, generator=generator)
        return list(torch.split(x, length, dim=-1))


CASES = (
    Case("Mimi encode, 8 codebooks", weights.mimi, True, 1),
    Case("Mimi decode, 8 codebooks", weights.mimi, False, 1),
    Case("EnCodec 24 kHz encode, 6 kbit/s", weights.encodec, True, 6),
    Case("EnCodec 24 kHz decode, 6 kbit/s", weights.encodec, False, 6),
)


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} "
            + ("finds no GPU" if torch.version.cuda else "is built without CUDA")
            + "; nothing was measured. `python -m bench` measures on the CPU",
            file=sys.stderr,
        )
        return 1
    # Products in TF32 keep ten bits: codes would not be those of the CPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    where = machine()
    tables = []
    with tempfile.TemporaryDirectory(prefix="streamenc-bench-") as name:
        for case in CASES:
            equal = check(case, Path(name), "cuda")
            print(f"{case.title}: {equal:.4f} of the output equals that of the CPU")
            if equal < LEAST_AGREEMENT:
                print("not timed: the GPU computes something else than the CPU", file=sys.stderr)
                return 1
            tables.append(measure(case, Path(name), args.batches, args.frames, equal))
            print_tables(tables[-1:])
    properties = torch.cuda.get_device_properties(0)
    device = {
        "device": properties.name,
        "device_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": False,
    }
    settings = {"batches": args.batches, "frames": args.frames}
    write_json(args.out / "gpu.json", "gpu", tables, settings, {**where, **device})
    print(f"wrote {args.out / 'gpu.json'}")
    return 0


def check(case: Case, folder: Path, device: str) -> float:
    """The share of the output on `device` that equals the CPU's; several streams in a batch."""
    outputs = []
    for where in ("cpu", device):
        codec = case.load(folder, where)
        stream = case.stream(codec, CHECKED_STREAMS)
        inputs = case.inputs(codec, CHECKED_STREAMS, CHECKED_FRAMES)
        made = [_tensor(stream.push(chunk.to(where))).cpu() for chunk in inputs]
        outputs.append(torch.cat(made, dim=-1).numpy())
    return agreement(outputs[1], outputs[0])


def measure(case: Case, folder: Path, batches: Sequence[int], frames: int, equal: float) -> Table:
    """The time of a step by batch size."""
    codec = case.load(folder, "cuda")
    rows = []
    for batch in batches:
        stream = case.stream(codec, batch)
        inputs = [x.cuda() for x in case.inputs(codec, batch, frames + WARMUP_STEPS)]
        times_ms = [_step_ms(stream, chunk) for chunk in inputs][WARMUP_STEPS:]
        note = f"{FRAME_MS / percentile(times_ms, 99):.1f} times real time at p99"
        rows.append(Row.of(f"batch {batch}", times_ms, agreement=equal, note=note))
    return Table(f"{case.title}, on {torch.cuda.get_device_name()}", PER_FRAME, rows)


def _step_ms(stream: Stream, chunk: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    stream.push(chunk)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _tensor(signal: Any) -> Tensor:
    assert isinstance(signal, Tensor)
    return signal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Measures steps on a GPU, after comparing them with the CPU's.",
        epilog="examples:\n  python -m bench.gpu\n  python -m bench.gpu --batches 1,64 --frames 50",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--batches", type=counts, default=BATCHES, metavar="N,N", help="streams in a step (1 to 64)"
    )
    parser.add_argument("--frames", type=count, default=200, metavar="N", help="to time (200)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="for gpu.json (bench/results)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
