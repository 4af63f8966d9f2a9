"""What the tests of `bench.quality` and its parts share; of its packages, any may be missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bench import signals
from bench.quality.conditions import Subject
from bench.quality.measures import RATE, Audio


def skip_without(*modules: str) -> None:
    for module in modules:
        reason = f"no {module}: the extra `quality` needs a C compiler with Python's headers"
        pytest.importorskip(module, reason=reason)


@pytest.fixture(scope="session")
def pesq_and_stoi() -> None:
    skip_without("pesq", "pystoi")


@pytest.fixture(scope="session")
def visqol() -> None:
    skip_without("visqol", "ai_edge_litert")


@pytest.fixture(scope="session")
def jiwer() -> None:
    skip_without("jiwer")


@pytest.fixture(scope="session")
def speech() -> Audio:
    return signals.speech(RATE, 2 * RATE)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings, 22.05 kHz, in two formats, one in a folder of its own; and a text."""
    folder = tmp_path_factory.mktemp("speech")
    (folder / "speaker").mkdir()
    shutil.copy(signals.CLIP, folder / "speaker" / "b.flac")
    signals.write_wav(folder / "a.wav", 1.2)
    (folder / "a.txt").write_text("what is said")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mimi of 24 kHz, 6 codebooks of 64 entries, 1,000 frames a second."""
    from tests.support import zoo  # it skips where there is no transformers

    folder = tmp_path_factory.mktemp("mimi")
    zoo.save_mimi(folder)
    return folder


@pytest.fixture
def subject(model: Path) -> Subject:
    return Subject(str(model))


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper that knows 40 words, with random weights, saved as float16."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("whisper")
    words = [f"w{index}" for index in range(40)]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|0.00|>"]
    vocabulary = {word: index for index, word in enumerate([*words, *special])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = ("encoder_layers", "decoder_layers", "encoder_attention_heads")
    config = transformers.WhisperConfig(
        **dict.fromkeys((*sizes, "decoder_attention_heads"), 1),
        d_model=8,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        vocab_size=len(vocabulary),
        eos_token_id=40,
        bos_token_id=40,
        pad_token_id=40,
        decoder_start_token_id=41,
        suppress_tokens=[1, 2],
        begin_suppress_tokens=[3, 40],
    )
    torch.manual_seed(0)
    network = transformers.WhisperForConditionalGeneration(config).half()
    # Its own generation settings speak of tokens that this vocabulary lacks.
    network.generation_config = transformers.GenerationConfig()
    network.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder
