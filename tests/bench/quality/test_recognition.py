"""Whisper against its own definition; words that differ."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bench.quality import recognition
from bench.quality.measures import RATE, Audio
from streamenc.errors import UsageError

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don't -- I said, DON’T!", "dont i said dont"),
        ("well-known; Ünïcode 42.", "well known ünïcode 42"),
        (" ... ", ""),
    ],
)
def test_texts_are_normalised(text: str, wanted: str) -> None:
    assert recognition.normalised(text) == wanted


@pytest.mark.usefixtures("jiwer")
@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("one two three", "One, two; three!", 0),
        ("one two three", "one three", 1),
        ("one two three", "won two or three", 2),
        ("one two three", "", 3),
        ("", "you", 1),
    ],
)
def test_word_errors(reference: str, hypothesis: str, errors: int) -> None:
    assert recognition.word_errors(reference, hypothesis) == (errors, len(reference.split()))


def test_whisper_is_greedy(whisper: Path, speech: Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the likeliest token after the whole transcript so far, without any cache."""
    monkeypatch.setattr(recognition, "WHISPER_TOKENS", 5)
    listener = recognition.Whisper(whisper)
    network = transformers.WhisperForConditionalGeneration.from_pretrained(whisper).float().eval()
    features = transformers.WhisperFeatureExtractor()(
        speech, sampling_rate=RATE, return_tensors="pt"
    ).input_features
    tokens = [41, 42]
    for index in range(5):
        with torch.inference_mode():
            ids = torch.tensor([tokens])
            logits = network(features, decoder_input_ids=ids, use_cache=False).logits[0, -1]
            logits[[1, 2, 41, 42, 43, *([3, 40] if index == 0 else [])]] = -math.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == 40:
            break
    said = [f"w{token}" for token in tokens[2:] if token != 40]
    assert said
    assert listener(speech) == " ".join(said)


def test_a_folder_without_whisper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json .* openai/whisper-tiny\.en"):
        recognition.Whisper(tmp_path)
