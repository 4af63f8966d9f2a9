"""Captions to vectors over ZeroMQ: a transcript goes out as it is spoken, and is compared.

    python examples/caption_vectors.py sentence-transformers/all-MiniLM-L6-v2
    python examples/caption_vectors.py MODEL [TRANSCRIPT]        # a file, or - for a recogniser

A transcript is a JSON object a line, as recognisers of speech write them; an id that comes again
revises what was said. The publisher sends each text and its vector when they are due. The
subscriber, which may be another program, keeps the latest vector of each segment, and prints of
which earlier one it is the nearest.
"""

import sys
import threading
from pathlib import Path

import numpy as np

import streamenc
from streamenc import Pipeline

TRANSCRIPT = Path(__file__).parent / "data" / "captions.jsonl"
ADDRESS = "zmq+tcp://127.0.0.1:5557"


def publish(model: str, transcript: str) -> None:
    with Pipeline() as pipeline:
        words = pipeline.source("words", transcript, kind="text", realtime=True)
        vectors = pipeline.encode("vectors", streamenc.load(model, part="encoder"), words)
        both = pipeline.merge("both", [words, vectors])
        pipeline.sink("out", ADDRESS, both, options={"mode": "credit"})
        print(pipeline.run_blocking(handle_signals=False), file=sys.stderr)


def main(model: str, transcript: str = str(TRANSCRIPT)) -> int:
    publisher = threading.Thread(target=publish, args=(model, transcript))
    publisher.start()
    said: dict[int, str] = {}
    known: dict[int, np.ndarray] = {}
    for piece in streamenc.subscribe(ADDRESS, mode="credit"):
        if piece.frame.track == 0:
            said[piece.segment] = str(piece.data[0, 0])
            continue
        vector = piece.data[:, 0] / np.linalg.norm(piece.data)
        earlier = {n: float(v @ vector) for n, v in known.items() if n != piece.segment}
        known[piece.segment] = vector
        nearest = max(earlier, key=earlier.__getitem__, default=None)
        near = "" if nearest is None else f", near {nearest} ({earlier[nearest]:.2f})"
        again = " (revised)" if piece.revised else ""
        print(f"{piece.seconds:6.2f} s  {piece.segment}{again} {said[piece.segment]!r}{near}")
    publisher.join()
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:3]))
