"""The streaming STFT against torch.stft, for every kind of grid and every residue of the length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from streamenc.layers.stft import STFT, reflect


def hann(length: int) -> Tensor:
    return torch.hann_window(length, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def reference(x: Tensor, layer: STFT, window: Tensor, centred: bool) -> Tensor:
    return torch.stft(
        x[:, 0],
        layer.n_fft,
        layer.hop,
        len(window),
        window,
        center=centred,
        pad_mode="reflect",
        return_complex=True,
    )


def stream(layer: STFT, x: Tensor, steps: list[int]) -> Tensor:
    """Takes the lead, then steps of so many hops while they fit; the rest ends the stream."""
    outputs, state, at, size, turn = [], None, 0, layer.lead, 0
    while at + size <= x.shape[-1]:
        y, state = layer.step(x[..., at : at + size], state)
        expected = layer.lead_out if at == 0 else size // layer.hop
        assert y.shape[-1] == expected
        assert state is not None
        outputs.append(y)
        at += size
        size = layer.hop * steps[turn % len(steps)]
        turn += 1
    outputs.append(layer.step(x[..., at:], state, end=True)[0])
    return torch.cat(outputs, dim=-1)


GRIDS = [
    # n_fft, win_length, hop
    (400, 400, 160),
    (16, 16, 4),
    (16, 16, 1),
    (16, 16, 9),
    (16, 16, 15),
    (16, 16, 16),
    (16, 10, 4),
    (16, 9, 4),
    (16, 9, 1),
    (16, 5, 5),
    (16, 1, 1),
    (15, 15, 4),
    (15, 15, 8),
    (15, 15, 15),
    (15, 10, 10),
    (15, 9, 3),
    (2, 2, 1),
    (2, 1, 1),
]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("n_fft", "win_length", "hop"), GRIDS)
def test_equals_torch_at_every_length(n_fft: int, win_length: int, hop: int, centred: bool) -> None:
    window = torch.linspace(0.5, 1.5, win_length, dtype=torch.float64)  # not symmetric, nowhere 0
    layer = STFT(window, n_fft, hop, centred=centred)
    least = n_fft // 2 + 1 if centred else n_fft
    lengths = [*range(least, least + 2 * hop + 2), layer.lead + 7 * hop + hop // 2]
    for length in lengths:
        x = noise(2, 1, length)
        wanted = reference(x, layer, window, centred)
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(stream(layer, x, [1, 3, 2]), wanted, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    n_fft=st.integers(2, 40),
    data=st.data(),
    centred=st.booleans(),
    extra=st.integers(0, 200),
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_any_grid_and_any_steps(
    n_fft: int, data: st.DataObject, centred: bool, extra: int, steps: list[int]
) -> None:
    win_length = data.draw(st.integers(1, n_fft), label="win_length")
    hop = data.draw(st.integers(1, win_length), label="hop")
    window = torch.linspace(0.5, 1.5, win_length, dtype=torch.float64)
    layer = STFT(window, n_fft, hop, centred=centred)
    x = noise(1, 1, n_fft + extra)
    wanted = reference(x, layer, window, centred)
    torch.testing.assert_close(stream(layer, x, steps), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("n_fft", "win_length", "hop"), GRIDS)
def test_lead_is_minimal(n_fft: int, win_length: int, hop: int, centred: bool) -> None:
    """With one sample less frame 0 is open: signals that agree up to there differ in it."""
    window = torch.ones(win_length, dtype=torch.float64)
    layer = STFT(window, n_fft, hop, centred=centred)
    x = noise(1, 1, layer.lead + n_fft)
    other = x.clone()
    other[..., layer.lead - 1 :] += noise(1, 1, n_fft + 1, seed=1)
    # Not centred, the zeros around a short window make frame 0 known, but not yet that it exists.
    if centred or win_length == n_fft:
        assert not torch.allclose(layer(x)[..., 0], layer(other)[..., 0])
    else:
        assert layer(x[..., : layer.lead - 1]).shape[-1] == 0


@pytest.mark.parametrize("length", range(1, 9))
def test_shorter_than_the_reflection_is_reflected_repeatedly(length: int) -> None:
    window = hann(16)
    layer = STFT(window, 16, 4)
    x = noise(1, 1, length)
    with pytest.raises(RuntimeError, match="[Pp]adding"):
        reference(x, layer, window, centred=True)
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (8, 8)), mode="reflect"))
    wanted = reference(padded, layer, window, centred=False)
    assert wanted.shape[-1] == 1 + length // 4
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)


def test_not_centred_and_shorter_than_a_frame_has_no_frame() -> None:
    layer = STFT(hann(16), 16, 4, centred=False)
    y = layer(noise(3, 1, 15))
    assert y.shape == (3, 9, 0)
    assert y.dtype == torch.complex128


@pytest.mark.parametrize(("n_fft", "win_length", "hop"), GRIDS)
def test_drop_last_is_the_whole_without_its_last_frame(
    n_fft: int, win_length: int, hop: int
) -> None:
    window = torch.linspace(0.5, 1.5, win_length, dtype=torch.float64)
    whole, cut = STFT(window, n_fft, hop), STFT(window, n_fft, hop, drop_last=True)
    for length in range(1, n_fft + 3 * hop):
        x = noise(1, 1, length)
        wanted = whole(x)[..., :-1]
        torch.testing.assert_close(stream(cut, x, [1]), wanted, rtol=0, atol=1e-10)


def test_batch_is_independent_to_float32_rounding() -> None:
    layer = STFT(hann(400), 400, 160).float()
    x = noise(3, 1, 1234).float()
    alone = torch.cat([layer(lane[None]) for lane in x])
    torch.testing.assert_close(layer(x), alone, rtol=1e-5, atol=1e-5)


def test_state_does_not_alias_the_input() -> None:
    layer = STFT(hann(16), 16, 4, centred=False)
    x = noise(1, 1, layer.lead)
    _, state = layer.step(x, None)
    assert isinstance(state, Tensor)
    before = state.clone()
    x.zero_()
    assert torch.equal(state, before)


def test_state_keeps_its_shape() -> None:
    layer = STFT(hann(16), 16, 4)
    _, state = layer.step(noise(2, 1, layer.lead), None)
    assert isinstance(state, Tensor)
    shape = state.shape
    assert shape == (2, 1, layer.lead + layer.before + 1 - layer.lead_out * layer.hop)
    for hops in (1, 5, 2):
        _, state = layer.step(noise(2, 1, 4 * hops), state)
        assert isinstance(state, Tensor) and state.shape == shape


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_reflect_is_numpys(length: int) -> None:
    x = noise(2, length)
    wanted = np.pad(x.numpy(), ((0, 0), (11, 13)), mode="reflect")
    assert np.array_equal(reflect(x, 11, 13).numpy(), wanted)


@pytest.mark.parametrize("centred", [True, False])
def test_an_exported_step_has_the_same_spectrum(centred: bool) -> None:
    """By a product with a matrix."""
    window = torch.hann_window(90, dtype=torch.float64)
    layer = STFT(window, 123, 35, centred=centred)
    x = torch.randn(2, 1, 1000, dtype=torch.float64)
    expected = layer(x)
    layer.for_export()
    assert torch.view_as_real(layer(x) - expected).abs().max() < 1e-11
