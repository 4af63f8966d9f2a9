"""Codec: what `streamenc.load` gives, an encoder and its decoder."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.selection import WHOLE
from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.models.signal import Signal, as_signal, cat, values
from streamenc.spec import Port, StreamSpec
from streamenc.stream import Stream

if TYPE_CHECKING:
    from streamenc.io.files.tables.stacked import Recording

# Whole files go through the model in steps of about this length. On a CPU activations stay in the
# cache: on one core, of steps of 1, 2, 4, 8 and 20 s, nano took 0.26, 0.23, 0.18, 0.16 and 0.17 s
# for 40 s of sound, mel 31, 29, 27, 28 and 44 ms, and for 20 s full-size Mimi 2.8, 2.4, 2.1, 2.2
# and 2.9 s, EnCodec 2.0, 1.8, 2.0, 2.2 and 2.7 s, HuBERT 4.1, 3.6, 3.4, 3.7 and 3.5 s.
OFFLINE_STEP_SECONDS = {"cpu": 4}
OTHER_OFFLINE_STEP_SECONDS = 20
TEXTS_AT_ONCE = 256
# Of images, small ones as a batch: as many as have the pixels of one of 512x512.
PIXELS_AT_ONCE = 1 << 18


class WholeStream(Stream):
    """A whole recording through a model, which may come in pieces of any size.

    Its steps are those of `Codec.encode` on all of it, and so are its results, to the last bit;
    what waits in memory is bounded.

    Args:
        codebooks: How many codebooks come out; None for all.
    """

    def __init__(self, model: Model, *, batch: int = 1, codebooks: int | None = None) -> None:
        spec = model.spec
        device = model.like.device.type
        seconds = OFFLINE_STEP_SECONDS.get(device, OTHER_OFFLINE_STEP_SECONDS)
        hops = max(1, math.floor(seconds * spec.input.rate / spec.hop))
        if spec.input.kind == "text":
            hops = TEXTS_AT_ONCE
        super().__init__(model, batch=batch, hops=hops, codebooks=codebooks)

    def push(self, chunk: Any) -> Signal:
        with torch.inference_mode():
            self.take(chunk)
            spec = self.model.spec
            if not self.started and (spec.input.axes or spec.output.axes):
                if spec.input.kind != "text":
                    pixels = _pixels_of_a_hop(self.model, self.shape[1:])
                    self.hops = max(1, PIXELS_AT_ONCE // pixels)
            outputs = []
            # What is not much more than a step is one, up to two of them: a first step by itself
            # reads all weights for little.
            if self.started or self.pending > spec.lead + 2 * self.hops * spec.hop:
                while self.ready:
                    outputs.append(self.step(self.codebooks))
            return self.joined(outputs, self.codebooks)


class Codec:
    """An encoder and, where the model has one and it was loaded, its decoder.

    Args:
        name: As it was loaded, for messages.
        public_name: What recordings and streams carry, so that a listener knows what to decode them
            with; None for `name`. It goes out to others, so it holds no path.
        family: Of which family it is, as `streamenc models` lists them; "" where it is of none.
    """

    def __init__(
        self,
        name: str,
        encoder: Model | None,
        decoder: Model | None,
        *,
        public_name: str | None = None,
        family: str = "",
    ) -> None:
        self.name, self.family = name, family
        self.public_name = name if public_name is None else public_name
        self._encoder, self._decoder = encoder, decoder

    @property
    def encoder(self) -> Model:
        if self._encoder is None:
            raise UsageError(
                f"{self.name} was loaded without its encoder; load it with part='both'"
            )
        return self._encoder

    @property
    def decoder(self) -> Model:
        if self._decoder is None:
            raise UsageError(
                f"{self.name} has no decoder here: it makes features that cannot be turned back, "
                "or it was loaded with part='encoder'"
            )
        return self._decoder

    @property
    def has_encoder(self) -> bool:
        return self._encoder is not None

    @property
    def has_decoder(self) -> bool:
        return self._decoder is not None

    @property
    def device(self) -> str:
        """What it computes on: "cpu", "cuda:0"."""
        model = self._encoder if self._encoder is not None else self.decoder
        return str(model.like.device)

    @property
    def spec(self) -> StreamSpec:
        """What the encoder promises."""
        return self.encoder.spec

    @property
    def sample_rate(self) -> int:
        """Hz, of the audio that goes in and comes out. Raises UsageError for a model of video."""
        return int(self._sound().rate)

    @property
    def frame_rate(self) -> float:
        """Frames of codes or features a second; exactly, `spec.output.rate`.

        Raises UsageError for a model of images.
        """
        self._sound()
        if self._encoder is not None:
            return float(self._encoder.spec.output.rate)
        return float(self.decoder.spec.input.rate)

    def encode(
        self, audio: Any, *, codebooks: int | None = None, sample_rate: float | None = None
    ) -> Signal:
        """Codes or features of whole recordings, (batch, codebooks or bins, frames).

        Also takes (channels, samples) and, for mono models, (samples,). It is the same code path as
        `stream`.

        Args:
            audio: (batch, channels, samples), or video (batch, 3, time, height, width); or a text,
                or a list of texts.
            codebooks: How many come out; None for all.
            sample_rate: Of `audio`, Hz: where it is another than the model's, it is resampled. None
                takes it to be the model's, which no array says of itself.

        Raises:
            InputError: For another shape, what is not finite, or no such number of codebooks.
        """
        if sample_rate is not None:
            audio = _resampled(audio, sample_rate, self.sample_rate)
        return _whole(self.encoder, audio, codebooks)

    def encode_file(
        self,
        path: str | os.PathLike[str],
        *,
        codebooks: int | None = None,
        source: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Recording:
        """Codes or features of a file, as numpy arrays with the time of each frame.

        Any file that FFmpeg opens: its sound is decoded, mixed to the model's channels, resampled
        and cut into steps, or its images are brought to the model's size, by the nodes that the
        command line has: what comes out is what `streamenc encode` records.

        Args:
            path: The file.
            codebooks: How many come out; None for all.
            source: Options of the file, as `streamenc help` lists them: {"stream": 1}.
            how: As those of Pipeline.encode: `dtype`, `hops`, `conceal_ms`, `runs`, `layout`; of
                images `size`, `fit`, `filter`.

        Returns:
            Its `data` (codebooks, frames), `times` in seconds, `gaps` and `info`.

        Raises:
            MediaError: Where the file cannot be read.
            UsageError: For an unknown option, and for what is no file.
        """
        from streamenc.coding.wholefile import encode_file  # only who calls this needs a graph

        return encode_file(self, path, source, codebooks=codebooks, **how)

    def decode(self, codes: Signal) -> Tensor:
        """Audio of codes, (batch, codebooks, frames) -> (batch, channels, samples)."""
        audio = _whole(self.decoder, codes, None)
        assert isinstance(audio, Tensor)
        return audio

    def stream(self, *, batch: int = 1, hops: int = 1, codebooks: int | None = None) -> Stream:
        """Opens a live stream through the encoder; see Stream."""
        return Stream(self.encoder, batch=batch, hops=hops, codebooks=codebooks)

    def whole_stream(self, *, batch: int = 1, codebooks: int | None = None) -> WholeStream:
        """Opens a stream for a whole recording that comes in pieces; see WholeStream."""
        return WholeStream(self.encoder, batch=batch, codebooks=codebooks)

    def decode_stream(self, *, batch: int = 1, hops: int = 1) -> Stream:
        """Opens a live stream through the decoder; see Stream."""
        return Stream(self.decoder, batch=batch, hops=hops)

    def _sound(self) -> Port:
        """Where it takes or gives its sound. Raises UsageError for a model of images."""
        encoder = self._encoder
        port = self.decoder.spec.output if encoder is None else encoder.spec.input
        if port.kind != "audio":
            if port.kind == "text":
                raise UsageError(f"{self.name} is a model of text, which has no rate")
            where = "decoder.spec.output.rate" if encoder is None else "spec.input.rate"
            raise UsageError(
                f"{self.name} is a model of {port.kind} and has no sample rate; its images a "
                f"second are {where}"
            )
        return port

    def __repr__(self) -> str:
        parts = [p for p, m in (("encoder", self._encoder), ("decoder", self._decoder)) if m]
        return f"Codec({self.name!r}, {' and '.join(parts)})"


def _resampled(audio: Any, rate: float, wanted: int) -> Any:
    """As the graph does it, by soxr at its high quality."""
    rate = options.number("sample_rate", rate, 1, 10_000_000)
    samples = values(as_signal(audio))
    # What is no sound is refused further on, where it can be said at which sample.
    is_sound = samples.is_floating_point() and bool(samples.isfinite().all())
    if rate == wanted or not samples.numel() or not is_sound:
        return audio
    import soxr

    flat = samples.detach().cpu().to(torch.float32).reshape(-1, samples.shape[-1])
    made = soxr.resample(flat.T.numpy(), rate, wanted)
    return torch.from_numpy(made.T.copy()).reshape(*samples.shape[:-1], -1).to(samples.device)


def _whole(model: Model, x: Any, codebooks: int | None) -> Signal:
    signal = model.signal(x)
    shape = values(signal).shape
    batch = shape[0] if len(shape) == 3 + model.spec.input.axes else 1
    stream = WholeStream(model, batch=batch, codebooks=codebooks)
    return cat([stream.push(signal), stream.flush()])


def _pixels_of_a_hop(model: Model, size: tuple[int, ...]) -> int:
    """On that side, of what goes in and what comes out, that has more; at least 1.

    size  Of an item that goes in, behind its channels.
    """
    spec = model.spec
    most = spec.hop * math.prod(size)
    if spec.output.axes:
        made = model.output_shape((1, spec.input.channels, 0, *size))[3:]
        most = max(most, spec.steps.hop_out * math.prod(made))
    return max(1, most)


def public_name(name: str, listed: Container[str]) -> str:
    """What streams call a model: of a path its last part, which tells nothing of the machine.

    name    As it is loaded. A Hub name stays; a folder of the Hub's cache gets its own again.
    listed  Names that promise the listed weights: a path gets none of them.
    """
    if name in listed:
        return name
    # Behind a family, or behind the path of a loader, which has a colon itself.
    starts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ":")]
    start = next((i for i in starts if name[i:] and Path(name[i:]).expanduser().exists()), None)
    if start is None:
        return name
    path = Path(os.path.abspath(Path(name[start:]).expanduser()))
    if path.name in WHOLE:
        path = path.parent
    for at, part in enumerate(path.parts):
        if part.startswith("models--") and path.parts[at + 1 : at + 2] == ("snapshots",):
            repo = part.removeprefix("models--").replace("--", "/")
            return name[:start] + "/".join((repo, *path.parts[at + 3 :]))
    last = name[:start] + (path.name or "model")
    return f"./{last}" if last in listed else last
