"""StreamParts: what a stream is made of: input, sessions of an engine, a detector of speech."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.engine.remote.remotesession import RemoteSession
from streamenc.errors import UsageError
from streamenc.io.network.websocket.livemessages import InputFacts, Open, Opened
from streamenc.serve.inputs.inputbase import Input
from streamenc.serve.inputs.making import make_input
from streamenc.serve.limits import Limits
from streamenc.serve.streams.speechteller import SpeechTeller
from streamenc.serve.streams.streamcoder import DecoderStage, EncoderStage, Stage, StreamCoder

# How many packets may be on their way, and so how long each may be: together no more than a stream
# may have waiting. Packets of sound are short, and images are long.
WINDOWS = {"jpeg": 8, "h264": 16, "rgb": 2, "features": 8}
USUAL_WINDOW = 32


@dataclass(frozen=True, slots=True)
class StreamParts:
    """All that a client has asked for.

    Attributes:
        source: Bytes to what the model takes.
        coder: That to frames.
        speech: Hears it.
    """

    asked: Open
    model: RemoteModel
    source: Input
    coder: StreamCoder
    speech: SpeechTeller

    @classmethod
    async def made(
        cls, asked: Open, model: RemoteModel, engine: RemoteEngine, limits: Limits
    ) -> Self:
        """With places at the engine.

        Raises:
            EngineFull: Where it has none.
            TransportError: Where it is gone.
            UsageError, InputError, FitError: Where what was asked for does not fit the model.
        """
        spec = model.spec
        if asked.codebooks is not None:
            model.check_codebooks(asked.codebooks)
        source = await asyncio.to_thread(make_input, asked, spec, limits)
        sessions: list[RemoteSession] = []
        try:
            stages = await _stages(asked, model, engine, source, sessions)
            coder = StreamCoder(stages, asked.layout, asked.codebooks)
            sound = spec.input.rate if spec.input.kind == "audio" else None
            speech = await asyncio.to_thread(SpeechTeller, asked.vad, sound, source.time_base)
        except BaseException:  # a cancellation among them: places are given back, and it goes on
            for opened in sessions:
                opened.close()
            source.close()
            raise
        return cls(asked, model, source, coder, speech)

    def opened(self, session: str, token: str, limits: Limits, *, stored: bool) -> Opened:
        """What the client is told at first.

        Args:
            stored: Whether there is a store.
        """
        asked, spec, source, coder = self.asked, self.model.spec, self.source, self.coder
        window = WINDOWS.get(source.format, USUAL_WINDOW)
        return Opened(
            session=session,
            token=token,
            model=self.model.public_name,
            direction=asked.direction,
            fingerprint=coder.fingerprint,
            equality=spec.equality,
            input=InputFacts(
                source.format,
                float(source.rate),
                source.channels,
                source.time_base.as_integer_ratio(),
            ),
            model_rate=float(spec.input.rate),
            lead=spec.lead,
            hop=spec.hop,
            delay_ms=1000 * (float(spec.delay / spec.input.rate) + source.delay_seconds),
            rate=float(spec.output.rate if coder.last_rate is None else coder.last_rate),
            codebooks=asked.codebooks or spec.output.channels,
            codebook_size=coder.codebook_size,
            window=window,
            max_message_bytes=min(limits.max_message_bytes, limits.max_queued_bytes // window),
            max_queued_bytes=limits.max_queued_bytes,
            resume_seconds=limits.resume_seconds,
            exact_resume=stored and source.exact,
            why=source.why if stored else "this server has no store",
            vad=self.speech.engine,
        )


async def _stages(
    asked: Open,
    model: RemoteModel,
    engine: RemoteEngine,
    source: Input,
    sessions: list[RemoteSession],
) -> list[Stage]:
    """An encoder, a decoder, or for an echo both. Adds the sessions that they have."""
    first = engine.open(model, hops=asked.hops, codebooks=asked.codebooks)
    sessions.append(first)
    await first.admitted()
    if asked.direction == "decode":
        if asked.layout != "books":
            raise UsageError("layout is how codes come out; a decoder takes books, and gives sound")
        return [DecoderStage(model, first, source.time_base)]
    encoder = EncoderStage(
        model, first, source.time_base, hops=asked.hops, dtype=asked.dtype, rate=asked.rate
    )
    if asked.direction == "encode":
        return [encoder]
    decoder = engine.model(model.name, decode=True)
    second = engine.open(decoder, hops=asked.hops)
    sessions.append(second)
    await second.admitted()
    return [encoder, DecoderStage(decoder, second, source.time_base)]
