"""Residual quantisation: projections, levels, and codebooks that stay exact."""

from __future__ import annotations

import pytest
import torch

from streamenc.layers import quantize
from streamenc.layers.quantize import (
    PACKED_ROWS,
    FactorisedVQ,
    ResidualVQ,
    encode,
    search_in_blocks,
)
from streamenc_kernels import rvq_search
from tests.support.compare import assert_close, poisoned_memory
from tests.support.packing import either_packing, packs

pytestmark = pytest.mark.usefixtures("poisoned_memory", "either_packing")
__all__ = ["either_packing", "packs", "poisoned_memory"]


def quantizer(channels_in: int | None = None, dtype: torch.dtype = torch.float64) -> ResidualVQ:
    made = ResidualVQ(5, 123, 7, channels_in=channels_in).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    made.to(dtype).prepare()
    return made


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("dtype", "tie"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("frames", [PACKED_ROWS // 3, 37])
@pytest.mark.parametrize("channels_in", [None, 11])
def test_each_level_takes_the_nearest_entry_to_what_is_left(channels_in, frames, dtype, tie):
    books, x = quantizer(channels_in, dtype), noise(3, channels_in or 7, frames, dtype=dtype)
    codes = books.encode(x)
    assert codes.shape == (3, 5, frames) and codes.dtype == torch.int64
    residual = x if channels_in is None else torch.einsum("dc,bct->bdt", books.project_in, x)
    for level in range(5):
        book = books.codebooks[level]
        distances = torch.cdist(residual.transpose(1, 2), book.expand(3, -1, -1))
        taken = distances.gather(-1, codes[:, level, :, None])[..., 0]
        assert (taken <= distances.amin(dim=-1) + tie).all()
        residual = residual - book[codes[:, level]].transpose(1, 2)


@pytest.mark.parametrize("rows", [1, 8, 61])
def test_a_search_in_blocks_finds_what_the_definition_finds(rows, monkeypatch):
    monkeypatch.setattr(quantize, "BLOCK_DISTANCES", 8 * 123 + 5)
    books, x = quantizer(), noise(rows, 7)
    x[0] = books.codebooks[0, 17]
    for levels in (1, 5):
        wanted, _ = rvq_search([books.inputs(x, levels)], implementation="torch")
        assert torch.equal(search_in_blocks(books.inputs(x, levels)), wanted)


def test_of_entries_that_are_equally_near_the_first_is_taken():
    books = quantizer()
    books.codebooks[:, 90] = books.codebooks[:, 31]
    books.prepare()
    x = books.codebooks[0, 90].expand(3 * PACKED_ROWS, -1)
    assert (search_in_blocks(books.inputs(x, 1)) == 31).all()


def test_many_frames_can_have_gradients_and_be_exported():
    books, x = quantizer(11), noise(2, 11, 3 * PACKED_ROWS)
    codes = books.encode(x)
    assert torch.equal(books.encode(x.requires_grad_()), codes)
    exported = torch.export.export(Encoding(books), (x.detach(),))
    assert torch.equal(exported.module()(x), codes)


def test_fewer_levels_are_the_first_ones():
    books, x = quantizer(), noise(2, 7, 5)
    codes = books.encode(x)
    for levels in range(1, 6):
        assert torch.equal(books.encode(x, levels), codes[:, :levels])


def test_decode_sums_the_entries():
    books = quantizer()
    codes = torch.randint(123, (2, 5, 9), generator=torch.Generator().manual_seed(2))
    for levels in (1, 3, 5):
        expected = sum(books.codebooks[k][codes[:, k]] for k in range(levels))
        assert_close(books.decode(codes[:, :levels]), expected.transpose(1, 2), 1e-12)


def test_decoding_more_frames_at_once_changes_no_bit():
    books = quantizer(dtype=torch.float32)
    codes = torch.randint(123, (2, 5, 123), generator=torch.Generator().manual_seed(3))
    one_by_one = [books.decode(codes[..., t : t + 1]) for t in range(123)]
    assert torch.equal(torch.cat(one_by_one, dim=-1), books.decode(codes))


def test_no_frames():
    books = quantizer(11)
    assert books.encode(noise(2, 11, 0)).shape == (2, 5, 0)
    assert books.decode(torch.zeros(2, 5, 0, dtype=torch.int64)).shape == (2, 7, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_never_less_than_float32(dtype):
    """A model in half precision keeps the codebooks as they were, to the bit."""
    exact = quantizer(11, torch.float32)
    books = torch.nn.Sequential(quantizer(11, torch.float32)).to(dtype)[0]
    books.prepare()
    for ours, theirs in zip(books.state_dict().values(), exact.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    x = noise(1, 11, 50, dtype=torch.float32)
    assert torch.equal(books.encode(x.to(dtype)), exact.encode(x.to(dtype).float()))
    assert quantizer().to(torch.float64).codebooks.dtype == torch.float64


def test_several_are_searched_at_once_each_as_if_alone():
    semantic, acoustic, x = quantizer(11), quantizer(11), noise(2, 11, 9)
    acoustic.codebooks.mul_(1.5)
    acoustic.prepare()
    for levels in ([1, 5], [5, 2], [2, 0], [0, 3]):
        alone = [q.encode(x, n) for q, n in zip((semantic, acoustic), levels, strict=True)]
        assert torch.equal(encode([semantic, acoustic], x, levels), torch.cat(alone, dim=1))
    assert encode([semantic, acoustic], x, [0, 0]).shape == (2, 0, 9)


class Encoding(torch.nn.Module):
    def __init__(self, books: ResidualVQ) -> None:
        super().__init__()
        self.books = books

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.books.encode(x)


def test_encoding_can_be_exported():
    books, x = quantizer(11), noise(2, 11, 9)
    exported = torch.export.export(Encoding(books), (x,))
    assert torch.equal(exported.module()(x), books.encode(x))


def factorised(strides: list[int] | None = None, levels: int = 3) -> FactorisedVQ:
    made = FactorisedVQ(levels, 29, 4, 11, strides=strides).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    made.double().prepare()
    return made


@pytest.mark.parametrize("strides", [None, [4, 2, 1]])
def test_each_level_takes_the_nearest_direction_to_what_is_left(strides):
    books, x = factorised(strides), noise(2, 11, 12)
    codes = books.encode(x)
    assert codes.shape == (2, 3, 12) and codes.dtype == torch.int64
    residual = x
    for level, stride in enumerate(books.strides):
        seen = residual.unflatten(-1, (-1, stride)).mean(dim=-1)
        inside = torch.einsum("dc,bct->btd", books.into[level], seen) + books.into_bias[level]
        book = books.codebooks[level]
        cosine = torch.cosine_similarity(inside[:, :, None], book, dim=-1)
        expected = cosine.argmax(dim=-1).repeat_interleave(stride, dim=-1)
        assert torch.equal(codes[:, level], expected)
        up = book[expected] @ books.out_of[level].t() + books.out_of_bias[level]
        residual = residual - up.transpose(1, 2)
    for levels in (0, 1, 2):
        assert torch.equal(books.encode(x, levels), codes[:, :levels])


def test_joined_projections_sum_the_levels_that_are_there():
    books = factorised()
    codes = torch.randint(29, (2, 3, 9), generator=torch.Generator().manual_seed(2))
    for levels in (1, 3):
        vectors = books.vectors(codes[:, :levels])
        assert vectors.shape == (2, 15, 9)
        joined = torch.einsum("cv,bvt->bct", books.joined_weight(), vectors)
        expected = sum(books.entries(codes[:, level], level) for level in range(levels))
        assert_close(joined, expected.transpose(1, 2), 1e-12)
