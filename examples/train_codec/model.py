"""The codec while it is being trained: nano's own layers around codebooks that follow the data."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from quantizer import TrainableRVQ
from torch import Tensor, nn

import streamenc
from streamenc.layers.quantize import ResidualVQ
from streamenc.layers.streamed import Chain
from streamenc.models import nano


class TrainableCodec(nn.Module):
    """Encoder, codebooks and decoder.

    mixed  In training mode matrix products run in bfloat16: several times faster where the
           processor has them, and as much slower where it has not.
    """

    mixed = False

    def __init__(self, config: nano.NanoConfig) -> None:
        super().__init__()
        self.config = config
        # Codebooks are trained apart and join the model when it is saved.
        idle = ResidualVQ(1, 1, 1)
        self.encoder = nano.NanoEncoder(config, idle).chain
        self.decoder = nano.NanoDecoder(config, idle).chain
        self.rvq = TrainableRVQ(config.codebooks, config.entries, config.latent)
        _initialise(self)

    @classmethod
    def like(cls, name: str) -> TrainableCodec:
        """What `streamenc.load(name)` loads, to be trained further."""
        trained = streamenc.load(name, backend="torch")
        encoder, decoder = trained.encoder, trained.decoder
        if not isinstance(encoder, nano.NanoEncoder) or not isinstance(decoder, nano.NanoDecoder):
            raise SystemExit(f"{name} is no nano model; only such can be trained further here")
        model = cls(encoder.config)
        model.encoder.load_state_dict(encoder.chain.state_dict())
        model.decoder.load_state_dict(decoder.chain.state_dict())
        model.rvq.start_from(encoder.quantizer.codebooks)
        return model

    def encode(self, x: Tensor) -> Tensor:
        """(batch, 1, samples) -> latents (batch, latent, frames) for all frames but the last.

        samples is a multiple of the frame; the last frame is what the encoder looks ahead.
        """
        with self._mixed(x):
            z, _ = self.encoder.step(x, None)
        return z.float()

    def decode(self, z: Tensor) -> Tensor:
        """(batch, latent, frames) -> (batch, 1, samples)."""
        *body, head, synthesis = self.decoder.layers
        with self._mixed(z):
            h, _ = Chain(body).step(z, None)
        # In float32: in bfloat16 the logarithm of a magnitude would be a few per cent off.
        return Chain([head, synthesis]).step(h.float(), None)[0]

    def forward(self, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Audio and codebooks per item -> decoded audio, commitment loss, codes."""
        z, commitment, codes = self.rvq(self.encode(x), levels)
        return self.decode(z), commitment, codes

    def save(self, folder: Path) -> None:
        """As a folder that `streamenc.load` takes."""
        nano.save(folder, self.config, self.encoder, self.decoder, self.rvq.codebooks)

    def _mixed(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.training and self.mixed)


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 products are native on the device."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


class Average:
    """A moving average of the weights, which is what gets saved: better than any single step's."""

    def __init__(self, model: TrainableCodec, decay: float = 0.999) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def follow(self, model: TrainableCodec) -> None:
        self.steps += 1
        keep = min(self.decay, (self.steps + 1) / (self.steps + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - keep)

    def settle(self, model: TrainableCodec) -> TrainableCodec:
        """The average with the codebooks of now, which are averages already."""
        self.model.rvq.load_state_dict(model.rvq.state_dict())
        return self.model


def _initialise(model: TrainableCodec) -> None:
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in [m.weight]}
    for name, p in model.named_parameters():
        if p.ndim == 1:
            nn.init.constant_(p, 1.0 if id(p) in norms else 0.0)
        else:
            # Residual branches start small.
            gain = 0.3 if name.endswith("down.weight") else 1.0
            nn.init.normal_(p, std=gain / math.sqrt(p[0].numel()))
    # Quiet at first: what is limited at full scale has no derivative.
    head = model.decoder.layers[-2]
    magnitudes = len(head.bias) // 3
    with torch.no_grad():
        head.weight[:magnitudes] *= 0.3
        head.bias[:magnitudes] = -7.0


def optimizers(model: TrainableCodec, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices, which learns in fewer steps; AdamW for convolutions, norms and biases."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
