"""VibeVoice's acoustic tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import references
from tests.support.zoo.row import Promise, Row, other

SMALL = {
    "hidden_size": 6,
    "num_filters": 4,
    "downsampling_ratios": [2, 3],
    "depths": [1, 2, 1],
    "kernel_size": 5,
    "ffn_expansion": 2,
}


def vibevoice(seed: int = 0) -> Any:
    """transformers' model, small, with random weights."""
    config = references.transformers.VibeVoiceAcousticTokenizerConfig(**SMALL)
    model = references.transformers.VibeVoiceAcousticTokenizerModel(config).eval()
    references.randomise(model, seed)
    return model


def save(folder: Path) -> None:
    vibevoice().save_pretrained(folder)


ROWS = [
    Row(
        "vibevoice",
        "vibevoice_acoustic_tokenizer",
        save,
        [(6, 6, 1, 1, 0, 0), (1, 1, 6, 6, 0, 0)],
    ),
]
PUBLISHED: dict[str, Promise] = {"bezzam/VibeVoice-AcousticTokenizer": (3200, 3200, 1, 1, 0, 0)}
FIELDS: dict[str, int | None] = {"bezzam/VibeVoice-AcousticTokenizer": 188762}
CONFIGURED = [("vibevoice", other("rms_norm_eps", 1e-6))]
