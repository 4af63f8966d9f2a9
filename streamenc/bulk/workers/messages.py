"""What a run and its workers say to each other: lines of JSON, over the workers' pipes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from streamenc.bulk.partwork import Done, Progress
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.errors import WireError


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first thing that a worker is told; it loads the models then.

    Attributes:
        output, scratch: Folders of the set and of this run alone.
        device, decoders: As Tokenizer takes them.
        path: Where Python looks for modules, such as those of plugins.
    """

    job: TokenizeJob
    output: str
    scratch: str
    device: str
    decoders: int | None
    path: list[str]


class Take(msgspec.Struct, frozen=True, tag=True):
    """A part to do; see do_part."""

    part: int
    skip: dict[str, str]
    singly: bool


class End(msgspec.Struct, frozen=True, tag=True):
    """There is no more to do."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The models are loaded."""

    facts: tuple[ModelFacts, ...]


class Began(msgspec.Struct, frozen=True, tag=True):
    """An item is about to be opened; see do_part."""

    key: str
    behind: int


class Beat(msgspec.Struct, frozen=True, tag=True):
    """Something came of the item in hand.

    Attributes:
        peak_bytes: Memory of the worker at its largest.
    """

    peak_bytes: int


class Failure(msgspec.Struct, frozen=True, tag=True):
    """What ends the run: an error of streamenc.errors."""

    error: str
    message: str


Order: TypeAlias = Setup | Take | End
Report: TypeAlias = Ready | Began | Progress | Beat | Done | Failure


def line_of(message: Order | Report) -> bytes:
    return msgspec.json.encode(message) + b"\n"


_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def read_report(line: bytes) -> Report:
    """What a worker says. Raises WireError for what none says."""
    try:
        return _reports.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"got a line that is no report of a worker: {error}") from None
