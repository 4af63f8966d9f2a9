"""How good the codec is on speech that was held out of training."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch
from losses import SpectralLoss
from model import TrainableCodec

try:
    from pesq import NoUtterancesError, pesq
    from pystoi import stoi
except ImportError:  # the losses alone then tell how training goes
    pesq = stoi = None


@torch.no_grad()
def validate(model: TrainableCodec, clips: list[np.ndarray]) -> dict[str, float]:
    """Mean figures over `clips`, int16, with three eighths and three quarters of the codebooks.

    PESQ (wide band) and STOI where those packages are installed.
    """
    config = model.config
    device = next(model.parameters()).device
    loss = SpectralLoss(config.sample_rate).to(device)
    results: dict[str, list[float]] = {}
    for levels in (max(1, config.codebooks * 3 // 8), max(1, config.codebooks * 3 // 4)):
        for clip in clips:
            length = len(clip) // config.frame * config.frame
            original = clip[:length].astype(np.float32) / 32768
            x = torch.from_numpy(np.pad(original, (0, config.frame))).to(device)
            y = model(x[None, None], torch.tensor([levels], device=device))[0][0]
            losses = loss(y, x[None, :length])
            figures = {name: float(value) for name, value in losses.items()}
            if pesq is not None and config.sample_rate == 16_000:
                decoded = y[0].cpu().numpy()
                figures["stoi"] = float(stoi(original, decoded, 16_000))
                with suppress(NoUtterancesError):
                    figures["pesq"] = float(pesq(16_000, original, decoded, "wb"))
            for name, value in figures.items():
                results.setdefault(f"{name}_{levels}_books", []).append(value)
    return {name: float(np.mean(values)) for name, values in results.items()}
