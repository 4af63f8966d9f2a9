"""The comparison: ours with itself, streamed and at once, and with the published implementation."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.models.signal import Signal, cat, cut, items, scale, values
from streamenc.spec import StreamSpec
from streamenc.stream import Stream
from streamenc.verify import clips
from streamenc.verify.published import Absent, Published, Subject, published, quiet

if TYPE_CHECKING:
    from streamenc.codec import Codec

Verdict = Literal["equal", "differs", "told"]

# Of the largest value: what the order of sums may change in so many layers. In float64 what is left
# is that we fold norms of weights when they are read, in the type in which they are stored.
ALLOWED = {torch.float64: 3e-6, torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
# Frames whose codes may differ: near a tie between two entries rounding decides, and whatever comes
# behind the first entry that differs is another residual.
ALLOWED_FRAMES = {torch.float64: 0.0, torch.float32: 0.01, torch.bfloat16: 1.0, torch.float16: 0.5}
EXACT = "streamed in pieces, beside at once"


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        what: "encode", or "decode".
        of: What was compared: "codes", "latents", "frames", ...
        beside: With what.
        difference: The largest one, relative to the largest value; of codes the share of frames in
            which one differs; of lengths the difference in items.
        allowed: What rounding explains.
        verdict: "told" where a difference is meant, or where nothing says how large it may be.
        note: In words.
    """

    what: str
    of: str
    beside: str
    difference: float
    allowed: float
    verdict: Verdict
    note: str = ""


@dataclass
class Verification:
    """What was found of a model, and by which versions on which machine.

    Attributes:
        absent: Why there is no published implementation to compare with; "" where there is.
    """

    model: str
    family: str
    equality: str
    clip: str
    dtype: str
    package: str = ""
    absent: str = ""
    findings: list[Finding] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""

    @property
    def equal(self) -> bool:
        """Whether nothing differs beyond what rounding explains."""
        return all(finding.verdict != "differs" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "equal": self.equal}


def verify(
    codec: Codec,
    family: str,
    source: str,
    *,
    seconds: float = 6.0,
    clip: Path | None = None,
    revision: str | None = None,
    options: dict[str, Any] | None = None,
) -> Verification:
    """Compares a loaded model with itself, streamed, and with the published implementation.

    Args:
        codec: Ours, in the dtype and on the device that both compute in.
        source: The folder or the Hub name that it was loaded from.
        seconds: Of sound.
        clip: A file of sound in place of the bundled one.
        options: Those that `codec` was loaded with.

    Raises:
        UsageError: Where there is no clip for what the model takes, or nothing comes out of it.
    """
    import streamenc

    first = codec.encoder if codec.has_encoder else codec.decoder
    versions = {"streamenc": streamenc.__version__, "torch": str(torch.__version__)}
    found = Verification(
        model=codec.public_name,
        family=family,
        equality=first.spec.equality,
        clip="",
        dtype=str(first.like.dtype).removeprefix("torch."),
        versions=versions,
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )
    peer: Published | None = None
    try:
        peer = published(family, Subject(source, revision, codec, dict(options or {})))
        found.package = f"{peer.package} {peer.version}".strip()
        versions[peer.package] = peer.version
    except Absent as reason:
        found.absent = str(reason)
    with torch.inference_mode(), quiet():
        try:
            for finding in _findings(codec, peer, found, seconds, clip):
                found.findings.append(finding)
        except Absent as reason:
            found.absent = str(reason)
    return found


def _findings(
    codec: Codec, peer: Published | None, found: Verification, seconds: float, clip: Path | None
) -> Iterator[Finding]:
    """Of the encoder, then of the decoder on what came out. Raises Absent."""
    peer = peer or Published("")
    if not codec.has_encoder:
        codes: Signal = _random_codes(codec.decoder)
        found.clip = f"{items(codes)} random frames"
    else:
        given = clips.clip_for(codec.spec, seconds, clip)
        if isinstance(given, Tensor):
            given = given.to(codec.encoder.like)
        x = codec.encoder.signal(given)
        found.clip = _told(codec.spec, x)
        codes = codec.encode(x)
        if not items(codes):
            raise UsageError(
                f"{found.model} gives nothing of {found.clip}, so there is nothing to compare; "
                "take a longer clip, by --seconds or --clip"
            )
        yield from _compared("encode", codec.encoder, _streamed(codec.encoder, x), codes, EXACT)
        if peer.latents is not None:
            ours, _ = codec.encoder.step(codec.encoder.before(x), None, end=True)
            yield from _beside("encode", codec.encoder, ours, peer, peer.latents, given)
        if peer.encode is not None:
            yield from _beside("encode", codec.encoder, codes, peer, peer.encode, given)
    if codec.has_decoder:
        whole = codec.decode(codes)
        yield from _compared("decode", codec.decoder, _streamed(codec.decoder, codes), whole, EXACT)
        if peer.decode is not None:
            yield from _beside("decode", codec.decoder, whole, peer, peer.decode, values(codes))


def _beside(
    what: str, model: Model, ours: Signal, peer: Published, call: Callable[[Any], Tensor], x: Any
) -> Iterator[Finding]:
    """Raises Absent where the published implementation fails."""
    try:
        theirs = call(x)
    except Exception as error:  # whatever the code of others says of this clip
        raise Absent(
            f"{peer.package} could not {what} it: {type(error).__name__}: {error}"
        ) from error
    yield from _compared(what, model, ours, theirs, peer.package, peer.apart)


def _told(spec: StreamSpec, x: Signal) -> str:
    shape = values(x).shape
    if spec.input.kind == "video":
        return f"{shape[2]} images of {shape[4]}x{shape[3]} pixels"
    if spec.input.kind == "text":
        return f"{shape[2]} texts"
    return f"{shape[2] / float(spec.input.rate):.3g} s of sound"


def _random_codes(decoder: Model) -> Tensor:
    spec, generator = decoder.spec, torch.Generator().manual_seed(0)
    if spec.input.kind != "codes" or spec.input.axes:
        raise UsageError(f"{spec.name} was loaded without its encoder; load it with part='both'")
    shape = (1, spec.input.channels, 4 * spec.lead + 8 * spec.hop)
    return torch.randint(spec.codebook_size, shape, generator=generator).to(decoder.like.device)


def _streamed(model: Model, x: Signal) -> Signal:
    """What a stream gives of `x` in random pieces, always the same ones."""
    pieces, stream, start = random.Random(0), Stream(model), 0
    longest = 3 * max(model.spec.lead, model.spec.hop)
    outputs = []
    while start < items(x):
        stop = start + pieces.randint(1, longest)
        outputs.append(stream.push(cut(x, start, stop)))
        start = stop
    return cat([*outputs, stream.flush()])


def _compared(
    what: str, model: Model, ours: Signal, theirs: Signal, beside: str, apart: str = ""
) -> Iterator[Finding]:
    """Lengths, where they differ, and what both have."""
    a, b = values(ours), values(theirs)
    kind: str = model.spec.output.kind
    if kind == "codes" and a.is_floating_point():
        kind = "latents"

    def finding(of: str, difference: float, allowed: float, note: str = "") -> Finding:
        equal: Verdict = "equal" if difference <= allowed else "told" if apart else "differs"
        return Finding(
            what, of, beside, difference, allowed, equal, apart if apart and not note else note
        )

    if a.shape[2] != b.shape[2]:
        note = f"{a.shape[2]} items, {beside} {b.shape[2]}"
        yield finding("length", abs(a.shape[2] - b.shape[2]), 0, note)
    length = min(a.shape[2], b.shape[2])
    a, b = a[:, :, :length], b[:, :, :length].to(a.device)
    if a.shape[:2] != b.shape[:2] or a.shape[3:] != b.shape[3:]:
        note = f"shape {tuple(a.shape)}, {beside} {tuple(b.shape)}"
        yield finding("shape", 1, 0, note)
        return
    dtype = model.like.dtype
    if not length:
        return
    if a.is_floating_point():
        largest = float(b.double().abs().max()) or 1.0
        apart_by = float((a.double() - b.double()).abs().max()) / largest
        yield finding(kind, apart_by, ALLOWED[dtype])
        return
    frames = (a != b).any(dim=1)
    share = float(frames.double().mean())
    note = ""
    if share:
        books = (a != b).transpose(0, 1).flatten(1).any(dim=1)
        note = f"first in codebook {int(books.nonzero()[0])}"
    yield finding(kind, share, ALLOWED_FRAMES[dtype], note)
    factors = scale(ours), scale(theirs)
    if factors[0] is not None and factors[1] is not None:
        one, other = (factor[:, :, :length].double() for factor in factors if factor is not None)
        yield finding("scales", float((one - other).abs().max()), ALLOWED[dtype])
