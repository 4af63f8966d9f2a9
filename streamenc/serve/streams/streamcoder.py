"""StreamCoder: what a stream's input goes through on the engine, and the frames that come out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from streamenc.coding.times import CarriedTimes, CountedTimes, OutputTimes, SegmentTimes
from streamenc.engine.exchange import outputs
from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.engine.remote.remotesession import RemoteSession
from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.graph.frames import Frame, StreamInfo, round_to_bfloat16
from streamenc.nodes.codes.relayout import ToLayout
from streamenc.serve.inputs.inputbase import Chunk
from streamenc.spec import ScaledCodes, StreamSpec

# One call of the engine takes about so much: a long packet must not hold up other streams, nor
# grow to something that no packet can hold.
MAX_STEP_SECONDS = 1.0
MAX_STEP_IMAGES = 8
MAX_STEP_TEXTS = 32


# No stream comes to more ticks or items: what does was never written by one.
_Number = Annotated[int, Meta(ge=-(2**56), le=2**56)]


class StageState(Struct, frozen=True, array_like=True):
    """A Stage as it was written down."""

    snapshot: bytes | None  # None where its model's stream had not begun
    times: list[_Number]
    seq: _Number
    flag: bool
    early: bytes = b""


class Stage:
    """A session of the engine, and the times of what comes out of it.

    Attributes:
        info: What comes out; of images None until the first has come out, as only that tells the
            size.
        started: Whether the model's stream has begun.
    """

    info: StreamInfo | None

    def __init__(self, model: RemoteModel, session: RemoteSession, times: OutputTimes) -> None:
        self.model, self.session = model, session
        self._most = _most_items(model.spec)
        self.started = False
        self._times = times
        self._seq = 0
        self._flag = False
        self._arrived_ns = 0

    async def push(self, chunk: Chunk, arrived_ns: int) -> list[Frame]:
        """What has become final with the next items, the last of which came at `arrived_ns`, on
        the monotonic clock. Raises InputError, and the stream stands."""
        frames: list[Frame] = []
        if chunk.discontinuity:
            frames += await self.flush()
            self._flag = True
        if not self.started:
            self._times.start(chunk.pts)
        self._arrived_ns = arrived_ns
        for part in _parts(chunk, self._most):
            output = await self.session.step(self._given(part))
            self.started = True
            self._times.took(part.items, part.pts, part.duration)
            frames += self._frames(output, last=False)
        return frames

    async def flush(self) -> list[Frame]:
        """The model's stream ends; what comes next starts a new one."""
        if not self.started:
            return []
        output = await self.session.flush()
        frames = self._frames(output, last=True)
        self.started, self._flag = False, True
        return frames

    async def state(self) -> StageState:
        snapshot = await self.session.snapshot() if self.started else None
        return StageState(snapshot, self._times.state(), self._seq, self._flag, self._rest())

    async def restore(self, state: StageState) -> None:
        """Raises SnapshotError where it is not of this model."""
        if state.snapshot is not None:
            await self.session.restore(state.snapshot)
            self.started = True
            try:
                self._times.restore(state.times)
            except ValueError as error:
                raise SnapshotError(f"a snapshot with times that cannot be: {error}") from None
        self._seq, self._flag = state.seq, state.flag
        self._arrived_ns = time.monotonic_ns()  # what it was is of another clock
        self._set_rest(state.early)

    def _given(self, chunk: Chunk) -> Any:
        """A chunk as the session takes it."""
        return chunk.data

    def _frames(self, output: outputs.Output, *, last: bool) -> list[Frame]:
        raise NotImplementedError

    def _rest(self) -> bytes:
        return b""

    def _set_rest(self, rest: bytes) -> None:
        return None

    def _frame(self, data: Any, *, scale: float = 1.0, last: bool) -> Frame:
        pts, duration = self._times.give(data.shape[1], last=last)
        frame = Frame(data, pts, duration, self._seq, self._flag, self._arrived_ns, scale)
        self._seq += 1
        self._flag = False
        return frame


class EncoderStage(Stage):
    """Sound, images or texts to codes or features; a frame each hop, of images each item."""

    def __init__(
        self,
        model: RemoteModel,
        session: RemoteSession,
        time_base: Fraction,
        *,
        hops: int = 1,
        dtype: str = "",
        rate: float | None = None,
    ) -> None:
        spec = model.spec
        output = spec.output
        if dtype and output.kind != "features":
            raise UsageError(f"dtype is of features; {model.public_name} gives {output.kind}")
        self._dtype = dtype or output.dtype
        self._steady = spec.input.kind == "audio"
        self._first, self._hop = spec.lead_out, hops * spec.hop_out
        times: OutputTimes
        if self._steady:
            out_rate = spec.output.rate
            times = CountedTimes(
                spec.input.rate * spec.hop_out / spec.hop, time_base, covering=spec.scaled
            )
        elif spec.input.kind == "video":
            images = Fraction(rate).limit_denominator(1001) if rate else spec.input.rate
            out_rate = images * spec.hop_out / spec.hop
            times = CarriedTimes(model.first_input)
        else:
            out_rate, times = Fraction(0), SegmentTimes()
        super().__init__(model, session, times)
        self._time_base, self._out_rate = time_base, out_rate
        self.info = None if output.axes else self._described((output.channels, None))

    def _described(self, shape: tuple[int | None, ...]) -> StreamInfo:
        spec = self.model.spec
        kind = spec.output.kind
        assert kind in ("codes", "features")
        return StreamInfo(
            kind=kind,
            time_base=self._time_base,
            rate=self._out_rate,
            shape=shape,
            dtype=self._dtype,
            model=self.model.public_name,
            codebook_size=spec.codebook_size,
        )

    def _frames(self, output: outputs.Output, *, last: bool) -> list[Frame]:
        count = outputs.items(output)
        if not count:
            return []
        array = outputs.values(output)[0]
        if self._dtype == "bfloat16":
            array = round_to_bfloat16(array)
        else:
            array = array.astype(self._dtype, copy=False)
        if self.info is None:
            self.info = self._described((array.shape[0], None, *array.shape[2:]))
        if not self._steady:
            return [self._frame(array[:, i : i + 1], last=last) for i in range(count)]
        factors = None if isinstance(output, np.ndarray) else output.scale[0, 0].tolist()
        frames = []
        for start, stop in self._cuts(count, factors):
            scale = 1.0 if factors is None else factors[start]
            piece = np.ascontiguousarray(array[:, start:stop])
            frames.append(self._frame(piece, scale=scale, last=last and stop == count))
        return frames

    def _cuts(self, count: int, factors: Sequence[float] | None) -> Iterator[tuple[int, int]]:
        """Where items are cut into frames: always at the same ones, however the input came."""
        given = self._times.given
        start = 0
        for stop in range(1, count + 1):
            place = given + stop - self._first
            whole = place >= 0 and not place % self._hop
            changes = factors is not None and stop < count and factors[stop] != factors[stop - 1]
            if whole or changes or stop == count:
                yield start, stop
                start = stop


class DecoderStage(Stage):
    """Codes or latents to sound, as much as was encoded."""

    def __init__(self, model: RemoteModel, session: RemoteSession, time_base: Fraction) -> None:
        spec = model.spec
        if spec.output.kind != "audio":
            raise UsageError(
                f"{model.public_name} decodes to {spec.output.kind}; over a connection only sound "
                "is decoded: use `streamenc decode` for it"
            )
        rate = spec.input.rate * spec.hop_out / spec.hop
        self._counts = CountedTimes(rate, time_base, covering=spec.scaled)
        super().__init__(model, session, self._counts)
        self.info = StreamInfo(
            kind="audio",
            time_base=time_base,
            rate=spec.output.rate,
            shape=(spec.output.channels, None),
            dtype="float32",
            model=model.public_name,
        )
        self._early = np.zeros((spec.output.channels, 0), np.float32)
        self._most_early = min(-(-spec.output.rate * time_base // 1) + 1, int(spec.output.rate))

    def _given(self, chunk: Chunk) -> Any:
        if not self.model.spec.scaled:
            return chunk.data
        codes = np.asarray(chunk.data)
        return ScaledCodes(codes, np.full((1, 1, codes.shape[2]), chunk.scale, np.float32))

    def _frames(self, output: outputs.Output, *, last: bool) -> list[Frame]:
        assert isinstance(output, np.ndarray)
        audio = output[0].astype(np.float32, copy=False)
        if self._early.shape[1]:
            audio = np.concatenate((self._early, audio), axis=1)
        samples = min(audio.shape[1], max(0, self._counts.left))
        # Durations are rounded to ticks: what lies beyond the end by less may be within it yet.
        early = 0 if last else self._most_early
        self._early = audio[:, samples : samples + early].copy()
        return [self._frame(audio[:, :samples], last=last)] if samples else []

    def _rest(self) -> bytes:
        return self._early.tobytes()

    def _set_rest(self, rest: bytes) -> None:
        channels = self._early.shape[0]
        if len(rest) % (4 * channels) or len(rest) > 4 * channels * self._most_early:
            raise SnapshotError(f"a snapshot with {len(rest)} bytes of sound behind its end")
        self._early = np.frombuffer(rest, np.float32).reshape(channels, -1).copy()


class StreamCoder:
    """One stage, or for an echo two: what comes of an encoder goes through its decoder, too.

    Args:
        layout: How codes come out; see ToLayout.

    Raises:
        UsageError: For a layout of what are no codes of sound.
    """

    def __init__(
        self, stages: Sequence[Stage], layout: str = "books", codebooks: int | None = None
    ) -> None:
        self._stages = list(stages)
        self._layout: ToLayout | None = None
        if layout != "books":
            self._layout = ToLayout(layout, codebooks)
            info = stages[0].info
            if info is None or info.kind != "codes":
                raise UsageError(
                    f"layout is of codes of sound; {stages[0].model.public_name} gives none"
                )
            self._laid_out = self._layout.open(info)

    @property
    def last_rate(self) -> Fraction | None:
        """Items a second of what comes out last; None while that is not known yet."""
        made = self._stages[-1].info if len(self._stages) > 1 else self.info
        return None if made is None else made.rate

    @property
    def info(self) -> StreamInfo | None:
        """What comes out; None while that is not known yet."""
        infos = [stage.info for stage in self._stages]
        if self._layout is not None:
            infos[0] = self._laid_out
        if len(infos) == 1 or None in infos:
            return infos[0]
        return StreamInfo.mux([info for info in infos if info is not None])

    @property
    def fingerprint(self) -> str:
        return ".".join(stage.model.fingerprint() for stage in self._stages)

    @property
    def codebook_size(self) -> int:
        """What all codes that come out are below; 0 where none do."""
        first = self._stages[0]
        return (
            first.model.spec.codebook_size if self._layout is None else self._laid_out.codebook_size
        )

    def check_codebooks(self, codebooks: int) -> None:
        """Raises InputError where there is no such number of them."""
        self._stages[0].model.check_codebooks(codebooks)
        if self._layout is not None:
            raise InputError("the number of codebooks of a layout stays; open another stream")

    @property
    def codebooks(self) -> int | None:
        """How many codebooks come out; None for all."""
        return self._stages[0].session.codebooks

    @codebooks.setter
    def codebooks(self, codebooks: int | None) -> None:
        self._stages[0].session.codebooks = codebooks

    async def push(self, chunk: Chunk, arrived_ns: int) -> list[Frame]:
        """What has become final with the next items; see Stage.push."""
        return self._laid(await self._decoded(await self._stages[0].push(chunk, arrived_ns)))

    async def flush(self) -> list[Frame]:
        frames = self._laid(await self._decoded(await self._stages[0].flush()))
        frames += self._layout.flush() if self._layout is not None else ()
        for stage in self._stages[1:]:
            frames += [frame.with_(track=1) for frame in await stage.flush()]
        return frames

    async def state(self) -> list[StageState]:
        return [await stage.state() for stage in self._stages]

    @property
    def layout(self) -> bytes:
        """The state of the layout; nothing of books."""
        return b"" if self._layout is None else self._layout.state()

    @layout.setter
    def layout(self, state: bytes) -> None:
        """Raises SnapshotError where it is of another layout."""
        if self._layout is not None:
            self._layout.restore(state)
        elif state:
            raise SnapshotError("got a snapshot of a stream with a layout; this one has books")

    async def restore(self, states: Sequence[StageState]) -> None:
        """Raises SnapshotError where they are not of these models."""
        if len(states) != len(self._stages):
            raise SnapshotError(f"got {len(states)} models' states; wanted {len(self._stages)}")
        for stage, state in zip(self._stages, states, strict=True):
            await stage.restore(state)

    def close(self) -> None:
        for stage in self._stages:
            stage.session.close()

    def _laid(self, frames: list[Frame]) -> list[Frame]:
        if self._layout is None:
            return frames
        laid: list[Frame] = []
        for frame in frames:
            laid += self._layout.push(frame) if not frame.track else (frame,)
        return laid

    async def _decoded(self, frames: list[Frame]) -> list[Frame]:
        """For an echo, with the sound of each frame behind it."""
        if len(self._stages) == 1:
            return frames
        both: list[Frame] = []
        for frame in frames:
            both.append(frame)
            chunk = Chunk(
                frame.data[None],
                frame.data.shape[1],
                frame.pts,
                frame.duration,
                discontinuity=frame.discontinuity,
                scale=frame.scale,
            )
            sounds = await self._stages[1].push(chunk, frame.arrived_ns)
            both += [sound.with_(track=1) for sound in sounds]
        return both


def joined(chunks: list[Chunk]) -> list[Chunk]:
    """Chunks of sound that follow on from each other as one."""
    if len(chunks) < 2:
        return chunks
    whole: list[Chunk] = []
    for follows, group in groupby(chunks, lambda chunk: not chunk.discontinuity):
        parts = list(group)
        arrays = [part.data for part in parts if not isinstance(part.data, list)]
        if not follows or len(parts) == 1 or len(arrays) < len(parts):
            whole += parts
            continue
        last, first = parts[-1], parts[0]
        data = np.concatenate(arrays, axis=2)
        duration = last.pts + last.duration - first.pts
        whole.append(Chunk(data, data.shape[2], first.pts, duration))
    return whole


def _most_items(spec: StreamSpec) -> int:
    """How many items one step may take."""
    if spec.input.kind == "text":
        return MAX_STEP_TEXTS
    if spec.input.kind == "video":
        return max(spec.hop, MAX_STEP_IMAGES)
    return max(1, int(spec.input.rate * Fraction(MAX_STEP_SECONDS)))


def _parts(chunk: Chunk, most: int) -> Iterator[Chunk]:
    """A chunk in pieces that one step may take."""
    if chunk.items <= most:
        yield chunk
        return
    for start in range(0, chunk.items, most):
        stop = min(chunk.items, start + most)
        begin, end = (chunk.duration * place // chunk.items for place in (start, stop))
        yield Chunk(
            chunk.data[start:stop]
            if isinstance(chunk.data, list)
            else chunk.data[:, :, start:stop],
            stop - start,
            chunk.pts + begin,
            end - begin,
            scale=chunk.scale,
        )
