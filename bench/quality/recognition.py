"""What a recogniser understands: Whisper's transcripts, and the word errors between two."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.quality.measures import RATE, Audio, required
from streamenc.errors import UsageError

WHISPER_SECONDS = 30
WHISPER_TOKENS = 224  # at most, as its authors have it
WHISPER_ENGLISH_TOKENS = 51_864  # the vocabulary of its English models; others have more


def normalised(text: str) -> str:
    """Lower case, without punctuation: apostrophes vanish, the rest of it parts words."""
    return " ".join(re.findall(r"\w+", re.sub(r"['’]", "", text.lower())))


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Errors (substituted, deleted and inserted words), and words of the reference; normalised."""
    words = required("jiwer").process_words(normalised(reference), normalised(hypothesis))
    errors = words.substitutions + words.deletions + words.insertions
    return errors, words.hits + words.substitutions + words.deletions


class Whisper:
    """Whisper in the layout of transformers, in float32 on the CPU: greedy, English, no timestamps.

    Raises UsageError where `folder` is none, or a package is missing.
    """

    def __init__(self, folder: Path) -> None:
        transformers, tokenizers = required("transformers"), required("tokenizers")
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise UsageError(
                    f"no {name} in {str(folder)!r}; --whisper takes a folder as transformers "
                    "writes it, such as a copy of openai/whisper-tiny.en"
                )
        transformers.utils.logging.disable_progress_bar()
        model = transformers.WhisperForConditionalGeneration
        self._model = model.from_pretrained(folder, local_files_only=True).float().eval()
        # Whisper's own `generate` wants a generation_config.json, which not every copy has.
        self._generate = partial(transformers.GenerationMixin.generate, self._model)
        self._config = config = self._model.config
        self._features = transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._prompt = torch.tensor([[config.decoder_start_token_id, *self._tasks()]])
        # Behind the end stand languages, tasks and timestamps.
        never = range(config.eos_token_id + 1, config.vocab_size)
        self._never = [*(config.suppress_tokens or ()), *never]

    def __call__(self, audio: Audio) -> str:
        """What is said in (samples,) at 16 kHz, up to 30 s."""
        return self._text(input_features=self.features(audio))

    def features(self, audio: Audio) -> torch.Tensor:
        """The log-mel frames of (samples,), padded to 30 s: (1, bands, 3000)."""
        features = self._features(audio, sampling_rate=RATE, return_tensors="pt").input_features
        return torch.as_tensor(features)

    @torch.inference_mode()
    def hidden(self, features: torch.Tensor) -> list[torch.Tensor]:
        """What each layer of the encoder takes, and what comes behind the final norm: each
        (1, width, 1500)."""
        encoder = self._model.model.encoder
        states = encoder(features, output_hidden_states=True).hidden_states
        return [layer.transpose(1, 2) for layer in states]

    def heard(self, states: torch.Tensor) -> str:
        """What the decoder makes of an encoder's states, (1, width, states)."""
        outputs = required("transformers").modeling_outputs.BaseModelOutput(
            last_hidden_state=states.transpose(1, 2)
        )
        return self._text(encoder_outputs=outputs)

    @torch.inference_mode()
    def _text(self, **given: Any) -> str:
        tokens = self._generate(
            **given,
            decoder_input_ids=self._prompt,
            do_sample=False,
            num_beams=1,
            max_new_tokens=WHISPER_TOKENS,
            suppress_tokens=self._never,
            begin_suppress_tokens=self._config.begin_suppress_tokens,
        )
        return str(self._tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True)).strip()

    def _tasks(self) -> list[int]:
        """What the prompt says beyond the start; models of English alone take no language."""
        names = ["<|notimestamps|>"]
        if self._config.vocab_size > WHISPER_ENGLISH_TOKENS:
            names = ["<|en|>", "<|transcribe|>", *names]
        return [self._tokenizer.token_to_id(name) for name in names]
