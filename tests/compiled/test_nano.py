"""nano as programs, and each of the instructions that it brought, beside the same in torch."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("numba", reason="needs the extra cpu")
import streamenc
from streamenc import state as states
from streamenc.compiled.compiledmodel import MOST_HOPS, CompiledModel
from streamenc.compiled.lowering.spectra import factors
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.values import AnyValue
from streamenc.errors import CannotLower
from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.conv.convnext import ConvNeXt, SplitConvNeXt
from streamenc.layers.streamed import Streamed
from streamenc.models.model import Model
from streamenc.models.nano import Analysis, Synthesis
from streamenc.state import State
from streamenc.stream import Stream
from streamenc_kernels import compress_spectrum
from tests.support.compare import assert_close, assert_codes_equal, relative_error
from tests.support.programs import (
    ROUNDING,
    assert_states_close,
    compiled_step,
    randomized,
    steps,
)

BOOKS = 12


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Transform(Streamed):
    """One that ends behind the transform: what Analysis compresses."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.window = torch.rand(size, generator=torch.Generator().manual_seed(1))

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert isinstance(state, Tensor)
        x = torch.cat((state, x), dim=2)
        windows = x[:, 0].double().unfold(-1, len(self.window), self.hop) * self.window
        spectrum = torch.fft.rfft(windows)
        y = torch.cat((spectrum.real, spectrum.imag), dim=-1).transpose(1, 2)
        return y.float(), x[..., x.shape[2] - state.shape[2] :]

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, Tensor)
        return plan.transform(x, self.window, state, self.hop)


class Inverse(Streamed):
    """(batch, 2 * bins, rows) -> (batch, N, rows)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.window = torch.rand(size, generator=torch.Generator().manual_seed(1))

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        real, imag = x.double().transpose(1, 2).chunk(2, dim=-1)
        imag = F.pad(imag[..., 1:-1], (1, 1))
        y = torch.fft.irfft(torch.complex(real, imag), len(self.window)) * self.window
        return y.transpose(1, 2).float(), state

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return plan.inverse_transform(x, self.window)


class Compress(Streamed):
    """(batch, 2 * bins, rows) -> (batch, 3 * bins, rows)."""

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        real, imag = x.double().transpose(1, 2).chunk(2, dim=-1)
        return compress_spectrum(real, imag, 0.3, 1e-10).transpose(1, 2).float(), state

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return plan.compressed_spectra(x, 0.3, 1e-10)


class TestSpectra:
    @pytest.mark.parametrize(
        "size, hop", [(2, 1), (24, 8), (30, 30), (96, 7), (480, 160), (1920, 480)]
    )
    def test_transform_is_the_fast_one(self, size: int, hop: int) -> None:
        x, before = noise(3, 1, 4 * hop), noise(3, 1, size - hop, seed=1)
        if size == hop:
            before = before.new_zeros(3, 1, 0)
        layer = Transform(size, hop)
        ours, ours_state = compiled_step(layer, x, before)
        theirs, state = layer.step(x, before)
        assert_close(ours, theirs, 1e-6)
        assert_states_close(ours_state, state, 0)

    @pytest.mark.parametrize("size", [2, 24, 30, 96, 480, 1920])
    def test_inverse_is_the_fast_one(self, size: int) -> None:
        x = noise(2, size + 2, 3)
        layer = Inverse(size)
        assert_close(compiled_step(layer, x, None)[0], layer.step(x, None)[0], 1e-6)

    def test_a_weak_bin_beside_a_strong_one(self) -> None:
        """Windows are transformed one by one: a loud one leaves nothing in a silent one."""
        layer = Transform(24, 24)
        x = noise(1, 1, 48)
        x[..., 24:] = 0
        y, _ = compiled_step(layer, x, torch.zeros(1, 1, 0))
        assert (y[..., 1] == 0).all()

    @pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-3, 1.0, 1e4])
    def test_compressed_spectra(self, size: float) -> None:
        x = size * noise(2, 2 * 123, 3)
        layer = Compress()
        ours, theirs = compiled_step(layer, x, None)[0], layer.step(x, None)[0]
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-30)

    def test_sizes_without_instructions(self) -> None:
        with pytest.raises(CannotLower, match="25 numbers, which is odd"):
            factors(25)
        with pytest.raises(CannotLower, match="2062 numbers has no two factors up to 64"):
            factors(2 * 1031)
        assert factors(480) == (30, 16)

    @pytest.mark.parametrize("hop", [8, 160])
    @pytest.mark.parametrize("frames", [1, 3])
    def test_analysis(self, hop: int, frames: int) -> None:
        layer = Analysis(hop)
        for scale in (0.3, 1.0, 1e-4, 0.0):
            x = scale * noise(2, 1, 2 * hop * frames)
            before = scale * noise(2, 1, 2 * hop, seed=1)
            ours, ours_state = compiled_step(layer, x, before)
            theirs, state = layer.step(x, before)
            assert_close(ours, theirs, ROUNDING)
            assert_states_close(ours_state, state, 0)

    @pytest.mark.parametrize("hop", [8, 160])
    @pytest.mark.parametrize("windows", [1, 2, 5])
    def test_synthesis(self, hop: int, windows: int) -> None:
        layer = Synthesis(hop)
        bins = 3 * hop // 2 + 1
        x = noise(2, 3 * bins, windows)
        before = 2 * noise(2, 2, hop, seed=1)
        for level in (-5.0, 0.0, 3.0):  # of the last one magnitudes are limited
            x[:, :bins] += level
            ours, ours_state = compiled_step(layer, x, before)
            theirs, state = layer.step(x, before)
            assert_close(ours, theirs, ROUNDING)
            assert_states_close(ours_state, state)
        assert ours.abs().max() == 1


class TestDepthwise:
    @pytest.mark.parametrize("channels", [1, 5, 123, 256])
    @pytest.mark.parametrize(
        "kernel, stride, dilation", [(7, 1, 1), (1, 1, 1), (4, 2, 1), (3, 1, 4)]
    )
    @pytest.mark.parametrize("elu, bias", [(False, True), (True, False)])
    def test_is_torchs(
        self, channels: int, kernel: int, stride: int, dilation: int, elu: bool, bias: bool
    ) -> None:
        layer = CausalConv1d(
            channels,
            channels,
            kernel,
            stride,
            dilation=dilation,
            groups=channels,
            bias=bias,
            elu=elu,
        )
        randomized(layer)
        x = noise(3, channels, 4)
        before = noise(3, channels, layer.context, seed=1) if layer.context else None
        ours, ours_state = compiled_step(layer, x, before)
        with torch.no_grad():
            theirs, state = layer.step(x, before)
        assert_close(ours, theirs, ROUNDING)
        assert_states_close(ours_state, state)

    @pytest.mark.parametrize(
        "layer",
        [
            ConvNeXt(12, 20),
            ConvNeXt(80, 130, 5, norm_eps=1e-2, quick=False, bias=True, scaled=True),
            ConvNeXt(16, 24, 1),
            SplitConvNeXt(20, 48),
        ],
        ids=["nano", "scaled", "pointwise", "split"],
    )
    @pytest.mark.parametrize("precision", ["float32", "int16"])
    def test_blocks(self, layer: Any, precision: str) -> None:
        randomized(layer)
        width = layer.depthwise.weight.shape[0]
        context = layer.depthwise.context
        x = noise(3, width, 4)
        before = noise(3, width, context, seed=1) if context else None
        ours, ours_state = compiled_step(layer, x, before, precision)
        with torch.no_grad():
            theirs, state = layer.step(x, before)
        assert_close(ours, theirs, ROUNDING)
        assert_states_close(ours_state, state)


PARTS = ("encoder", "decoder")


@cache
def both(part: str, precision: str) -> tuple[Any, CompiledModel]:
    """The model that comes with streamenc, and what was compiled of it."""
    model: Any = getattr(streamenc.load(part=part, backend="torch"), part)  # type: ignore[arg-type]  # a literal
    compiled = CompiledModel(model, precision)
    for hops in range(1, MOST_HOPS + 1):
        compiled.warm_up(hops)
    return model, compiled


def sound(samples: int) -> Tensor:
    """(1, 1, samples): noise, silence, a loud sine in noise, and noise that is cut off."""
    x = 0.1 * noise(1, 1, samples)
    first, silent, tonal, loud = x.tensor_split(4, dim=2)
    tonal = tonal + 0.9 * torch.sin(0.3 * torch.arange(tonal.shape[2]))
    return torch.cat((first, 0 * silent, tonal, 20 * loud), dim=2).clamp(-1, 1)


def inputs(part: str, hops: int, *, lanes: int = 1) -> list[Tensor]:
    """What `step` takes, of a first step and then of each hop."""
    model, _ = both(part, "int16")
    if part == "encoder":
        whole = sound(model.spec.lead + hops * model.spec.hop)
        x = torch.cat([whole.roll(1000 * lane, dims=2) for lane in range(lanes)])
    else:
        generator = torch.Generator().manual_seed(5)
        x = model.before(torch.randint(1024, (lanes, BOOKS, 1 + hops), generator=generator))
    return list(x.split([model.spec.lead, *[model.spec.hop] * hops], dim=2))


def cut(parts: list[Tensor], seed: int) -> list[Tensor]:
    """Steps of 1 hop to one more than programs have."""
    chance, at, joined = random.Random(seed), 1, parts[:1]
    while at < len(parts):
        hops = chance.randint(1, MOST_HOPS + 1)
        joined.append(torch.cat(parts[at : at + hops], dim=2))
        at += hops
    return joined


@pytest.mark.parametrize("part", PARTS)
class TestModel:
    @pytest.mark.parametrize("precision", ["float32", "int16"])
    def test_is_torch_on_the_same_weights(self, part: str, precision: str) -> None:
        model, compiled = both(part, precision)
        parts = inputs(part, 80)
        theirs, state = steps([model], parts)
        for seed in range(3):
            ours, ours_state = steps([compiled], cut(parts, seed))
            assert_close(ours, theirs, ROUNDING)
            assert_states_close(ours_state, state)

    def test_its_weights_are_nearly_those_that_came(self, part: str) -> None:
        """The encoder's are the very same: they are stored as whole numbers with scales."""
        untouched: Any = getattr(streamenc.load(part=part, backend="torch"), part)  # type: ignore[arg-type]
        _, compiled = both(part, "int16")
        parts = inputs(part, 40)
        ours, _ = steps([compiled], parts)
        theirs, _ = steps([untouched], parts)
        assert_close(ours, theirs, ROUNDING if part == "encoder" else 1e-4)

    def test_how_a_stream_is_cut_changes_nothing(self, part: str) -> None:
        """Of a decoder, the last bits of what overlaps between two steps."""
        _, compiled = both(part, "int16")
        first, *rest = inputs(part, 40)
        by_hop, state = steps([compiled], [first, *rest])
        for hops in (2, 5, 8):
            parts = [torch.cat(rest[at : at + hops], dim=2) for at in range(0, 40, hops)]
            ours, ours_state = steps([compiled], [first, *parts])
            assert_close(ours, by_hop, 1e-6)
            assert_states_close(ours_state, state, 1e-6)

    @pytest.mark.parametrize("hops", [1, 3])
    def test_lanes_are_streams_by_themselves(self, part: str, hops: int) -> None:
        model, compiled = both(part, "int16")
        first, *rest = inputs(part, 12 * hops, lanes=5)
        parts = [torch.cat(rest[at : at + hops], dim=2) for at in range(0, 12 * hops, hops)]
        with torch.inference_mode():
            _, begun = model.step(first, None)
        together, state = steps_from(compiled, parts, states.clone(begun))
        for lane in range(5):
            alone, ours = steps_from(
                compiled, [x[lane : lane + 1] for x in parts], states.lane(begun, lane)
            )
            assert torch.equal(alone, together[lane : lane + 1])
            assert_states_close(states.lane(state, lane), ours, 0)

    def test_idle_lanes_stay_as_they_were(self, part: str) -> None:
        model, compiled = both(part, "int16")
        first, second = inputs(part, 1, lanes=4)
        with torch.inference_mode():
            _, pool = model.step(first, None)
            before = states.clone(pool)
            _, new = compiled.step(second, pool)
            assert_states_close(pool, before, 0)
            states.commit(pool, new, torch.tensor([True, False, True, False]))
        for lane in range(4):
            held = states.lane(before if lane % 2 else new, lane)
            assert_states_close(states.lane(pool, lane), held, 0)

    def test_takes_turns_with_torch_to_the_end(self, part: str) -> None:
        model, compiled = both(part, "int16")
        parts = cut(inputs(part, 60), 5)
        theirs, _ = steps([model], parts, end=True)
        ours, _ = steps([model, compiled, compiled], parts, end=True)
        assert_close(ours, theirs, ROUNDING)


def test_a_pure_tone_is_as_far_from_the_truth_as_torchs() -> None:
    """Between its harmonics a tone has bins of nothing but rounding, which compression raises: two
    float32 transforms differ there by more than anywhere else."""
    model, compiled = both("encoder", "float32")
    exact = streamenc.load(part="encoder", backend="torch").encoder
    assert exact is not None
    exact.double()
    tone = torch.sin(0.3 * torch.arange(40 * 320))[None, None]
    parts = list(tone.split([640, *[320] * 38], dim=2))
    truth, _ = steps([exact], [x.double() for x in parts])
    ours, theirs = (steps([m], parts)[0].double() for m in (compiled, model))
    assert relative_error(ours, truth) < 2 * relative_error(theirs, truth) < 1e-4


def steps_from(model: Model, parts: list[Tensor], state: State) -> tuple[Tensor, State]:
    """The outputs for all parts of a stream in mid-stream, and the state behind them."""
    outputs = []
    with torch.inference_mode():
        for x in parts:
            y, state = model.step(x, state)
            outputs.append(y)
    return torch.cat(outputs, dim=2), state


def test_a_stream_and_its_snapshots_go_on_in_torch_and_back() -> None:
    encoder, compiled_encoder = both("encoder", "int16")
    decoder, compiled_decoder = both("decoder", "int16")
    x = sound(16_000)
    with Stream(encoder, codebooks=BOOKS) as stream:
        wanted = torch.cat([stream.push(x), stream.flush()], dim=2)
    with Stream(decoder) as stream:
        heard = torch.cat([stream.push(wanted), stream.flush()], dim=2)
    codes = turns([encoder, compiled_encoder], list(x.tensor_split(9, dim=2)), BOOKS)
    with torch.inference_mode():
        latents = encoder(x)
    assert_codes_equal(codes, wanted, latents, [encoder.quantizer])
    again = turns([decoder, compiled_decoder], list(wanted.tensor_split(9, dim=2)), None)
    assert_close(again, heard, ROUNDING)


def turns(models: list[Model], pieces: list[Tensor], codebooks: int | None) -> Tensor:
    """A stream that goes on in the next model behind each piece, from a snapshot."""
    stream = Stream(models[0], codebooks=codebooks)
    outputs: list[Any] = []
    for index, piece in enumerate(pieces):
        outputs.append(stream.push(piece))
        blob = stream.snapshot()
        stream = Stream(models[(index + 1) % len(models)], codebooks=codebooks)
        stream.restore(blob)
    outputs.append(stream.flush())
    return torch.cat([y for y in outputs if y.shape[2]], dim=2)
