"""DAC's encoder and decoder against the published ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from streamenc.checkpoints.checkpoint import fill, open_checkpoint
from streamenc.models.dac.blocks import DacNet, dac_decoder, dac_encoder, dac_origins
from tests.layers.conv.test_centred import stepped
from tests.support import dac_references as references
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

NET = DacNet(
    latent=12,
    encoder_width=3,
    encoder_strides=(2, 5),
    decoder_width=8,
    decoder_strides=(5, 2),
)


@pytest.mark.reference
@pytest.mark.parametrize("layout", ["transformers", "original"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_published(tmp_path, side, layout):
    if layout == "transformers":
        published = references.dac()
        published.save_pretrained(tmp_path)
    else:
        published = references.descript()
        torch.save(published.state_dict(), tmp_path / "weights.pth")
    with torch.device("meta"):
        chain = dac_encoder(NET) if side == "encoder" else dac_decoder(NET)
    weights = tmp_path if layout == "transformers" else tmp_path / "weights.pth"
    fill(chain, dac_origins(chain, side, layout), open_checkpoint(str(weights)))
    chain, published = chain.double(), published.double()
    channels = 1 if side == "encoder" else 12
    for length in (10, 30, 410, 1230) if side == "encoder" else (1, 2, 23, 123):
        x = torch.randn(2, channels, length, generator=torch.Generator().manual_seed(1)).double()
        with torch.inference_mode():
            expected = getattr(published, side)(x)
            # Weight normalisation is folded in once, and what it comes to is kept in float32.
            rel = 1e-12 if layout == "transformers" else 1e-4
            assert_close(chain(x), expected, rel)
            assert_close(stepped(chain, x, [1] * 1000), expected, rel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 0}, "latent is 0"),
        ({"latent": 3.0}, "latent is 3.0"),
        ({"encoder_width": 1 << 17}, "encoder_width is 131072"),
        ({"encoder_strides": ()}, "wanted 1 to 16"),
        ({"encoder_strides": (2, -5)}, "wanted 1 to 16"),
        ({"encoder_strides": (2, 4)}, "the same product"),
        ({"decoder_width": 6}, "halved 2 times"),
        ({"encoder_width": 1 << 15}, "wanted at most 65536"),
    ],
)
def test_shapes_that_make_no_network_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NET, **change)
