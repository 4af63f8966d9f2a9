"""What models promise of their steps, written down: no change of a layer changes it unnoticed."""

from __future__ import annotations

import pytest

from streamenc.registry import LISTED, published_spec
from streamenc.spec import StreamSpec
from tests.support import zoo

# lead, hop, lead_out, hop_out, delay, limit
Promise = tuple[int, int, int, int, int, int]

# Of the encoders of the listed models.
PUBLISHED: dict[str, Promise] = {
    "nano": (640, 320, 1, 1, 320, 0),
    "mel": (301, 240, 1, 1, 61, 0),
    "mel:whisper": (201, 160, 1, 1, 41, 0),
    "mel:whisper-128": (201, 160, 1, 1, 41, 0),
    "kyutai/mimi": (1920, 1920, 1, 1, 0, 0),
    "facebook/encodec_24khz": (2240, 320, 7, 1, 1920, 0),
    "facebook/encodec_48khz": (48000, 47520, 150, 150, 480, 0),
    "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8": (1, 4, 1, 1, 0, 125),
    "nvidia/Cosmos-0.1-Tokenizer-CV8x8x8": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-CV8x16x16": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8": (1, 4, 1, 1, 0, 125),
    "nvidia/Cosmos-0.1-Tokenizer-DV8x8x8": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-DV8x16x16": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-CI8x8": (1, 1, 1, 1, 0, 0),
    "nvidia/Cosmos-0.1-Tokenizer-CI16x16": (1, 1, 1, 1, 0, 0),
    "nvidia/Cosmos-0.1-Tokenizer-DI8x8": (1, 1, 1, 1, 0, 0),
    "nvidia/Cosmos-0.1-Tokenizer-DI16x16": (1, 1, 1, 1, 0, 0),
    "openai/whisper-tiny": (32201, 16000, 50, 50, 16201, 0),
    "openai/whisper-large-v3": (32201, 16000, 50, 50, 16201, 0),
    "facebook/hubert-base-ls960": (5200, 5120, 16, 16, 80, 0),
    "facebook/hubert-large-ll60k": (5200, 5120, 16, 16, 80, 0),
    "facebook/wav2vec2-base": (5200, 5120, 16, 16, 80, 0),
    "facebook/wav2vec2-large-lv60": (5200, 5120, 16, 16, 80, 0),
    "google/vit-base-patch16-224": (1, 1, 1, 1, 0, 0),
    "facebook/dinov2-small": (1, 1, 1, 1, 0, 0),
    "facebook/dinov2-base": (1, 1, 1, 1, 0, 0),
    "microsoft/resnet-50": (1, 1, 1, 1, 0, 0),
    "stabilityai/sd-vae-ft-mse": (1, 1, 1, 1, 0, 0),
    "madebyollin/taesd": (1, 1, 1, 1, 0, 0),
    "amused/amused-256/vqvae": (1, 1, 1, 1, 0, 0),
}
# Of the small models of the zoo, both sides.
ZOO: dict[tuple[str, str], Promise] = {
    ("nano", "encoder"): (32, 16, 1, 1, 16, 0),
    ("nano", "decoder"): (1, 1, 16, 16, 0, 0),
    ("mimi", "encoder"): (24, 24, 1, 1, 0, 0),
    ("mimi", "decoder"): (1, 1, 24, 24, 0, 0),
    ("mimi-transformers-tail", "encoder"): (24, 24, 1, 1, 0, 0),
    ("mimi-transformers-tail", "decoder"): (1, 1, 24, 24, 0, 0),
    ("encodec", "encoder"): (56, 8, 7, 1, 48, 0),
    ("encodec", "decoder"): (7, 1, 56, 8, 6, 0),
    ("encodec-low-latency", "encoder"): (8, 8, 1, 1, 0, 0),
    ("encodec-low-latency", "decoder"): (1, 1, 8, 8, 0, 0),
    ("encodec-48k", "encoder"): (1440, 1425, 180, 180, 15, 0),
    ("encodec-48k", "decoder"): (180, 180, 1425, 1425, 0, 0),
    ("cosmos", "encoder"): (1, 8, 1, 1, 0, 1353),
    ("cosmos", "decoder"): (1, 1, 1, 8, 0, 170),
    ("cosmos-window", "encoder"): (1, 8, 1, 1, 0, 0),
    ("cosmos-window", "decoder"): (1, 1, 1, 8, 0, 0),
    ("cosmos-reference", "encoder"): (9, 9, 3, 3, 0, 0),
    ("cosmos-reference", "decoder"): (3, 3, 9, 9, 0, 0),
    ("cosmos-codes", "encoder"): (1, 4, 1, 1, 0, 0),
    ("cosmos-codes", "decoder"): (1, 1, 1, 4, 0, 0),
    ("cosmos-images", "encoder"): (1, 1, 1, 1, 0, 0),
    ("cosmos-images", "decoder"): (1, 1, 1, 1, 0, 0),
    ("whisper-chunked", "encoder"): (5001, 3200, 10, 10, 1801, 0),
    ("whisper-layers", "encoder"): (1161, 960, 3, 3, 201, 0),
    ("whisper-window", "encoder"): (9600, 3200, 10, 10, 6400, 0),
    ("whisper-whole-windows", "encoder"): (3200, 3200, 40, 40, 0, 0),
    ("mel", "encoder"): (301, 240, 1, 1, 61, 0),
    ("mel-whisper", "encoder"): (201, 160, 1, 1, 41, 0),
    ("mel-uncentred", "encoder"): (1024, 240, 1, 1, 784, 0),
    ("mel-magnitude", "encoder"): (62, 35, 1, 1, 27, 0),
    ("vit", "encoder"): (1, 1, 1, 1, 0, 0),
    ("vit-patches", "encoder"): (1, 1, 1, 1, 0, 0),
    ("dinov2", "encoder"): (1, 1, 1, 1, 0, 0),
    ("dinov2-registers", "encoder"): (1, 1, 1, 1, 0, 0),
    ("resnet", "encoder"): (1, 1, 1, 1, 0, 0),
    ("resnet-grid", "encoder"): (1, 1, 1, 1, 0, 0),
    ("vae", "encoder"): (1, 1, 1, 1, 0, 0),
    ("vae", "decoder"): (1, 1, 1, 1, 0, 0),
    ("vqgan", "encoder"): (1, 1, 1, 1, 0, 0),
    ("vqgan", "decoder"): (1, 1, 1, 1, 0, 0),
    ("taesd", "encoder"): (1, 1, 1, 1, 0, 0),
    ("taesd", "decoder"): (1, 1, 1, 1, 0, 0),
    ("wav2vec2", "encoder"): (90, 80, 4, 4, 10, 0),
    ("wav2vec2-stable", "encoder"): (330, 80, 4, 4, 250, 0),
    ("wav2vec2-sliding", "encoder"): (410, 80, 16, 4, 330, 0),
    ("hubert-frozen-mean", "encoder"): (90, 80, 4, 4, 10, 0),
    ("hubert-units", "encoder"): (170, 80, 4, 4, 90, 0),
}

# Input items that one output item depends on; of the others all the past, or one image.
FIELDS = {
    "nano": 7360,
    "mel": 600,
    "mel:whisper": 400,
    "mel:whisper-128": 400,
    "kyutai/mimi": 1919480,
    "facebook/encodec_48khz": 48000,
    "openai/whisper-tiny": 1152240,
    "openai/whisper-large-v3": 5632240,
}


def promise(spec: StreamSpec) -> Promise:
    return (spec.lead, spec.hop, spec.lead_out, spec.hop_out, spec.delay, spec.limit)


def test_every_model_is_written_down() -> None:
    assert PUBLISHED.keys() == LISTED.keys()
    assert list(ZOO) == zoo.CASES


@pytest.mark.parametrize("name", LISTED)
def test_published_promises(name: str) -> None:
    assert promise(published_spec(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", LISTED)
def test_published_receptive_fields(name: str) -> None:
    spec = published_spec(name)
    alone = spec.input.kind == "video" and spec.hop == 1
    assert spec.receptive_field == FIELDS.get(name, 1 if alone else None)


@pytest.mark.parametrize("case", zoo.CASES, ids="-".join)
def test_promises_of_small_models(case: tuple[str, str]) -> None:
    assert promise(zoo.model(*case).spec) == ZOO[case]
