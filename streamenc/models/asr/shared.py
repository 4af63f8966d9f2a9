"""What the encoders of recognisers share: checks of their configs, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.checkpoints.configs import MAX_LAYERS, MAX_SIZE
from streamenc.errors import CheckpointError
from streamenc.layers.streamed import Chain, Span, reach_through
from streamenc.models.mel import MelEncoder
from streamenc.models.model import Model
from streamenc.spec import Steps


def nested(checkpoint: Checkpoint, *keys: str) -> dict[str, Any]:
    """The part of the config that is the encoder's: below `keys` of the whole model's, or all of
    an encoder's own. Raises CheckpointError where there is no config."""
    config = checkpoint.config
    if not config:
        raise CheckpointError(
            f"{checkpoint.name}: no config.json beside the weights, which says how many heads the "
            "model has; load the folder that holds both"
        )
    for key in keys:
        inner = config.get(key, config)
        if not isinstance(inner, dict):
            raise CheckpointError(
                f"{checkpoint.name}: its config has {key}={inner!r:.80}; wanted a JSON object"
            )
        config = inner
    return config


def checked_sizes(
    checkpoint: Checkpoint, config: Mapping[str, Any], **defaults: int
) -> tuple[int, ...]:
    """The numbers under these keys, in this order; where one is missing, or null, its default.

    Raises CheckpointError for what is no whole number from 1 to 2^16, or 256 of layers.
    """
    sizes = []
    for key, default in defaults.items():
        value, most = config.get(key), MAX_LAYERS if key.endswith("_layers") else MAX_SIZE
        if value is None:
            value = default
        if type(value) is not int or not 1 <= value <= most:
            raise CheckpointError(
                f"{checkpoint.name}: its config has {key}={value!r:.80}; wanted a whole number "
                f"from 1 to {most}"
            )
        sizes.append(value)
    return tuple(sizes)


def checked_number(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    key: str,
    default: float,
    low: float,
    high: float,
) -> float:
    """The number under this key, within [low, high]; where it is missing, its default.

    Raises CheckpointError.
    """
    value = config.get(key, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise CheckpointError(
            f"{checkpoint.name}: its config has {key}={value!r:.80}; wanted a number from {low:g} "
            f"to {high:g}"
        )
    return float(value)


def refuse_others(
    checkpoint: Checkpoint, config: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """Raises CheckpointError where the config asks for another network than the one `known`."""
    for key, value in known.items():
        stated = config.get(key)
        if stated is not None and stated != value:
            raise CheckpointError(
                f"{checkpoint.name}: its config has {key}={stated!r:.80}; only {value!r} is known"
            )


def stacked(names: list[str], checkpoint: Checkpoint) -> Tensor:
    """Several tensors, one below the other."""
    return torch.cat([checkpoint.get(name) for name in names])


class OverChannels(nn.Module):
    """A module over the channels of each position, (batch, channels, time)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.transpose(1, 2))
        return y.transpose(1, 2)


class LogMelModel(Model):
    """A model of sound that hears it as log-mel frames, of which `chain` makes what comes out."""

    mel: MelEncoder
    chain: Chain

    @property
    def steps(self) -> Steps:
        return self.mel.steps.then(self.chain.steps)

    def reach(self, first: int, last: int) -> Span:
        return reach_through([self.mel, self.chain], first, last)

    @property
    def like(self) -> Tensor:
        """The log-mel frames stay in float32 at least, so sound comes in as that."""
        return self.mel.like

    def prepare(self) -> None:
        super().prepare()
        self.mel.prepare()
