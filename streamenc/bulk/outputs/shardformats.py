"""The formats of shards by name, imported on demand."""

from __future__ import annotations

from importlib import import_module

from streamenc.bulk.outputs.shard import Shard

# TokenizeJob.format -> "module:class".
FORMATS = {
    "parquet": "streamenc.bulk.outputs.parquetshard:ParquetShard",
    "webdataset": "streamenc.bulk.outputs.webdatasetshard:WebDatasetShard",
    "shar": "streamenc.bulk.outputs.sharshard:SharShard",
    "arrows": "streamenc.bulk.outputs.recordingsshard:RecordingsShard",
    "npz": "streamenc.bulk.outputs.npzshard:NpzShard",
}


def shard_class(format: str) -> type[Shard]:
    """What writes shards of a format."""
    module, _, name = FORMATS[format].partition(":")
    found: type[Shard] = getattr(import_module(module), name)
    return found
