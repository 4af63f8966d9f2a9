"""`streamenc tokenize` over a folder, beside what people write: a loop of the command line, a pool
of processes, and `datasets.map` with the published model.

Each runs in processes of its own, one thread each. The clock runs from when the models are loaded;
of `streamenc tokenize` from when the first of its workers has, so what the others load counts. The
loop's processes load for each file, and all of that counts. Before anything is timed, the tokens of
`streamenc tokenize` and of the pool are compared, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.harness import Row, Settings, Table, median_interval

ROUNDS = 3
ROOT = Path(__file__).parents[2]
OURS, POOL, LOOP, MAP = "streamenc tokenize", "a pool", "a loop of streamenc encode", "datasets.map"
UNIT = "ms of a core per minute of {media}"
# Of sound: a rate and how it is stored.
FLAC, OPUS, WAVE = (
    (16_000, "flac", "flac"),
    (48_000, "libopus", "ogg"),
    (44_100, "pcm_s16le", "wav"),
)
Form = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what it is given.

    lengths   Seconds of the files, in turns.
    files     How many there are.
    looped    How many of them the loop does.
    mapped    Whether `datasets.map` is one of those that are timed.
    paired    Whether they are also timed with two processes.
    """

    title: str
    model: str
    forms: Sequence[Form] = ()
    lengths: Sequence[float] = ()
    files: int = 0
    looped: int = 0
    mapped: bool = False
    paired: bool = False


def tables(settings: Settings) -> Iterator[Table]:
    """A table for each model."""
    for case in _cases(settings):
        if settings.only in case.title:
            yield _table(settings, case)


def _cases(settings: Settings) -> Iterator[Case]:
    from bench import weights

    folder, mixed, spoken = settings.folder, (FLAC, OPUS, FLAC, WAVE), (14.0, 3.0, 9.0, 16.0, 6.0)
    if settings.quick:
        yield Case("nano", "nano", mixed, (2.0, 0.5), 4)
        return
    yield Case("nano", "nano", mixed, spoken, 160, looped=3, paired=True)
    yield Case("nano, files of 1 s", "nano", (FLAC,), (1.0,), 300)
    yield Case("mel", "mel", mixed, spoken, 160)
    mimi = str(weights.mimi(folder))
    yield Case("Mimi, full size", mimi, mixed, (5.0, 3.0, 7.0), 8, mapped=True, paired=True)
    yield Case("Cosmos CV8x8x8, full size", str(weights.cosmos(folder, part="encoder")), files=4)


def _table(settings: Settings, case: Case) -> Table:
    folder = settings.folder / "tokenize" / case.title.replace(" ", "-").replace(",", "")
    files, minutes = _media(folder / "in", case)
    cores = [1, 2] if case.paired and (os.cpu_count() or 1) > 1 else [1]
    entrants: dict[str, tuple[int, Callable[[Path], dict[str, Any]]]] = {}

    def enter(name: str, count: int, **more: Any) -> None:
        ask = {"who": name, "model": case.model, "files": [*map(str, files)], "count": count}
        called = name if name == LOOP else f"{name}, {count} process{'es' * (count > 1)}"
        entrants[called] = count, lambda out: _child({**ask, "out": str(out), **more})

    for count in cores:
        enter(OURS, count)
        enter(POOL, count)
        if case.mapped:
            enter(MAP, count)
    if case.looped:
        enter(LOOP, 1, files=[*map(str, files[: case.looped])])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in entrants}
    checked = _check_tokens(folder, entrants, files)
    if settings.quick:
        found |= checked
    for number in range(0 if settings.quick else ROUNDS):
        for name in list(entrants)[:: -1 if number % 2 else 1]:
            made = entrants[name][1](folder / "out")
            shutil.rmtree(folder / "out")
            found[name].append(made)
    reference = f"{OURS}, 1 process"

    def cost(name: str) -> list[float]:
        """Milliseconds of a core per minute."""
        of = sum(map(_seconds, files[: case.looped])) / 60 if name == LOOP else minutes
        return [1e3 * made["seconds"] * entrants[name][0] / of for made in found[name]]

    rows = []
    for name in entrants:
        times = cost(name)
        ratios = [own / other for own, other in zip(times, cost(reference), strict=True)]
        low, high = median_interval(ratios)
        note = f"{60_000 / median(times):.3g} times real time a core"
        more = {"ratio": median(ratios), "ratio_low": low, "ratio_high": high}
        rows.append(Row.of(name, times, note=note, **more))
    facts: dict[str, Any] = {
        "files, and minutes in all": f"{len(files)}, {minutes:.1f}",
        "where the time goes, 1 process": _shares(found[reference]),
    }
    for count in cores:
        ours, theirs = (f"{who}, {count} process{'es' * (count > 1)}" for who in (OURS, POOL))
        faster = median(b / a for a, b in zip(cost(ours), cost(theirs), strict=True))
        facts[f"times as fast as the pool, {count} process{'es' * (count > 1)}"] = f"{faster:.2f}"
    media = "video" if not case.forms else "sound"
    return Table(
        f"{case.title}: a folder to tokens", UNIT.format(media=media), rows, reference, facts=facts
    )


def _shares(found: Sequence[dict[str, Any]]) -> str:
    """What the seconds of a run were spent on; what is left is opening files and the rest."""
    parts = {
        what: median(made["spent"][what] / made["seconds"] for made in found)
        for what in found[0]["spent"]
    }
    parts["the rest"] = max(0.0, 1 - sum(parts.values()))
    return ", ".join(f"{what} {share:.0%}" for what, share in parts.items())


def _check_tokens(
    folder: Path, entrants: dict[str, Any], files: Sequence[Path]
) -> dict[str, list[dict[str, Any]]]:
    """What the two say of their runs.

    Raises AssertionError where the pool's tokens are not those of the set.
    """
    import pyarrow.parquet as pq

    ours, pool = folder / "check-ours", folder / "check-pool"
    runs = {f"{OURS}, 1 process": ours, f"{POOL}, 1 process": pool}
    said = {name: [entrants[name][1](out)] for name, out in runs.items()}
    rows = [
        row
        for part in sorted(ours.glob("data/*.parquet"))
        for row in pq.read_table(part).to_pylist()
    ]
    assert sorted(row["key"] for row in rows) == sorted(path.name for path in files)
    column = "codes" if "codes" in rows[0] else "features"
    for row in rows:
        wanted = np.load(pool / f"{row['key']}.npy")
        given = np.array(row[column], wanted.dtype).reshape(wanted.shape)
        assert np.array_equal(given, wanted), f"{row['key']}: other tokens than the pool's"
    shutil.rmtree(ours)
    shutil.rmtree(pool)
    return said


def _media(folder: Path, case: Case) -> tuple[list[Path], float]:
    """Files of speech or moving images, and how many minutes they are."""
    from bench import signals

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if not case.forms:
        for number in range(case.files):
            path = folder / f"{number}.mp4"
            _write_video(path, signals.video(17, 64, 64, seed=number))
            files.append(path)
        return files, sum(map(_seconds, files)) / 60
    speech: dict[int, Any] = {}
    lengths = cycle(case.lengths)
    for number, (rate, codec, ending) in enumerate(islice(cycle(case.forms), case.files)):
        if rate not in speech:
            speech[rate] = signals.speech(rate, 60 * rate)
        samples = round(next(lengths) * rate)
        path = folder / f"{number:04d}.{ending}"
        _write_sound(path, np.roll(speech[rate], -number * rate)[:samples], rate, codec)
        files.append(path)
    return files, sum(map(_seconds, files)) / 60


def _write_sound(path: Path, samples: Any, rate: int, codec: str) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        for start in range(0, len(samples), 960):
            piece = (samples[None, start : start + 960] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(piece, "s16", "mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_video(path: Path, images: Any) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=24, width=images.shape[3], height=images.shape[2]
        )
        stream.pix_fmt = "yuv420p"
        for image in images.transpose(1, 2, 3, 0):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _seconds(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        return float(container.duration or 0) / 1e6


def _child(ask: dict[str, Any]) -> dict[str, Any]:
    """What a contestant says of its run, which it does in a process of its own."""
    if ask["who"] == LOOP:
        return _loop(ask)
    command = [sys.executable, "-m", "bench.cpu.tokenize", json.dumps(ask)]
    done = subprocess.run(command, cwd=ROOT, env=_one_thread(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{ask['who']} failed:\n{done.stderr}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _loop(ask: dict[str, Any]) -> dict[str, Any]:
    Path(ask["out"]).mkdir(parents=True)
    began = time.perf_counter()
    for file in ask["files"]:
        target = f"{ask['out']}/{Path(file).name}.arrows"
        command = [sys.executable, "-m", "streamenc", "encode", file, target, "-m", ask["model"]]
        subprocess.run(command, cwd=ROOT, env=_one_thread(), capture_output=True, check=True)
    return {"seconds": time.perf_counter() - began}


def _ours(ask: dict[str, Any]) -> dict[str, Any]:
    from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
    from streamenc.bulk.tokenizing import tokenize

    files = ask["files"]
    job = TokenizeJob(
        input=str(Path(files[0]).parent),
        models=(ModelAsk(name=ask["model"]),),
        items_per_shard=max(1, len(files) // 12),
    )
    figures = tokenize(job, ask["out"], workers=ask["count"])
    assert (figures.items, figures.errors) == (len(files), 0)
    return {"seconds": figures.working_seconds, "spent": figures.spent}


def _pool(ask: dict[str, Any]) -> dict[str, Any]:
    from bench.cpu.tokenpool import pool

    files = [Path(file) for file in ask["files"]]
    return {"seconds": pool(ask["model"], files, Path(ask["out"]), ask["count"])}


def _map(ask: dict[str, Any]) -> dict[str, Any]:
    """The published Mimi in `datasets.map`, loaded before its processes fork."""
    import datasets
    import soundfile
    import soxr
    import torch
    from transformers import EncodecFeatureExtractor, MimiModel

    from bench import weights

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    folder = weights.transformers_folder(Path(ask["model"]), weights.MIMI_CONFIG)
    model = MimiModel.from_pretrained(folder).train(False)
    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        sound, rate = soundfile.read(row["path"], dtype="float32")
        if rate != 24_000:
            sound = soxr.resample(sound, rate, 24_000)
        given = extractor(raw_audio=sound, sampling_rate=24_000, return_tensors="pt")
        with torch.inference_mode():
            codes = model.encode(given["input_values"], given["padding_mask"]).audio_codes
        return {"codes": codes[0].numpy().astype(np.uint16)}

    rows = datasets.Dataset.from_dict({"path": ask["files"]})
    began = time.perf_counter()
    made = rows.map(encode, num_proc=ask["count"] if ask["count"] > 1 else None)
    made.to_parquet(f"{ask['out']}/tokens.parquet")
    return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A contestant of `python -m bench tokenize`.")
    parser.add_argument("ask", type=json.loads)
    asked = parser.parse_args().ask
    Path(asked["out"]).mkdir(parents=True, exist_ok=True)
    print(json.dumps({OURS: _ours, POOL: _pool, MAP: _map}[asked["who"]](asked)))
