"""EnCodec 24 kHz as programs, and its LSTM, beside the same in torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="needs the extra cpu")
from streamenc import state as states
from streamenc.compiled.compiledmodel import MOST_HOPS, CompiledModel
from streamenc.errors import CannotLower
from streamenc.layers.quantize import ResidualVQ
from streamenc.layers.recurrent import SkipLSTM
from streamenc.models.encodec.encodec import EncodecDecoder, EncodecEncoder
from streamenc.models.encodec.segments import SegmentDecoder, SegmentEncoder, Segments
from streamenc.models.model import Model
from streamenc.models.seanet import Seanet
from streamenc.stream import Stream
from tests.support.compare import assert_close, assert_codes_equal
from tests.support.programs import (
    ROUNDING,
    assert_states_close,
    compiled_step,
    pieces,
    randomized,
    steps,
)

# Two panels of hidden gates and more, and widths that are no multiple of a vector.
NET = Seanet(1, 16, 6, (8, 5, 4, 2), conv_shortcut=True, lstm_layers=2, pad_mode="reflect")
PARTS: dict[str, type[EncodecEncoder | EncodecDecoder]] = {
    "encoder": EncodecEncoder,
    "decoder": EncodecDecoder,
}


def made(part: str, *, exact: bool = True) -> EncodecEncoder | EncodecDecoder:
    quantizer = ResidualVQ(4, 64, NET.latent)
    model = PARTS[part](NET, quantizer, 24_000, exact=exact)
    randomized(model)
    model.prepare()
    return model


@cache
def both(
    part: str, precision: str = "int16", *, exact: bool = True
) -> tuple[EncodecEncoder | EncodecDecoder, CompiledModel]:
    """A model and what was compiled of it: its weights are rounded as the compiled one's are."""
    model = made(part, exact=exact)
    compiled = CompiledModel(model, precision)
    for hops in range(1, MOST_HOPS + 1):
        compiled.warm_up(hops)
    return model, compiled


def pushed(model: Model, hops: int, *, lanes: int = 1, seed: int = 0) -> Tensor:
    """What `step` takes, of a first step and so many hops."""
    length = model.spec.lead + (hops - 1) * model.spec.hop
    generator = torch.Generator().manual_seed(seed)
    if model.spec.input.kind == "codes":
        return model.before(torch.randint(64, (lanes, 4, length), generator=generator))
    return 0.3 * torch.randn(lanes, 1, length, generator=generator)


class TestLSTM:
    @pytest.mark.parametrize("channels, layers", [(5, 1), (48, 2), (123, 3)])
    @pytest.mark.parametrize("positions, lanes", [(1, 1), (1, 3), (2, 2), (8, 1), (7, 4)])
    @pytest.mark.parametrize("precision", ["float32", "int16"])
    def test_is_torchs(
        self, channels: int, layers: int, positions: int, lanes: int, precision: str
    ) -> None:
        layer = SkipLSTM(channels, layers)
        randomized(layer, gain=3)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(lanes, channels, positions, generator=generator)
        hidden, cell = torch.randn(2, lanes, layers, channels, generator=generator)
        ours, (hidden_after, cell_after) = compiled_step(layer, x, (hidden, cell), precision)
        with torch.no_grad():
            before = [leaf.transpose(0, 1).contiguous() for leaf in (hidden, cell)]
            theirs, after = layer.lstm(x.permute(2, 0, 1), before)
        assert_close(ours, theirs.permute(1, 2, 0) + x, ROUNDING)
        assert_close(hidden_after.transpose(0, 1), after[0], ROUNDING)
        assert_close(cell_after.transpose(0, 1), after[1], ROUNDING)

    def test_what_is_not_finite_stays_visible(self) -> None:
        layer = SkipLSTM(48, 2)
        randomized(layer)
        x = torch.zeros(1, 48, 2)
        x[0, 7, 0] = torch.nan
        zeros = torch.zeros(1, 2, 48)
        y, (hidden, cell) = compiled_step(layer, x, (zeros, zeros))
        assert y.isnan().all() and hidden.isnan().all() and cell.isnan().all()


@pytest.mark.parametrize("part", PARTS)
class TestModel:
    @pytest.mark.parametrize("precision", ["float32", "int16"])
    @pytest.mark.parametrize("exact", [True, False])
    def test_is_torch_on_the_same_weights(self, part: str, precision: str, exact: bool) -> None:
        model, compiled = both(part, precision, exact=exact)
        x = pushed(model, 60)
        hops = [model.spec.lead, *[model.spec.hop] * 59]
        theirs, state = steps([model], x.split(hops, dim=2))
        for seed in range(3):
            ours, ours_state = steps([compiled], pieces(model, x, seed, MOST_HOPS))
            assert_close(ours, theirs, ROUNDING)
            assert_states_close(ours_state, state)

    def test_float32_keeps_the_weights(self, part: str) -> None:
        untouched = made(part).state_dict()
        model, _ = both(part, "float32")
        assert all(torch.equal(model.state_dict()[name], w) for name, w in untouched.items())

    def test_int16_is_near_the_weights_that_came(self, part: str) -> None:
        untouched = made(part)
        model, compiled = both(part)
        x = pushed(model, 30)
        hops = [model.spec.lead, *[model.spec.hop] * 29]
        ours, _ = steps([compiled], x.split(hops, dim=2))
        theirs, _ = steps([untouched], x.split(hops, dim=2))
        assert_close(ours, theirs, 5e-4)

    def test_how_a_stream_is_cut_changes_nothing(self, part: str) -> None:
        """Not a bit; of a decoder only what overlaps between two steps is summed up otherwise."""
        model, compiled = both(part)
        tolerance = 0 if part == "encoder" else ROUNDING
        x = pushed(model, 41)
        hop = model.spec.hop
        first, *rest = x.split([model.spec.lead, *[hop] * 40], dim=2)
        by_hop, state = steps([compiled], [first, *rest])
        for hops in (2, 5, 8):
            parts = [torch.cat(rest[at : at + hops], dim=2) for at in range(0, 40, hops)]
            ours, ours_state = steps([compiled], [first, *parts])
            assert_close(ours, by_hop, tolerance)
            assert_states_close(ours_state, state, tolerance)

    @pytest.mark.parametrize("hops", [1, 3])
    def test_lanes_are_streams_by_themselves(self, part: str, hops: int) -> None:
        model, compiled = both(part)
        x = pushed(model, 1 + 12 * hops, lanes=5)
        parts = x.split([model.spec.lead, *[hops * model.spec.hop] * 12], dim=2)
        with torch.inference_mode():
            _, state = model.step(parts[0], None)
        begun = states.clone(state)
        together = []
        for x in parts[1:]:
            y, state = compiled.step(x, state)
            together.append(y)
        for lane in range(5):
            alone = states.lane(begun, lane)
            for x, y in zip(parts[1:], together, strict=True):
                ours, alone = compiled.step(x[lane : lane + 1], alone)
                assert torch.equal(ours, y[lane : lane + 1])
            assert_states_close(states.lane(state, lane), alone, 0)

    def test_idle_lanes_stay_as_they_were(self, part: str) -> None:
        model, compiled = both(part)
        x = pushed(model, 2, lanes=4)
        with torch.inference_mode():
            _, pool = model.step(x[..., : model.spec.lead], None)
        before = states.clone(pool)
        _, new = compiled.step(x[..., model.spec.lead :], pool)
        assert_states_close(pool, before, 0)
        active = torch.tensor([True, False, True, False])
        with torch.inference_mode():
            states.commit(pool, new, active)
        for lane in range(4):
            held = states.lane(new if active[lane] else before, lane)
            assert_states_close(states.lane(pool, lane), held, 0)

    def test_takes_turns_with_torch(self, part: str) -> None:
        model, compiled = both(part)
        x = pushed(model, 40)
        parts = pieces(model, x, 5, MOST_HOPS)
        theirs, _ = steps([model], parts, end=True)
        ours, _ = steps([model, compiled, compiled], parts, end=True)
        assert_close(ours, theirs, ROUNDING)

    def test_snapshots_go_on_in_torch_and_back(self, part: str) -> None:
        model, compiled = both(part)
        generator = torch.Generator().manual_seed(3)
        if part == "encoder":
            x = 0.3 * torch.randn(1, 1, 9000, generator=generator)
        else:
            x = torch.randint(64, (1, 4, 28), generator=generator)
        cuts = [x.shape[2] * at // 7 for at in range(1, 7)]
        whole = Stream(model)
        wanted = torch.cat([whole.push(x), whole.flush()], dim=2)
        stream = Stream(compiled)
        outputs = []
        for index, piece in enumerate(x.tensor_split(cuts, dim=2)):
            outputs.append(stream.push(piece))
            blob = stream.snapshot()
            stream = Stream((model, compiled)[index % 2])
            stream.restore(blob)
        outputs.append(stream.flush())
        ours = torch.cat([y for y in outputs if y.shape[2]], dim=2)
        if part == "encoder":
            with torch.inference_mode():
                latents = model(x)
            assert_codes_equal(ours, wanted, latents, [model.quantizer])
        else:
            assert_close(ours, wanted, ROUNDING)


class TestEncoderRounds:
    def test_its_lstm_alone(self) -> None:
        untouched = made("encoder").state_dict()
        model, _ = both("encoder")
        for name, numbers in model.state_dict().items():
            changed = not torch.equal(numbers, untouched[name])
            assert changed == ("lstm.weight" in name), name

    def test_so_that_latents_of_full_size_stay(self) -> None:
        net = replace(NET, latent=128, filters=32)
        latents = []
        x = 0.3 * torch.randn(1, 1, 2240 + 60 * 320, generator=torch.Generator().manual_seed(4))
        for compile_it in (False, True):
            model: Model = EncodecEncoder(net, ResidualVQ(1, 4, 128), 24_000)
            randomized(model)
            model.prepare()
            if compile_it:
                model = CompiledModel(model)
            y, _ = steps([model], x.split([2240, *[320] * 60], dim=2))
            latents.append(y)
        theirs, ours = latents
        assert 0.1 < float(theirs.std()) < 10
        assert_close(ours, theirs, 3e-5)


@pytest.mark.parametrize("kind", [SegmentEncoder, SegmentDecoder])
def test_segments_say_why_they_run_in_torch(kind: type[SegmentEncoder | SegmentDecoder]) -> None:
    net = replace(NET, channels=2, causal=False)
    model = kind(net, ResidualVQ(4, 64, NET.latent), 4800, Segments(4800, 4320, 320))
    randomized(model)
    with pytest.raises(CannotLower, match="whole segments of"):
        CompiledModel(model)
