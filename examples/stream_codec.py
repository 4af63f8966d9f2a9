"""A codec on a stream, by hand: what becomes final when, however the sound is cut.

    python examples/stream_codec.py                        # nano, whose weights come with it
    python examples/stream_codec.py kyutai/mimi talk.flac

Sound comes in pieces of uneven length, as from a network. Each line says how much has come, and how
many frames that made final. At the end, the stream is compared with the file encoded as a whole.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import streamenc
from streamenc import Scaled
from streamenc.models.signal import Signal

CLIP = Path(__file__).parent / "data" / "speech.flac"
SECONDS = 2
PIECES = (137, 4800, 1, 9600, 240, 2400)  # samples, over and over


def main(model: str = "nano", clip: str = str(CLIP)) -> int:
    codec = streamenc.load(model, part="encoder")
    sound = samples(clip, codec)
    pieces: list[torch.Tensor] = []
    came = 0

    with codec.stream() as stream:
        while came < sound.shape[1]:
            chunk = sound[:, came : came + PIECES[len(pieces) % len(PIECES)]]
            pieces.append(codes(stream.push(chunk)))
            came += chunk.shape[1]
            seconds, frames = came / codec.sample_rate, pieces[-1].shape[-1]
            print(f"{seconds:8.3f} s came  {frames:4} frames became final")
        pieces.append(codes(stream.flush()))
        print(f" at the end        {pieces[-1].shape[-1]:4} frames became final")

    streamed, whole = torch.cat(pieces, dim=-1), codes(codec.encode(sound))
    print(f"{codec.name}: {tuple(streamed.shape)} as a stream, {tuple(whole.shape)} as a whole")
    if streamed.shape != whole.shape:
        return 1
    print(f"largest difference {(streamed - whole).abs().max().item():.2g}")
    return 0


def codes(signal: Signal) -> torch.Tensor:
    """EnCodec 48 kHz gives a volume with its codes."""
    return signal.codes if isinstance(signal, Scaled) else signal


def samples(clip: str, codec: streamenc.Codec) -> np.ndarray:
    """The first seconds of a file as the codec takes them: (channels, samples)."""
    channels = 2 if codec.spec.input.channels == 2 else 1
    sound = streamenc.read(clip, sample_rate=codec.sample_rate, channels=channels)
    return sound.data[:, : SECONDS * codec.sample_rate]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
