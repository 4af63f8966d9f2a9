"""Features of speech as programs, and the layers they are made of, beside the same in torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="needs the extra cpu")
from streamenc import state as states
from streamenc.compiled.compiledmodel import CompiledModel
from streamenc.errors import CannotLower
from streamenc.layers.attention.chunked import ChunkedTransformer
from streamenc.layers.norm import RunningNorm
from streamenc.layers.positions import PositionalConv
from streamenc.layers.streamed import Streamed
from streamenc.models.model import Model
from streamenc.models.wav2vec2.encoder import SpeechEncoder, SpeechOptions, SpeechShape
from streamenc.state import State
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.compare import assert_close
from tests.support.programs import (
    ROUNDING,
    assert_states_close,
    compiled_step,
    pieces,
    randomized,
    steps,
)

# Widths that are no multiple of a vector, and heads and channels of more than a panel.
SHAPE = SpeechShape(
    conv=((70, 10, 5), (70, 3, 2), (36, 2, 2)),
    width=80,
    heads=1,
    feed_forward=100,
    layers=3,
    position_kernel=16,
    position_groups=4,
)
STABLE = replace(SHAPE, group_norm=False, conv_bias=True, norm_first=True, normalize=False, heads=5)
OPTIONS = SpeechOptions("chunked", (3,), chunk=5, left=3, memory_seconds=0.05)
MODELS = {
    "base": (SHAPE, OPTIONS),
    "stable": (STABLE, replace(OPTIONS, outputs=(0, 2, 3), left=1)),
    "long": (SHAPE, replace(OPTIONS, outputs=(2,), chunk=20, left=0, memory_seconds=0)),
}
MOST_HOPS = 3


def ready(layer: Streamed, seed: int = 0) -> None:
    randomized(layer, seed)
    for part in layer.modules():
        if part is not layer and hasattr(part, "prepare"):
            part.prepare()


@cache
def both(name: str, precision: str = "int16") -> tuple[SpeechEncoder, CompiledModel]:
    """A model and what was compiled of it: its weights are rounded as the compiled one's are."""
    model = SpeechEncoder("hubert", *MODELS[name])
    randomized(model)
    model.prepare()
    compiled = CompiledModel(model, precision)
    for hops in range(1, MOST_HOPS + 1):
        compiled.warm_up(hops)
    return model, compiled


def pushed(model: Model, hops: int, *, lanes: int = 1, seed: int = 0) -> Tensor:
    """What `step` takes, of a first step and so many hops."""
    length = model.spec.lead + hops * model.spec.hop
    return 0.3 * torch.randn(lanes, 1, length, generator=torch.Generator().manual_seed(seed))


def check(layer: Streamed, channels: int, lengths: tuple[int, ...], state: State = None) -> None:
    """Each of the lengths as a step, both ways on the same state."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        for index, length in enumerate(lengths):
            x = torch.randn(2, channels, length, generator=generator)
            if index:
                ours, after = compiled_step(layer, x, state)
            theirs, state = layer.step(x, state)
            if index:
                assert_close(ours, theirs, ROUNDING)
                assert_states_close(after, state)


class TestRunningNorm:
    @pytest.mark.parametrize(
        "channels, block, memory", [(1, 300, None), (1, 40, 60), (64, 130, 500), (70, 7, None)]
    )
    def test_takes_statistics_of_blocks(
        self, channels: int, block: int, memory: int | None
    ) -> None:
        layer = RunningNorm(channels, block, memory=memory, affine=channels > 1)
        randomized(layer)
        check(layer, channels, (block, block, 3 * block, block))

    def test_frozen_statistics_stay(self) -> None:
        layer = RunningNorm(70, None)
        randomized(layer)
        x = 2 + torch.randn(2, 70, 31, generator=torch.Generator().manual_seed(2))
        layer.freeze(layer.step(x, None)[1])
        ours, _ = compiled_step(layer, x, None)
        assert_close(ours, layer.step(x, None)[0], ROUNDING)

    def test_refuses_a_part_of_a_block(self) -> None:
        layer = RunningNorm(3, 8)
        randomized(layer)
        x = torch.randn(1, 3, 8)
        _, state = layer.step(x, None)
        with pytest.raises(CannotLower, match="12 positions are no whole number of blocks of 8"):
            compiled_step(layer, torch.randn(1, 3, 12), state)


class TestPositionalConv:
    @pytest.mark.parametrize("kernel, chunk", [(16, 5), (16, 20), (7, 3), (8, 1)])
    def test_ends_with_the_chunk(self, kernel: int, chunk: int) -> None:
        layer = PositionalConv(40, kernel, 4, chunk)
        ready(layer)
        layer.prepare()
        check(layer, 40, (chunk, chunk, 2 * chunk, chunk))

    def test_what_waits_runs_in_torch(self) -> None:
        layer = PositionalConv(8, 4, 2, None)
        ready(layer)
        _, state = layer.step(torch.randn(1, 8, 9), None)
        with pytest.raises(CannotLower, match="wait for the frames behind"):
            compiled_step(layer, torch.randn(1, 8, 4), state)


class TestChunkedTransformer:
    @pytest.mark.parametrize(
        "heads, dim, chunk, left, lookahead",
        [(2, 64, 5, 2, 0), (1, 80, 17, 1, 0), (3, 8, 4, 3, 0), (2, 64, 4, 1, 6), (2, 20, 18, 2, 3)],
    )
    def test_chunks_see_those_before_them(
        self, heads: int, dim: int, chunk: int, left: int, lookahead: int
    ) -> None:
        layer = ChunkedTransformer(
            *(heads * dim, heads, 50, 2, chunk),
            left=left,
            lookahead=lookahead,
            final_norm=True,
            outputs=(0, 2),
        )
        ready(layer)
        lengths = (chunk + lookahead, *(chunk,) * (left + 3), 3 * chunk, chunk)
        check(layer, heads * dim, lengths)

    def test_says_what_runs_in_torch(self) -> None:
        layer = ChunkedTransformer(8, 2, 8, 2, 4, left=1, ahead=1)
        ready(layer)
        _, state = layer.step(torch.randn(1, 8, 8), None)
        with pytest.raises(CannotLower, match="chunks that wait for the next one"):
            compiled_step(layer, torch.randn(1, 8, 4), state)


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    @pytest.mark.parametrize("precision", ["int16", "float32"])
    def test_any_chunking_is_the_stream_in_torch(self, name: str, precision: str) -> None:
        model, compiled = both(name, precision)
        x = pushed(model, 17)
        theirs, _ = steps([model], pieces(model, x, 1, MOST_HOPS))
        ours, state = steps([compiled], pieces(model, x, 2, MOST_HOPS))
        assert_close(ours, theirs, ROUNDING)
        _, wanted = steps([model], pieces(model, x, 2, MOST_HOPS))
        assert_states_close(state, wanted)

    @pytest.mark.parametrize("hops", [1, 2])
    def test_lanes_are_streams_by_themselves(self, name: str, hops: int) -> None:
        model, compiled = both(name)
        size = hops * model.spec.hop
        first, *parts = pushed(model, 6 * hops, lanes=3).split([model.spec.lead, *[size] * 6], 2)
        with torch.inference_mode():
            _, state = model.step(first, None)
            begun = states.clone(state)
            together = []
            for x in parts:
                y, state = compiled.step(x, state)
                together.append(y)
            for lane in range(3):
                alone = states.lane(begun, lane)
                for x, y in zip(parts, together, strict=True):
                    ours, alone = compiled.step(x[lane : lane + 1], alone)
                    assert torch.equal(ours, y[lane : lane + 1])
                assert_states_close(states.lane(state, lane), alone, 0)

    @pytest.mark.parametrize("hops", [1, 2])
    def test_idle_lanes_stay_as_they_were(self, name: str, hops: int) -> None:
        model, compiled = both(name)
        x = pushed(model, 7 * hops, lanes=2)
        size = hops * model.spec.hop
        first, *parts = x.split([model.spec.lead, *[size] * 7], dim=2)
        with torch.inference_mode():
            _, pool = model.step(first, None)
            alone = states.clone(states.lane(pool, 1))
            for index, part in enumerate(parts):
                active = torch.tensor([True, index % 2 == 0])
                y, new = compiled.step(part, pool)
                states.commit(pool, new, active)
                if active[1]:
                    ours, alone = compiled.step(part[1:], alone)
                    assert torch.equal(ours, y[1:])

    def test_takes_turns_with_torch(self, name: str) -> None:
        model, compiled = both(name)
        parts = pieces(model, pushed(model, 20)[..., :-7], 5, MOST_HOPS)
        theirs, _ = steps([model], parts, end=True)
        ours, _ = steps([model, compiled, compiled], parts, end=True)
        assert_close(ours, theirs, ROUNDING)

    def test_snapshots_go_on_in_torch_and_back(self, name: str) -> None:
        model, compiled = both(name)
        x = pushed(model, 9)[..., :-3]
        whole = Stream(model)
        wanted = torch.cat([whole.push(x), whole.flush()], dim=2)
        stream = Stream(compiled)
        outputs = []
        for index, piece in enumerate(x.tensor_split(7, dim=2)):
            outputs.append(stream.push(piece))
            blob = stream.snapshot()
            stream = Stream((model, compiled)[index % 2])
            stream.restore(blob)
        outputs.append(stream.flush())
        assert_close(torch.cat(outputs, dim=2), wanted, ROUNDING)


def test_whisper_and_videos_say_why_they_run_in_torch() -> None:
    with pytest.raises(CannotLower, match="log-mel spectrum of whisper has no instructions"):
        CompiledModel(zoo.model("whisper-chunked", "encoder", torch.float32))
    with pytest.raises(CannotLower, match="cosmos computes images, whose time goes into arithm"):
        CompiledModel(zoo.model("cosmos", "encoder", torch.float32))


def test_norms_of_windows_say_why_they_run_in_torch() -> None:
    model = zoo.model("wav2vec2-sliding", "encoder", torch.float32)
    with pytest.raises(CannotLower, match="norms of windows by themselves"):
        CompiledModel(model)


def test_positions_that_wait_say_why_they_run_in_torch() -> None:
    model = SpeechEncoder("hubert", SHAPE, replace(OPTIONS, wait=True))
    randomized(model)
    with pytest.raises(CannotLower, match="positions that wait"):
        CompiledModel(model)
