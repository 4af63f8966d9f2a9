"""A stage of NeMo Curator that gives each clip its codec tokens.

    pip install streamenc nemo-curator
    python examples/curator_stage.py

`TokensStage` stands in a pipeline behind stages that filter, as any stage for audio does: a task is
a line of a manifest, `audio_filepath` with what is known of it. The tokens of a clip are those of
the model offline, whatever batch it came in. A clip that cannot be read has `codes` None and an
`error`, for a filter behind it. The pipeline runs on Ray Data, here on this machine.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from nemo_curator.backends.ray_data import RayDataExecutor
from nemo_curator.pipeline import Pipeline
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import AudioTask

import streamenc
from streamenc.bulk import BatchEncoder

CLIP = Path(__file__).parent / "data" / "speech.flac"


@dataclass
class TokensStage(ProcessingStage[AudioTask, AudioTask]):
    """Adds `codes` (codebooks, frames), `n_samples`, `frame_rate` and `error` to a task's data."""

    model: str = "nano"
    codebooks: int | None = None
    filepath_key: str = "audio_filepath"
    device: str = "auto"
    name: str = "streamenc_tokens"
    batch_size: int = 16
    resources: Resources = field(default_factory=lambda: Resources(cpus=1.0))

    def inputs(self) -> tuple[list[str], list[str]]:
        return [], [self.filepath_key]

    def outputs(self) -> tuple[list[str], list[str]]:
        return [], [self.filepath_key, "codes", "n_samples", "frame_rate", "error"]

    def setup(self, worker_metadata: Any = None) -> None:
        self.encoder = BatchEncoder(self.model, codebooks=self.codebooks, device=self.device)

    def process(self, task: AudioTask) -> AudioTask:
        return self.process_batch([task])[0]

    def process_batch(self, tasks: list[AudioTask]) -> list[AudioTask]:
        made = self.encoder({"audio": [task.data[self.filepath_key] for task in tasks]})
        for number, task in enumerate(tasks):
            for column, values in made.items():
                task.data[column] = values[number]
        return tasks


def main() -> int:
    paths = [str(CLIP), str(CLIP), "/no/such/clip.wav"]
    tasks = [
        AudioTask(dataset_name="clips", data={"audio_filepath": path, "text": ""}) for path in paths
    ]
    pipeline = Pipeline(name="tokens", stages=[TokensStage(device="cpu", batch_size=2)])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        done = pipeline.run(RayDataExecutor(), initial_tasks=tasks)
    finally:
        ray.shutdown()

    codec = streamenc.load("nano", part="encoder", backend="torch")
    sound = streamenc.read(CLIP, sample_rate=codec.sample_rate, channels=1)
    whole = codec.encode(sound.data)[0].numpy()
    same = len(done) == len(paths)
    for task in done:
        if task.data["error"]:
            print(f"{task.data['audio_filepath']}: {task.data['error']}")
            continue
        equal = bool(np.array_equal(task.data["codes"], whole))
        same &= equal
        print(
            f"{Path(task.data['audio_filepath']).name}: {whole.shape[1]} frames, "
            f"{'equal to' if equal else 'OTHER THAN'} those of the clip alone"
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
