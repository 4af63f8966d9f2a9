"""The published implementations, each behind the same few calls.

Constructing one that is not installed raises ImportError. Those that stream give an `encoder` and a
`decoder`: functions that take the next 80 ms and give what comes of it. `encode` and `decode` take
a whole clip, with 8 codebooks.
"""

from __future__ import annotations

import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bench import weights

# Takes the next chunk as a tensor, (1, 1, samples) or codes (1, codebooks, frames).
Step = Callable[[Tensor], Any]
BANDWIDTH_KBPS = 6.0


class Moshi:
    """Kyutai's Python package. Its state lives on the module: a model of its own per stream."""

    name = "moshi"

    def __init__(self, checkpoint: Path, device: str = "cpu") -> None:
        with quiet():
            from moshi.models import loaders
        self._checkpoint, self._loaders, self._device = checkpoint, loaders, device
        self._offline: Any = None

    def encoder(self, codebooks: int, batch: int = 1) -> Step:
        return self._stream(codebooks, batch).encode  # type: ignore[no-any-return]

    def decoder(self, codebooks: int) -> Step:
        return self._stream(codebooks).decode  # type: ignore[no-any-return]

    def encode(self, audio: Tensor) -> Tensor:
        if self._offline is None:
            self._offline = self._load(8)
        codes: Tensor = self._offline.encode(audio)
        return codes

    def _stream(self, codebooks: int, batch: int = 1) -> Any:
        model = self._load(codebooks)
        model.streaming_forever(batch)
        return model

    def _load(self, codebooks: int) -> Any:
        with quiet():
            return self._loaders.get_mimi(
                self._checkpoint, device=self._device, num_codebooks=codebooks
            )


class RustyMimi:
    """Kyutai's Rust implementation, by its Python binding; RAYON_NUM_THREADS sets its threads."""

    name = "rustymimi"

    def __init__(self, checkpoint: Path) -> None:
        import rustymimi

        self._checkpoint, self._rustymimi = checkpoint, rustymimi

    def encoder(self, codebooks: int) -> Step:
        tokenizer = self._rustymimi.Tokenizer(str(self._checkpoint), num_codebooks=codebooks)
        return lambda chunk: tokenizer.encode_step(chunk.numpy())

    def decoder(self, codebooks: int) -> Step:
        tokenizer = self._rustymimi.Tokenizer(str(self._checkpoint), num_codebooks=codebooks)
        return lambda codes: tokenizer.decode_step(codes.numpy().astype("uint32"))


class TransformersMimi:
    """The transformers library. Encoding streams; in decoding, the convolutions keep no state."""

    name = "transformers"

    def __init__(self, checkpoint: Path) -> None:
        with quiet():
            from transformers import MimiModel

            folder = weights.transformers_folder(checkpoint, weights.MIMI_CONFIG)
            self._model = MimiModel.from_pretrained(folder).train(False)

    def encoder(self, codebooks: int) -> Step:
        # transformers 5.24 gave the cache another name.
        renamed = "encoder_cache" in inspect.signature(self._model.encode).parameters
        past = "encoder_cache" if renamed else "encoder_past_key_values"
        carried: dict[str, Any] = {past: None, "padding_cache": None}

        def step(chunk: Tensor) -> Tensor:
            out = self._model.encode(chunk, num_quantizers=codebooks, use_streaming=True, **carried)
            carried.update({name: getattr(out, name) for name in carried})
            codes: Tensor = out.audio_codes
            return codes

        return step

    def encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self._model.encode(audio, num_quantizers=8).audio_codes
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self._model.decode(codes).audio_values
        return audio


class Encodec:
    """facebookresearch/encodec: whole clips only."""

    name = "encodec"

    def __init__(self, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        with quiet(), _torchaudio():
            from encodec import EncodecModel

            self._model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
        self._model.load_state_dict(load_file(checkpoint))
        self._model.set_target_bandwidth(BANDWIDTH_KBPS)

    def encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self._model.encode(audio)[0][0]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self._model.decode([(codes, None)])
        return audio


class TransformersEncodec:
    """The transformers library: whole clips only."""

    name = "transformers"

    def __init__(self, checkpoint: Path) -> None:
        with quiet():
            from transformers import EncodecModel

            folder = weights.transformers_folder(checkpoint, weights.ENCODEC_CONFIG)
            self._model = EncodecModel.from_pretrained(folder).train(False)

    def encode(self, audio: Tensor) -> Tensor:
        codes: Tensor = self._model.encode(audio, bandwidth=BANDWIDTH_KBPS).audio_codes[0]
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self._model.decode(codes[None], [None]).audio_values
        return audio


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that peers give about themselves while they are imported and loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _torchaudio() -> Iterator[None]:
    """encodec imports torchaudio, for files only. The stand-in goes again: others look for it."""
    missing = "torchaudio" not in sys.modules
    if missing:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        yield
    finally:
        if missing:
            del sys.modules["torchaudio"]


def start(peer: Callable[[Path], Any], checkpoint: Path) -> Any | str:
    """The peer, or the reason why it cannot run."""
    try:
        return peer(checkpoint)
    except ImportError as error:
        return f"not installed ({error})"
