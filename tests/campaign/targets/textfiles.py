"""Files of text: lines, transcripts as JSON lines, and subtitles of several formats."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from streamenc import io
from streamenc.graph.frames import frame_fault, stream_fault
from streamenc.graph.node import BlockingSource
from tests.campaign.target import mutated

SRT = "".join(
    f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n<b>line</b> {n}\nmore\n\n" for n in range(1, 6)
)
VTT = "WEBVTT\n\nNOTE x\n\n" + SRT.replace(",", ".")
ASS = (
    "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    + "".join(f"Dialogue: 0,0:00:0{n}.00,0:00:0{n}.90,Default,x\\N{{\\b1}}{n}\n" for n in range(5))
)  # fmt: skip
LINES = "good morning\n\nund guten Tag\n\u65e5\u672c\u8a9e\n"
SEEDS = {"srt": SRT, "vtt": VTT, "ass": ASS, "txt": LINES, "jsonl": "", "mkv": SRT, "bin": LINES}
VALUES = (
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 2**62, 2**63, 10**400, "", "x" * 99_999,
    "\ud800", "\x1b[2J\u202e", [], {}, [[]], "1.5", -0.0, 1e-320,
)  # fmt: skip
TIMES = ("99:59:59,999", "00:00:00,000", "-1:00:00,000", "9999999999:00:00,000", "x", "")


class TextFiles:
    """A file whose first line is its ending, as `text:FILE`."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def case(self, rng: Random) -> bytes:
        ending = rng.choice(list(SEEDS))
        text = SEEDS[ending]
        if ending == "jsonl":
            lines = []
            for number in range(rng.choice((1, 3, 6))):
                line = {
                    "text": f"said {number}",
                    "start": number,
                    "end": number + 0.5,
                    "id": number,
                }
                keys = (*line, "final", "start_ms", "end_ms", "segment", "is_final", "info")
                for _ in range(rng.choice((0, 1, 1, 2))):
                    line[rng.choice(keys)] = rng.choice(VALUES)  # type: ignore[assignment]
                lines.append(json.dumps(line))
            text = "\n".join(lines)
        elif rng.random() < 0.3:
            text = text.replace(f"00:00:0{rng.randrange(6)},000", rng.choice(TIMES))
        if rng.random() < 0.02:
            text += rng.choice(("x" * 3_000_000, "[" * 300_000, "\n" * 300_000, "-->" * 100_000))
        raw = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig")))
        raw = mutated(raw, rng) if rng.random() < 0.7 else raw
        return ending.encode() + b"\n" + raw

    def take(self, data: bytes) -> None:
        ending, _, content = data.partition(b"\n")
        path = self._folder / f"file.{ending.decode()}"
        path.write_bytes(content)
        source = io.source(f"text:{path}")
        assert isinstance(source, BlockingSource)
        try:
            info = source.open_blocking()
            assert not stream_fault(info)
            while (frame := source.read()) is not None:
                assert not frame_fault(info, frame), frame_fault(info, frame)
                assert info.fits(frame.data)
        finally:
            source.close_blocking()
            path.unlink()


def target(folder: Path) -> TextFiles:
    return TextFiles(folder)
