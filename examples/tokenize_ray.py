"""Tokens beside the rows of a table, by a pool of Ray Data's actors.

    pip install 'streamenc[ray]'
    python examples/tokenize_ray.py

A table of clips (bytes of files, and one that is broken) is read as Parquet, each clip goes through
nano, and the table is written with a column `codes`. Here, Ray runs on this machine; with
`ray.init("auto")` it is a cluster, and with `num_gpus=1` each actor has a GPU. For whole data sets,
exactly once, see `streamenc tokenize --ray`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

import streamenc
from streamenc.bulk import ray_encoder

CLIP = Path(__file__).parent / "data" / "speech.flac"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        table, encoded = Path(folder) / "clips.parquet", Path(folder) / "encoded"
        clip = CLIP.read_bytes()
        names = ["first", "second", "broken"]
        audio = [{"bytes": data, "path": None} for data in (clip, clip, clip[:1000])]
        pq.write_table(pa.table({"name": names, "audio": audio}), table)

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            rows = ray.data.read_parquet(str(table))
            pool = ActorPoolStrategy(size=1)
            rows = rows.map_batches(ray_encoder("nano", device="cpu"), batch_size=2, compute=pool)
            rows.drop_columns(["audio"]).write_parquet(str(encoded))
        finally:
            ray.shutdown()

        codec = streamenc.load("nano", part="encoder", backend="torch")
        sound = streamenc.read(CLIP, sample_rate=codec.sample_rate, channels=1)
        whole = codec.encode(sound.data)[0].numpy()
        same = True
        for row in pq.read_table(encoded).to_pylist():
            if row["error"]:
                print(f"{row['name']}: {row['error']}")
                continue
            codes = np.array(row["codes"])
            equal = bool(np.array_equal(codes, whole))
            same &= equal
            print(
                f"{row['name']}: {codes.shape[1]} frames of {codes.shape[0]} codes, "
                f"{'equal to' if equal else 'OTHER THAN'} those of the clip alone"
            )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
