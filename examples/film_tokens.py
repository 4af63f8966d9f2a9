"""A film as one sequence of tokens: its sound by nano, its images by Cosmos, in order of time.

    python examples/film_tokens.py film.mp4 film.npz nvidia/Cosmos-0.1-Tokenizer-DV8x16x16
    python examples/film_tokens.py rtsp://camera/stream film.npz ./Cosmos-0.1-Tokenizer-DV4x8x8

INPUT is a file or a network stream with sound and images, OUTPUT gets the arrays `tokens` (int32)
and `seconds` (float64, when each began), as a language model is trained on. The ids of the two
kinds lie one behind the other: codebook i of nano has 1024 i to 1024 i + 1023, the images' codes
come after them. What the graph encodes is also recorded, as OUTPUT.arrows, to go back from:

    streamenc decode film.npz.arrows back.mp4 -m nano -m ./Cosmos-DV4x8x8 --video-set mode=window
"""

import sys

import numpy as np

import streamenc
from streamenc import Frame, Pipeline, StreamInfo
from streamenc.io.reading import read_file

CODEBOOKS = 8  # nano at 4 kbit/s
SIZE = "256x256"


def main(film: str, output: str, model: str) -> int:
    sound_model = streamenc.load("nano", part="encoder")
    image_model = streamenc.load(model, part="encoder", mode="window")
    with Pipeline() as pipeline:
        source = pipeline.source("film", film, kind="av")
        sound = pipeline.encode("sound", sound_model, source, track=0, codebooks=CODEBOOKS)
        images = pipeline.encode("images", image_model, source, track=1, size=SIZE)
        pipeline.sink("record", f"{output}.arrows", pipeline.merge("merge", [sound, images]))
        print(pipeline.graph.run_blocking(), file=sys.stderr)
    info, frames = read_file(f"{output}.arrows")
    tokens, seconds = interleaved(info, frames)
    np.savez(output, tokens=tokens, seconds=seconds)
    for frame in frames[:12]:
        track = info.tracks[frame.track]
        gap = "  after a gap" if frame.discontinuity else ""
        at = float(frame.pts * track.time_base)
        print(f"{at:7.3f} s  {track.model:<12.30}  {frame.data.size:4} tokens{gap}")
    print(f"{len(tokens)} tokens of {vocabulary(info)[-1]} entries in {output}")
    return 0


def vocabulary(info: StreamInfo) -> list[int]:
    """Where the ids of each track begin, and where those of the last one end."""
    sizes = [track.codebook_size * (track.shape[0] or 1) for track in info.tracks]
    return [0, *np.cumsum(sizes).tolist()]


def interleaved(info: StreamInfo, frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and times of all frames' tokens: frame by frame, codebook by codebook, row by row."""
    starts = vocabulary(info)
    ids, times = [], []
    for frame in frames:
        track = info.tracks[frame.track]
        books = np.arange(frame.data.shape[0]).reshape(-1, *[1] * (frame.data.ndim - 1))
        of_frame = frame.data.astype(np.int32) + starts[frame.track] + books * track.codebook_size
        # Time before codebook: a frame of sound may hold several of the codec's.
        ids.append(np.moveaxis(of_frame, 1, 0).reshape(-1))
        times.append(np.full(of_frame.size, float(frame.pts * track.time_base)))
    return np.concatenate(ids), np.concatenate(times)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
