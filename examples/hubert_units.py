"""Units of speech, live: HuBERT's features, the nearest of some centroids, each run of units once.

    python examples/hubert_units.py facebook/hubert-base-ls960 centroids.npy
    python examples/hubert_units.py MODEL CENTROIDS.npy [INPUT [LAYER]]     # INPUT may be mic:

Where the centroids do not exist yet, 50 are learnt from the features of the clip: enough to see how
it works. Real ones come from hours of speech, of the very layer, as `np.save("centroids.npy",
kmeans.cluster_centers_)`. Each line that is printed is a unit with when it began and how long it
lasted, in ticks of the input's time base: what a unit language model or a vocoder reads.
"""

import sys
from pathlib import Path

import numpy as np

import streamenc
from streamenc import Pipeline

CLIP = Path(__file__).parent / "data" / "speech.flac"
UNITS, ROUNDS = 50, 20


def main(model: str, centroids: str, source: str = str(CLIP), layer: str = "9") -> int:
    if not Path(centroids).exists():
        np.save(centroids, learnt(features(model, layer)))
        print(f"learnt {centroids} from {CLIP.name}", file=sys.stderr)
    encoder = streamenc.load(model, part="encoder", layer=layer, units=centroids)
    print(f"{encoder.spec.note}; {1000 * encoder.spec.latency_seconds:.0f} ms", file=sys.stderr)
    with Pipeline() as pipeline:
        sound = pipeline.source("input", source)
        units = pipeline.encode("units", encoder, sound, runs=True)
        pipeline.sink("print", "-", units)
        print(pipeline.graph.run_blocking(), file=sys.stderr)
    return 0


def features(model: str, layer: str) -> np.ndarray:
    """Of the clip, (frames, channels), by the same chunks that the stream runs on."""
    codec = streamenc.load(model, part="encoder", layer=layer)
    return codec.encode_file(CLIP).data.T


def learnt(points: np.ndarray) -> np.ndarray:
    """k-means by Lloyd's rounds, from points that are drawn at random."""
    centres = np.random.default_rng(0).choice(points, UNITS, replace=False)
    for _ in range(ROUNDS):
        nearest = (points @ centres.T - 0.5 * (centres**2).sum(axis=1)).argmax(axis=1)
        for unit in np.unique(nearest):
            centres[unit] = points[nearest == unit].mean(axis=0)
    return centres


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:5]))
