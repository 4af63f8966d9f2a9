"""Models of single images: batches of frames and of streams, states, the command line's table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys

import anyio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc import state as states
from streamenc.engine.engine import Engine
from streamenc.engine.lanes import Lanes
from streamenc.errors import CheckpointError, SnapshotError, UsageError
from streamenc.models.families import FAMILIES
from streamenc.models.images.image import ImageModel
from streamenc.stream import Stream
from tests.models.images.test_resnet import cifar_tensors
from tests.support import zoo
from tests.support.answers import joined
from tests.support.compare import assert_close, poisoned_memory
from tests.support.images import images

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

# Each image by itself; models of several at once have a hop of as many.
NAMES = [
    (name, side)
    for name, side in zoo.CASES
    if isinstance(zoo.model(name, side), ImageModel) and zoo.model(name, side).spec.hop == 1
]
models = pytest.mark.parametrize(("name", "side"), NAMES, ids=["-".join(case) for case in NAMES])


def test_all_families_of_images_are_here():
    families = {zoo.row(name).family for name, _ in NAMES}
    assert families == {name for name, module in FAMILIES.items() if ".models.images." in module}


@models
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_frames_in_a_step_are_a_batch_that_changes_nothing(name, side, dtype, rel):
    model = zoo.raw(zoo.model(name, side, dtype))
    x = zoo.signal(model, 7, seed=1)
    outputs = []
    for hops in (1, 2, 6):
        stream = Stream(model, hops=hops)
        outputs.append(torch.cat([stream.push(x), stream.flush()], dim=2))
    for y in outputs[1:]:
        assert_close(y, outputs[0], rel)
    assert outputs[0].shape[2] == 7


@models
def test_what_a_stream_remembers_is_how_many_went_by(name, side):
    model = zoo.model(name, side)
    stream = Stream(model, batch=2)
    x = zoo.signal(model, 5, batch=2)
    for i in range(5):
        assert stream.push(x[:, :, i : i + 1]).shape[2] == 1  # at once: there is no delay
    assert isinstance(stream.state, Tensor) and stream.state.tolist() == [5, 5]
    assert states.nbytes(stream.state) == 16


@models
def test_lanes_equal_streams_by_themselves(name, side):
    model = zoo.raw(zoo.model(name, side))
    inputs = [zoo.signal(model, 5, seed=i) for i in range(4)]
    wanted = [Stream(model).push(x) for x in inputs]
    lanes, streams = Lanes(model, 4), [Stream(model) for _ in range(4)]
    parts: list[list[Tensor]] = []
    for stream, x in zip(streams, inputs, strict=True):
        parts.append([stream.push(x[:, :, :1])])
        lanes.join(stream)
    for i in range(1, 5):
        active = [j for j in range(4) if (i + j) % 4]
        for j in active:
            streams[j].take(inputs[j][:, :, i : i + 1])
        stepped = lanes.step({streams[j]: None for j in active})
        for j in range(4):
            # Who idles takes his image later, by himself.
            late = None if j in active else streams[j]
            if late is not None:
                lanes.leave(late)
                parts[j].append(late.push(inputs[j][:, :, i : i + 1]))
                lanes.join(late)
            else:
                parts[j].append(stepped[streams[j]])
    for y, expected in zip(parts, wanted, strict=True):
        assert_close(torch.cat(y, dim=2), expected, 1e-10)
    assert {int(stream.state) for stream in streams} == {5}  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["vit", "vqgan"])
def test_sessions_run_together_in_the_engine(name):
    model = zoo.model(name, "encoder")
    size = (12, 12) if name == "vit" else (8, 12)
    inputs = [images(20, *size, torch.float64) * (1 - 0.1 * i) for i in range(6)]

    async def live(engine: Engine, x: Tensor) -> Tensor:
        session = engine.open(model)
        parts = [await session.step(x[:, :, i : i + 1]) for i in range(x.shape[2])]
        parts.append(await session.flush())
        session.close()
        return joined(parts, axis=2)

    async def main() -> tuple[list[Tensor], object]:
        with Engine(max_wait_ms=200) as engine:
            outputs = await asyncio.gather(*(live(engine, x) for x in inputs))
            return outputs, engine.statistics()

    outputs, statistics = anyio.run(main)
    for x, y in zip(inputs, outputs, strict=True):
        if name == "vit":
            assert_close(y, Stream(model).push(x), 1e-10)
        else:
            assert torch.equal(y, Stream(model).push(x))
    print(statistics)
    assert statistics.hops >= 6 * 19
    assert statistics.hops_per_tick > 2.5


def test_sessions_of_other_sizes_go_on_beside_them():
    model = zoo.model("vit-patches", "encoder")
    sizes = [(8, 12), (8, 12), (16, 4), (16, 4), (4, 4)]
    inputs = [images(6, *size, torch.float64) for size in sizes]

    async def live(engine: Engine, x: Tensor) -> Tensor:
        with engine.open(model) as session:
            return joined([await session.step(x[:, :, i : i + 1]) for i in range(6)], axis=2)

    async def main() -> list[Tensor]:
        with Engine() as engine:
            return await asyncio.gather(*(live(engine, x) for x in inputs))

    for x, y in zip(inputs, anyio.run(main), strict=True):
        assert_close(y, Stream(model).push(x), 1e-10)


def test_snapshots_of_other_options_are_refused(tmp_path):
    zoo.save_vit()(tmp_path)
    first, second = (streamenc.load(tmp_path, layers=which) for which in ("1,3", "2,3"))
    assert first.spec == second.spec
    stream = first.stream()
    stream.push(images(2, 12, 12, torch.float32))
    with pytest.raises(SnapshotError, match="model"):
        second.stream().restore(stream.snapshot())
    again = first.stream()
    again.restore(stream.snapshot())
    assert again.pushed == 2


def test_bytes_and_floats_are_the_same_images():
    codec = zoo.codec("vit")
    rgb = np.random.default_rng(0).integers(0, 256, (3, 4, 12, 12), dtype=np.uint8)
    floats = torch.from_numpy(rgb).double() / 127.5 - 1
    assert_close(codec.encode(rgb), codec.encode(floats), 1e-12)
    assert codec.encode(rgb).shape == (1, 16, 4)


def test_an_unknown_option_names_the_known_ones(tmp_path):
    zoo.save_taesd(tmp_path)
    with pytest.raises(UsageError, match="taesd has no option 'layer'; it has rate"):
        streamenc.load(tmp_path, layer=2)


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "resnet",
        "taesd",
        "cifar",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("dinov2-registers", "vae", "vqgan")
        ),
    ],
)
def test_damaged_folders_are_refused_in_a_sentence(tmp_path, name):
    """Tensors missing or of another shape, values of the config of another kind."""
    if name == "cifar":
        save_file(cifar_tensors(1), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
    else:
        save = zoo.row(name).save
        assert save is not None
        save(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    tensors, config = load_file(weights), json.loads((tmp_path / "config.json").read_text())
    streamenc.load(tmp_path)
    refused = 0
    for key in sorted(tensors)[:: max(3, len(tensors) // 12)]:
        for other in (None, torch.zeros(13)):
            changed = {n: t for n, t in tensors.items() if n != key}
            if other is not None:
                changed[key] = other
            save_file(changed, weights)
            try:
                streamenc.load(tmp_path)
            except CheckpointError as error:
                refused += 1
                assert len(str(error)) > 40
            else:
                assert re.search("tracked|mask_token|pooler|linear", key), (key, other)
    assert refused > 5
    save_file(tensors, weights)
    wrong = [None, "x", -1, [None], 10**9]
    for number, key in enumerate(config):
        for value in (wrong[number % 5], wrong[(number + 2) % 5]):
            (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
            with contextlib.suppress(CheckpointError):
                streamenc.load(tmp_path)


def test_the_list_of_models_needs_no_other_library():
    program = (
        "import sys; from streamenc.registry import LISTED, published_spec; "
        "[published_spec(name) for name in LISTED]; "
        "assert not {'transformers', 'diffusers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
