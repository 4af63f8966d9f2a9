"""Published Whisper weights on real speech, where both are at hand.

STREAMENC_WHISPER is a folder as transformers has it (whisper-tiny.en), STREAMENC_SPEECH one of
utterances of up to 30 s.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import streamenc
from bench.quality.measures import RATE, Audio, read_clips
from bench.quality.recognition import Whisper, word_errors
from tests.support.compare import assert_close

WHISPER, SPEECH = (os.environ.get(f"STREAMENC_{name}", "") for name in ("WHISPER", "SPEECH"))
pytestmark = pytest.mark.skipif(
    not (WHISPER and SPEECH), reason="STREAMENC_WHISPER and STREAMENC_SPEECH name no folders"
)
CLIPS = 4


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return Whisper(Path(WHISPER))


@pytest.fixture(scope="module")
def sounds() -> list[Audio]:
    return [clip.at(RATE) for clip in read_clips(Path(SPEECH), 12.0, CLIPS)]


def test_the_last_window_is_what_transformers_gives(whisper, sounds):
    """States, and so the text: the word error rate of `window` is that of the published encoder."""
    codec = streamenc.load(WHISPER, mode="window", hop_ms=3000, emit="window")
    for sound in sounds:
        ours = codec.encode(sound)
        assert isinstance(ours, Tensor)
        theirs = whisper.hidden(whisper.features(sound))[-1]
        assert_close(ours[..., -1500:], theirs, 1e-3)
        assert whisper.heard(ours[..., -1500:]) == whisper.heard(theirs) == whisper(sound)


@pytest.mark.parametrize(
    ("chunk_ms", "ahead_ms", "cosine", "wer"), [(1000, 0, 0.9, 2.0), (2000, 2000, 0.97, 0.15)]
)
def test_chunks_are_near(whisper, sounds, chunk_ms, ahead_ms, cosine, wer):
    """States; and words, as far as the decoder does not repeat itself at a cut."""
    codec = streamenc.load(WHISPER, chunk_ms=chunk_ms, ahead_ms=ahead_ms)
    silence = codec.encode(torch.zeros(30 * RATE))
    errors = words = 0
    for sound in sounds:
        ours, theirs = codec.encode(sound), whisper.hidden(whisper.features(sound))[-1]
        count = ours.shape[-1]
        assert torch.cosine_similarity(ours, theirs[..., :count], dim=1).mean() > cosine
        heard = whisper.heard(torch.cat((ours, silence[..., count:]), dim=-1)[..., :1500])
        wrong, said = word_errors(whisper.heard(theirs), heard)
        errors, words = errors + wrong, words + said
    assert errors / words < wer
