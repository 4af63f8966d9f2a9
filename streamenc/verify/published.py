"""Published: an implementation that others published, with the weights of one checkpoint.

For each family that has one a function, `PEERS[family]`, imports it, loads it from the folder or
the Hub name that was verified, and gives it behind a few calls. It takes a `Subject`, and raises

    ImportError   Where its package is not installed.
    Absent        Where it does not read this layout, or cannot be called: with the reason.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from streamenc.codec import Codec

# family -> "module:function" in this folder.
PEERS = {
    "mimi": "of_codecs:mimi",
    "qwen3_tts_tokenizer_12hz": "of_codecs:qwen3tts",
    "vibevoice_acoustic_tokenizer": "of_codecs:vibevoice",
    "encodec": "of_codecs:encodec",
    "xcodec": "of_codecs:xcodec",
    "higgs_audio_v2_tokenizer": "of_codecs:xcodec",
    "dac": "of_descript:dac",
    "snac": "of_descript:snac",
    "cosmos": "of_video:cosmos",
    "wan": "of_video:wan",
    "ltx": "of_video:ltx",
    "whisper": "of_speech:whisper",
    "wav2vec2": "of_speech:wav2vec2",
    "hubert": "of_speech:wav2vec2",
    "wavlm": "of_speech:wav2vec2",
    "moonshine_streaming": "of_recognisers:moonshine",
    "voxtral_realtime": "of_recognisers:voxtral",
    "qwen3_asr": "of_recognisers:qwen",
    "qwen3_omni_moe": "of_recognisers:qwen",
    "nemotron_asr_streaming": "of_recognisers:nemotron",
    "beats": "of_speech:beats",
    "vit": "of_images:vit",
    "dinov2": "of_images:vit",
    "dinov2_with_registers": "of_images:vit",
    "dinov3_vit": "of_images:vit",
    "clip": "of_towers:clip",
    "clip_vision_model": "of_towers:clip",
    "siglip": "of_towers:clip",
    "siglip_vision_model": "of_towers:clip",
    "siglip2": "of_towers:clip",
    "siglip2_vision_model": "of_towers:clip",
    "video_llava": "of_towers:video_llava",
    "resnet": "of_images:resnet",
    "bert": "of_text:text",
    "roberta": "of_text:text",
    "xlm-roberta": "of_text:text",
    "t5": "of_text:text",
    "vqgan": "of_images:vqgan",
    "vae": "of_images:vae",
    "taesd": "of_images:taesd",
    "dcae": "of_images:dcae",
}


class Absent(Exception):
    """There is no published implementation to compare with here; the reason."""


@dataclass(frozen=True)
class Subject:
    """What is verified.

    Attributes:
        source: A folder or a Hub name, as the published implementation takes it.
        codec: Ours, of the same weights.
        options: Those that ours was loaded with.
    """

    source: str
    revision: str | None
    codec: Codec
    options: dict[str, Any]

    @property
    def like(self) -> Tensor:
        """A tensor of the device and dtype in which both compute."""
        side = self.codec.encoder if self.codec.has_encoder else self.codec.decoder
        return side.like

    def pretrained(self, kind: Any, **more: Any) -> Any:
        """`kind.from_pretrained` of it, in the same dtype and on the same device.

        kind  A class of transformers or diffusers.

        Raises Absent where it is no folder with a config.json, nor a Hub name.
        """
        path = Path(self.source).expanduser()
        if path.exists() and not (path / "config.json").is_file():
            raise Absent(f"{kind.__name__} reads folders with a config.json; {self.source} is none")
        if not path.exists():
            more["revision"] = self.revision
        # Both libraries have it at this place; others derive from their classes.
        bases = [base.__module__.partition(".")[0] for base in kind.__mro__]
        library = next(name for name in bases if name in ("transformers", "diffusers"))
        import_module(f"{library}.utils.logging").disable_progress_bar()
        logging.getLogger(library).setLevel(logging.ERROR)  # its import has set another one
        model = kind.from_pretrained(self.source, **more).eval()
        return model.to(self.like.device, self.like.dtype)


@dataclass(frozen=True)
class Published:
    """A published implementation, over whole clips.

    Attributes:
        package: Whose it is: "transformers".
        encode: What the encoder takes -> what `Codec.encode` gives of it: codes (batch, codebooks,
            frames) or features (batch, channels, frames), with a grid behind where there is one.
        latents: What the encoder takes -> what our encoder's `forward` gives, before it is
            quantised; None where that cannot be had.
        decode: Codes or latents -> what `Codec.decode` gives.
        apart: In what it is meant to differ, in words: then differences are told, not judged.
    """

    package: str
    encode: Callable[[Any], Tensor] | None = None
    latents: Callable[[Any], Tensor] | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    apart: str = ""

    @property
    def version(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""


def published(family: str, subject: Subject) -> Published:
    """The published implementation of a family. Raises Absent."""
    if family not in PEERS:
        raise Absent(f"streamenc knows no published implementation of {family}")
    module, _, function = PEERS[family].partition(":")
    try:
        with quiet(), torch.inference_mode():
            peer: Published = getattr(import_module(f"streamenc.verify.{module}"), function)(
                subject
            )
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise Absent(f"{package} is not installed: pip install {package}") from error
    except Absent:
        raise
    except Exception as error:  # whatever the code of others says of these weights
        raise Absent(f"it does not load: {type(error).__name__}: {error}") from error
    return peer


def argument_of(owner: Any, method: str, call: Callable[[], Any]) -> Tensor:
    """The first argument with which `call` calls a method: latents, on their way to a quantiser."""
    original, seen = getattr(owner, method), []

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(arguments[0])
        return original(*arguments, **named)

    setattr(owner, method, watched)
    try:
        call()
    finally:
        delattr(owner, method)
    latents: Tensor = seen[0]
    return latents


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that others give about themselves while they are loaded and run."""
    loud = logging.getLogger("transformers"), logging.getLogger("diffusers")
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
