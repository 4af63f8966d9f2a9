"""The wavelet transform of video: step by step, there and back, and its low band."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamenc.layers.video.wavelet import Patch, Unpatch
from tests.support.compare import assert_close, poisoned_memory
from tests.support.videolayers import assert_steps_equal_the_whole, frames, made

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]


@pytest.mark.parametrize("steps", [[4] * 30, [12, 4, 28, 76]])
def test_steps_equal_the_whole(steps):
    assert_steps_equal_the_whole(made(lambda: Patch(4)), [1, *steps])


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_unpatch_is_the_inverse_of_patch(images, size):
    count = 5 if images else 1 + 3 * size
    x = frames(count)[:, :, :3]
    there = Patch(size, images=images).double()
    back = Unpatch(size, images=images).double()
    y = there(x)
    assert y.shape[2] == 3 * size ** (2 if images else 3)
    assert_close(back(y), x, 1e-6)  # the wavelet is rounded to float32
    _, state = back.step(y[:, :1], None)
    assert_close(back.step(y[:, 1:], state)[0], x[:, 1:], 1e-6)


def test_the_low_band_is_the_mean():
    x = frames(9)[:, :, :3]
    y = Patch(4).double()(x)
    blocks = torch.cat((x[:, :1].expand(-1, 3, -1, -1, -1), x), dim=1)
    means = F.avg_pool3d(blocks.transpose(1, 2), 4).transpose(1, 2)
    assert_close(y[:, :, :3], means, 1e-6)
