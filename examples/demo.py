"""The main job, end to end, on one machine without a download of weights.

A speech clip plays through the graph in real time (source -> resample -> chunker -> encoder ->
ZeroMQ) while a second process subscribes, records the tokens and, where the model has a decoder,
decodes them. Ends with a table of latencies, with how close the decoded speech comes to the
original (PESQ, where that package is installed), and with a page to listen to and to look at.

    python examples/demo.py [--model MODEL] [--codebooks N] [--input FILE] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
import socket
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

import streamenc
from streamenc import Pipeline, StreamencError, read
from streamenc.cli.look.page import write_page
from streamenc.cli.look.plot import Sound, plot_stream
from streamenc.cli.show import console, print_report
from streamenc.models.families import DEFAULT

CLIP = Path(__file__).parent / "data" / "voice.flac"
DEADLINE_MS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT, help="a listed name or a checkpoint")
    parser.add_argument("--codebooks", type=int, help="how many; nano's 12 are 6 kbit/s")
    parser.add_argument("--input", default=str(CLIP), help="a sound file")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="a folder")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tokens, wav = args.output / "tokens.arrows", args.output / "decoded.wav"
    png, stats = args.output / "encoded.png", args.output / "subscriber.json"
    page = args.output / "index.html"

    codec = streamenc.load(args.model)
    codebooks = args.codebooks or (12 if args.model == DEFAULT else None)
    with Pipeline(deadline_ms=DEADLINE_MS) as pipeline:
        source = pipeline.source("clip", args.input, realtime=True)
        codes = pipeline.encode("encode", codec, source, codebooks=codebooks)
        url = f"zmq+tcp://127.0.0.1:{free_port()}"
        pipeline.sink("publish", f"{url}?wait_subscribers=1", codes)

        outputs = [str(tokens), *([str(wav)] if codec.has_decoder else [])]
        listen = [sys.executable, "-m", "streamenc", "listen", url, *outputs]
        listen += ["--model", args.model] if codec.has_decoder else []
        listen += ["--overwrite", "--quiet", "--stats", str(stats)]
        listen += ["--deadline-ms", str(DEADLINE_MS)]
        console.print(f"{args.input}, in real time, through {codec.name} to a second process")
        with subprocess.Popen(listen) as subscriber:
            try:
                report = pipeline.graph.run_blocking()
                failed = subscriber.wait(timeout=30)
            finally:
                subscriber.terminate()  # one that still waits for a stream that never came
        if failed:
            console.print("the subscriber failed; see above")
            return 1

    print_report(report)
    console.print(subscriber_table(json.loads(stats.read_text())))
    draw(args.input, tokens, png)
    heard = ""
    if codec.has_decoder:
        kbps = codec.spec.kbps(codebooks or codec.spec.output.channels)
        heard = f"{kbps:.3g} kbit/s, {pesq(args.input, wav)}"
        if args.model == DEFAULT and args.input == str(CLIP):
            heard += " (a voice that nano was trained on)"
    write_html(page, Path(args.input), wav if codec.has_decoder else None, png, codec.name, heard)
    console.print("made:")
    for path in (*map(Path, outputs), png, stats, page):
        console.print(f"  {path}  {path.stat().st_size:,} bytes")
    if codec.has_decoder:
        console.print(f"{wav} beside {args.input}: {heard}")
    else:
        console.print(f"{codec.name} has no decoder, so there is no sound to listen to.")
    console.print(f"to listen to and to look at: {page.resolve().as_uri()}")
    return 0


def subscriber_table(stats: dict[str, Any]) -> Table:
    """A subscriber's sinks, from the report that it wrote: latencies across two processes."""
    table = Table("subscriber", box=None, header_style="bold", pad_edge=False)
    for column in ("frames", "seconds", "x real", "end to end ms", "late", "dropped", "gaps"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in stats["nodes"]:
        if (sink := node["sink"]) is not None:
            latency = sink["end_to_end"]
            table.add_row(
                node["name"],
                str(node["frames_in"]),
                f"{sink['media_seconds']:.2f}",
                f"{sink['realtime_factor']:.2f}",
                " / ".join(f"{latency[key]:.3g}" for key in ("p50_ms", "p99_ms", "max_ms")),
                str(sink["deadline_misses"]),
                str(stats["dropped"]),
                str(sink["gaps"]),
            )
    return table


def pesq(original: str, decoded: Path) -> str:
    """The wide-band PESQ of what was decoded; 4.64 would be a perfect copy."""
    try:
        from pesq import PesqError
        from pesq import pesq as measure
    except ImportError:
        return "PESQ not measured: `pip install pesq` needs a C compiler"
    try:
        sounds = (read(path, sample_rate=16_000, channels=1) for path in (original, decoded))
        score = measure(16_000, *(sound.data[0] for sound in sounds), "wb")
    except PesqError as error:
        return f"PESQ not defined: {error}"
    return f"PESQ {score:.2f} of 4.64"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def draw(clip: str, tokens: Path, png: Path) -> None:
    """The sound above what was encoded of it."""
    sound, codes = read(clip, channels=1), read(tokens)
    drawn = Sound(sound.times, sound.data[0])
    write_page([plot_stream(codes.info, codes.data, sound=drawn)], png)


def write_html(
    page: Path, original: Path, decoded: Path | None, png: Path, model: str, heard: str
) -> None:
    """One file, without anything from elsewhere: both sounds, and what was sent in between."""

    def inline(path: Path) -> str:
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"

    def player(path: Path, caption: str) -> str:
        return f'<p>{escape(caption)}<br><audio controls src="{inline(path)}"></audio></p>'

    players = player(original, f"The original, {original.name}")
    if decoded is not None:
        players += player(decoded, f"As the second process decoded it: {heard}")
    page.write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>streamenc: {escape(model)}</title>
<style>body {{max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font-family: sans-serif}}
img, audio {{width: 100%}}</style>
<h1>Through {escape(model)}, live</h1>
{players}
<p>What was sent in between, under the sound that it was made of:</p>
<img alt="the encoded stream over time" src="{inline(png)}">
</html>
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StreamencError as error:
        sys.exit(f"demo: {error}")
