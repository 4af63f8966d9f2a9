"""Tokens beside the rows of a data set of `datasets`, in two processes.

    pip install streamenc datasets
    python examples/datasets_map.py

`Audio(decode=False)` gives files as they are, so that nothing is decoded but what is encoded.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from datasets import Audio, Dataset

import streamenc
from streamenc.bulk import ray_encoder

CLIP = Path(__file__).parent / "data" / "speech.flac"


def main() -> int:
    rows = Dataset.from_dict({"audio": [str(CLIP)] * 4, "text": ["a", "b", "c", "d"]})
    rows = rows.cast_column("audio", Audio(decode=False))
    encoder = ray_encoder("nano", device="cpu")()
    with tempfile.TemporaryDirectory() as folder:
        encoded = rows.map(
            encoder,
            batched=True,
            batch_size=2,
            num_proc=2,
            remove_columns=["audio"],
            cache_file_name=str(Path(folder) / "encoded.arrow"),
        )
        print(encoded.features)
        codec = streamenc.load("nano", part="encoder", backend="torch")
        sound = streamenc.read(CLIP, sample_rate=codec.sample_rate, channels=1)
        whole = codec.encode(sound.data)[0].numpy()
        same = all(np.array_equal(row["codes"], whole) for row in encoded)
        print(
            f"{len(encoded)} rows of {whole.shape[1]} frames, "
            f"{'equal to' if same else 'OTHER THAN'} those of the clip alone"
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
