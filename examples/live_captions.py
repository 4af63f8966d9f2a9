"""Live captions: Whisper's encoder on the stream, transformers' text decoder on its states.

    python examples/live_captions.py whisper-tiny.en               # a folder as of transformers
    python examples/live_captions.py whisper-tiny.en talk.flac
    python examples/live_captions.py whisper-tiny.en mic:

Each second of sound is encoded once, in chunks that see a second ahead. The decoder wants the
states of 30 s; what is still to come is given to it as the states of silence, which are computed
once. Where the speaker pauses, a phrase ends, and the next one is a stream of its own. Lines with a
tilde are what is heard so far.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

import streamenc
from streamenc import FitError, Frame, Pipeline, StreamInfo, Transform
from streamenc.graph.node import BlockingSink

CLIP = Path(__file__).parent / "data" / "speech.flac"
WINDOW_SECONDS = 30
# Whoever says more in a second says nothing: Whisper repeats itself where sound breaks off.
TOKENS_PER_SECOND = 7


class Phrases(Transform):
    """Passes speech and drops pauses; after each one, and after `most_seconds`, a phrase begins.

    threshold_db  Of full scale, RMS of a frame: quieter ones are a pause once `hold_seconds` of
                  them have passed.
    """

    def __init__(
        self, threshold_db: float = -45.0, hold_seconds: float = 0.6, most_seconds: float = 26.0
    ) -> None:
        self.threshold = 10 ** (threshold_db / 20)
        self.hold_seconds, self.most_seconds = hold_seconds, most_seconds

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "audio":
            raise FitError(f"Phrases listens to audio; got {info}")
        self._hold = round(self.hold_seconds / info.time_base)
        self._most = round(self.most_seconds / info.time_base)
        self._start: int | None = None  # of the phrase
        self._loud = 0  # the end of the last frame that was
        self._seq = 0
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        if np.sqrt(np.mean(np.square(frame.data))) >= self.threshold:
            self._loud = frame.pts + frame.duration
        elif self._start is None or frame.pts - self._loud >= self._hold:
            self._start = None
            return ()
        begins = self._start is None or frame.pts - self._start >= self._most
        if begins:
            self._start = frame.pts
        passed = frame.with_(discontinuity=begins and self._seq > 0, seq=self._seq)
        self._seq += 1
        return (passed,)


class Decoder:
    """Whisper's text decoder from a folder: greedy, English, without timestamps."""

    def __init__(self, folder: str) -> None:
        transformers.utils.logging.disable_progress_bar()
        model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
        self.model = model.float().eval()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        names = ["<|en|>", "<|transcribe|>", "<|notimestamps|>"]
        if model.config.vocab_size < 51_865:  # the English models take no language
            names = names[2:]
        tokens = [self.tokenizer.token_to_id(name) for name in names]
        self.prompt = torch.tensor([[model.config.decoder_start_token_id, *tokens]])
        # Behind the end of text stand languages, tasks and timestamps.
        end: Any = model.config.eos_token_id
        self.never = list(range(end + 1, model.config.vocab_size))

    @torch.inference_mode()
    def __call__(self, states: torch.Tensor, seconds: float) -> str:
        """The text of (1, width, states), of which the first `seconds` hold sound."""
        outputs = transformers.modeling_outputs.BaseModelOutput(states.transpose(1, 2))
        # By its class: Whisper's own `generate` wants features, and files that not all copies have.
        tokens = transformers.GenerationMixin.generate(
            self.model,
            encoder_outputs=outputs,
            decoder_input_ids=self.prompt,
            do_sample=False,
            max_new_tokens=4 + round(seconds * TOKENS_PER_SECOND),
            suppress_tokens=self.never,
            begin_suppress_tokens=self.model.config.begin_suppress_tokens,
        )
        return str(self.tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True)).strip()


class Captions(BlockingSink):
    """Collects a phrase's states and prints its text, each time some came.

    silence  The states of 30 s of silence, (1, width, states).
    """

    def __init__(self, decode: Decoder, silence: torch.Tensor) -> None:
        self.decode, self.silence = decode, silence
        self.states: list[torch.Tensor] = []
        self.phrases: list[str] = []
        self.text = ""

    def open_blocking(self, info: StreamInfo) -> None:
        if info.kind != "features" or info.shape[0] != self.silence.shape[1]:
            raise FitError(f"captions are made of Whisper's states; got {info}")
        self.seconds = float(info.time_base)

    def write_blocking(self, frame: Frame) -> None:
        if frame.discontinuity:
            self.end()
        self.states.append(torch.from_numpy(frame.data)[None])
        heard = torch.cat(self.states, dim=-1)
        whole = torch.cat((heard, self.silence[..., heard.shape[-1] :]), dim=-1)
        seconds = WINDOW_SECONDS * heard.shape[-1] / self.silence.shape[-1]
        self.text = self.decode(whole[..., : self.silence.shape[-1]], seconds)
        print(f"~ {(frame.pts + frame.duration) * self.seconds:6.2f} s  {self.text}", flush=True)

    def close_blocking(self) -> None:
        self.end()

    def end(self) -> None:
        if self.states:
            self.phrases.append(self.text)
            print(f"  {self.text}", flush=True)
        self.states, self.text = [], ""


def main(folder: str, sound: str = str(CLIP)) -> int:
    codec = streamenc.load(f"whisper:{folder}", part="encoder", chunk_ms=1000, ahead_ms=1000)
    silence = codec.encode(np.zeros(WINDOW_SECONDS * codec.sample_rate, np.float32))
    assert isinstance(silence, torch.Tensor)
    captions = Captions(Decoder(folder), silence)
    with Pipeline() as pipeline:
        source = pipeline.source("sound", sound, realtime=True)
        speech = pipeline.graph.transform("phrases", Phrases(), source)
        states = pipeline.encode("encode", codec, speech)
        pipeline.graph.sink("captions", captions, states)
        pipeline.graph.run_blocking()
    print(f"phrases: {len(captions.phrases)}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
