"""How many codes of X-Codec stay the same when its semantic model hears a stream, not a clip.

    python examples/xcodec_codes.py hf-audio/xcodec-hubert-librispeech [CLIP]

X-Codec was published for whole clips; a stream hears chunks or windows instead (its `mode`). Each
line is one way to hear: its latency, and for 1, 3 and 8 codebooks the share of frames whose codes
are those of the whole clip, all of them. What the first codebook keeps matters most: the others
quantise what it left over. With random weights the table shows how it works, and nothing else.
"""

import sys
from pathlib import Path

import streamenc

CLIP = Path(__file__).parent / "data" / "speech.flac"
BOOKS = (1, 3, 8)
WAYS = [
    {"mode": "chunked", "chunk_ms": 160},
    {"mode": "chunked", "chunk_ms": 320},
    {"mode": "chunked", "chunk_ms": 320, "ahead": 2},
    {"mode": "chunked", "chunk_ms": 320, "positions": "wait"},
    {"mode": "chunked", "chunk_ms": 1000},
    {"mode": "sliding", "window_ms": 1000},
    {"mode": "sliding", "window_ms": 2000},
    {"mode": "sliding", "window_ms": 4000},
    {"mode": "segment", "segment_ms": 2000},
    {"mode": "segment", "segment_ms": 4000},
]


def main(model: str, clip: str = str(CLIP)) -> int:
    # A clip of up to a minute is one segment: the published codec itself.
    whole = streamenc.load(model, part="encoder", mode="segment", segment_ms=60_000)
    expected = whole.encode_file(clip).data
    books = [count for count in BOOKS if count <= len(expected)]
    print(f"{'heard':<44} latency  " + "  ".join(f"{n} books" for n in books))
    for way in WAYS:
        codec = streamenc.load(model, part="encoder", **way)
        codes = codec.encode_file(clip).data
        same = [(codes[:n] == expected[:n]).all(axis=0).mean() for n in books]
        told = ", ".join(f"{key}={value}" for key, value in way.items())
        seconds = codec.encoder.spec.latency_seconds
        print(f"{told:<44} {seconds:5.2f} s  " + "  ".join(f"{share:7.1%}" for share in same))
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:3]))
