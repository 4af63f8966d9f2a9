"""How the codes of several codebooks lie in what a language model reads; and back again.

books   (codebooks, frames), as models give them.
flat    (1, frames * codebooks): frame by frame, the first codebook's code first. Code c of
        codebook k is c + k * codebook_size, so that each token says what it is of. AudioLM
        (arXiv 2209.03143) reads the codes of SoundStream so, and Orpheus those of SNAC in
        groups, whose 7 places are codebooks here: its tokens are these, 128,266 higher.
delay   (codebooks, frames + the largest delay): codebook k comes `delays[k]` frames later, so
        that the tokens of one step do not depend on each other as much. Where there is nothing
        stands the pad, `codebook_size`. MusicGen (arXiv 2306.05284) has the delays 0, 1, 2, 3;
        Moshi (arXiv 2410.00037) has 0 for the first codebook of Mimi and 1 for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.nodes.speech.kept import Kept, from_bytes

Codes = np.ndarray[Any, Any]

NAMES = ("books", "flat", "delay")
MAX_DELAY = 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """Which one, as options name it: "books", "flat", "delay" or "delay:0,1,1,1".

    Attributes:
        delays: Of "delay", one for each codebook, in frames; () for 0, 1, 2, ...
    """

    name: str = "books"
    delays: tuple[int, ...] = ()

    @classmethod
    def of(cls, text: str) -> Layout:
        """Raises UsageError for what is none."""
        name, colon, rest = text.partition(":")
        parts = rest.split(",")
        whole = all(part.strip().isdecimal() and len(part) < 6 for part in parts)
        if name not in NAMES or (colon and (name != "delay" or not whole)):
            raise UsageError(
                f"got layout={text!r}; it is one of {', '.join(NAMES)}, or delay:0,1,1,1 with the "
                "delay of each codebook in frames"
            )
        if not colon:
            return cls(name)
        return cls(name, checked_delays([int(part) for part in parts], len(parts)))

    def delays_of(self, codebooks: int) -> tuple[int, ...]:
        """Raises UsageError where they are of another number of codebooks."""
        return checked_delays(self.delays or range(codebooks), codebooks)

    def __str__(self) -> str:
        return f"{self.name}:{','.join(map(str, self.delays))}" if self.delays else self.name


def checked_delays(delays: Sequence[int], codebooks: int) -> tuple[int, ...]:
    """Raises UsageError where there is not one from 0 for each codebook, and one of them 0."""
    if len(delays) != codebooks or not delays or min(delays) != 0 or max(delays) > MAX_DELAY:
        raise UsageError(
            f"got the delays {', '.join(map(str, delays))} for {codebooks} codebooks; wanted one "
            f"for each, from 0 to {MAX_DELAY} frames, the least of them 0"
        )
    return tuple(delays)


def flatten(codes: Codes, codebook_size: int) -> Codes:
    """(codebooks, frames) -> (1, frames * codebooks). Raises InputError where no codes."""
    _check_codes(codes, codebook_size)
    books = len(codes)
    wide = codes.astype(token_dtype(books * codebook_size))
    wide += np.arange(books, dtype=wide.dtype)[:, None] * wide.dtype.type(codebook_size)
    return np.ascontiguousarray(wide.T).reshape(1, -1)


def unflatten(tokens: Codes, codebooks: int, codebook_size: int) -> Codes:
    """The inverse: (1, frames * codebooks) -> (codebooks, frames).

    Raises:
        InputError: Where a token is not of the codebook that is due.
    """
    if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] % codebooks:
        raise InputError(
            f"got tokens of shape {tokens.shape}; wanted 1 row of a multiple of {codebooks}"
        )
    return _unflat(tokens[0], codebooks, codebook_size, 0).reshape(-1, codebooks).T.copy()


def delay(codes: Codes, codebook_size: int, delays: Sequence[int] | None = None) -> Codes:
    """(codebooks, frames) -> (codebooks, frames + the largest delay).

    Args:
        delays: Of each codebook, in frames; None for 0, 1, 2, ...

    Raises:
        InputError: Where these are no codes.
        UsageError: Where the delays do not fit.
    """
    layouter = Layouter(Layout("delay", tuple(delays or ())), len(codes), codebook_size)
    return np.concatenate((layouter.push(codes), layouter.flush()), axis=1)


def undelay(tokens: Codes, codebook_size: int, delays: Sequence[int] | None = None) -> Codes:
    """The inverse: (codebooks, frames + the largest delay) -> (codebooks, frames).

    Raises:
        InputError: Where the pads do not stand where these delays have them.
    """
    undelayer = Undelayer(checked_delays(delays or range(len(tokens)), len(tokens)), codebook_size)
    codes = undelayer.push(tokens)
    if lost := undelayer.flush():
        raise InputError(f"the tokens end before their last {lost} frames are whole")
    return codes


def token_dtype(entries: int) -> np.dtype[Any]:
    """The type of tokens: the smallest that holds them, and at least that of codes."""
    return np.dtype(np.uint16 if entries <= 1 << 16 else np.uint32)


class _Kept(Kept):
    """A layouter's state."""

    layout: str
    frames: int
    late: bytes


class Layouter:
    """Codes as they come -> tokens. All output together is that of the function above on all codes.

    Args:
        layout: Which one.
        codebooks: Of each frame.
        codebook_size: Entries of each codebook.

    Attributes:
        rows: Of what comes out: 1 where flat.
        per_frame: Columns that come out for each frame: `codebooks` where flat, else 1.
        entries: What all tokens are below.

    Raises:
        UsageError: Where the delays do not fit.
    """

    def __init__(self, layout: Layout, codebooks: int, codebook_size: int) -> None:
        self.layout, self.codebooks, self.codebook_size = layout, codebooks, codebook_size
        flat, delayed = layout.name == "flat", layout.name == "delay"
        self.rows, self.per_frame = (1, codebooks) if flat else (codebooks, 1)
        self.entries = codebook_size * (codebooks if flat else 1) + delayed
        self._delays = layout.delays_of(codebooks) if delayed else (0,) * codebooks
        self._longest = max(self._delays)
        self._reset()

    def push(self, codes: Codes) -> Codes:
        """(codebooks, frames) -> (rows, frames * per_frame).

        Raises:
            InputError: Where these are no codes, or not of so many codebooks; then nothing has
                changed.
        """
        if codes.ndim != 2 or len(codes) != self.codebooks:
            raise InputError(
                f"got codes of shape {codes.shape}; this layout is of ({self.codebooks}, frames)"
            )
        if self.layout.name == "books":
            return codes
        if self.layout.name == "flat":
            return flatten(codes, self.codebook_size)
        _check_codes(codes, self.codebook_size)
        made = self._delayed(codes)
        self._frames += codes.shape[1]
        return made

    def flush(self) -> Codes:
        """The stream ends: (rows, the largest delay), or nothing. Another stream begins."""
        if self.layout.name != "delay":
            return np.zeros((self.rows, 0), token_dtype(self.entries))
        columns = self._longest if self._frames else 0
        pads = np.full((self.codebooks, columns), self.codebook_size, self._late[0].dtype)
        made = self._delayed(pads)
        self._reset()
        return made

    def state(self) -> bytes:
        """All that it remembers of the stream, for `restore` of one with the same arguments."""
        late = np.concatenate(self._late).astype("<u4").tobytes()
        return _Kept(str(self.layout), self._frames, late).to_bytes()

    def restore(self, state: bytes) -> None:
        """Goes on where the layouter that gave `state` stood.

        Raises:
            SnapshotError: Where it is of another layout, or no state at all.
        """
        kept = from_bytes(state, _Kept, "a layout")
        late = np.frombuffer(kept.late[: len(kept.late) // 4 * 4], "<u4")
        fits = len(kept.late) == 4 * sum(self._delays) and not (late > self.codebook_size).any()
        if kept.layout != str(self.layout) or not fits or kept.frames < 0:
            raise SnapshotError(
                f"got the state of the layout {kept.layout!r:.80} with {len(kept.late)} bytes; "
                f"this one is {str(self.layout)!r} of {self.codebooks} codebooks"
            )
        ends = np.cumsum(self._delays)[:-1]
        self._late = np.split(late.astype(token_dtype(self.entries)), ends)
        self._frames = kept.frames

    def _reset(self) -> None:
        self._frames = 0
        # Of each codebook, the codes that come out next: as many as its delay.
        dtype = token_dtype(self.entries)
        self._late = [np.full(n, self.codebook_size, dtype) for n in self._delays]

    def _delayed(self, codes: Codes) -> Codes:
        made = np.empty(codes.shape, token_dtype(self.entries))
        for book, (row, late) in enumerate(zip(codes, self._late, strict=True)):
            queue = np.concatenate((late, row.astype(made.dtype)))
            made[book], self._late[book] = np.split(queue, [len(row)])
        return made


class Undelayer:
    """Tokens of the layout `delay` as they come -> codes.

    It may begin in the middle of a stream: the first frames are then those whose first codebook
    comes first.

    Args:
        from_start: Whether it begins where the stream does: then the pads are looked at, too.
    """

    def __init__(
        self, delays: tuple[int, ...], codebook_size: int, *, from_start: bool = True
    ) -> None:
        self.delays, self.codebook_size = delays, codebook_size
        self._longest = max(delays)
        self._waiting = np.zeros((len(delays), 0), token_dtype(codebook_size + 1))
        self._unseen = from_start

    def push(self, tokens: Codes) -> Codes:
        """(codebooks, columns) -> (codebooks, frames), as many as are whole now.

        Raises:
            InputError: Where a pad stands where a code should, or the other way round.
        """
        if tokens.ndim != 2 or len(tokens) != len(self.delays):
            raise InputError(
                f"got tokens of shape {tokens.shape}; wanted ({len(self.delays)}, columns)"
            )
        self._waiting = np.concatenate((self._waiting, tokens), axis=1)
        whole = max(0, self._waiting.shape[1] - self._longest)
        if self._unseen and whole:
            self._look_at_pads()
        codes = np.stack(
            [row[late : late + whole] for row, late in zip(self._waiting, self.delays, strict=True)]
        )
        if (codes >= self.codebook_size).any():
            raise InputError(
                f"a pad, {self.codebook_size}, stands where these delays have a code: "
                f"{', '.join(map(str, self.delays))} frames; were these tokens made with others?"
            )
        self._waiting = self._waiting[:, whole:]
        return codes.astype(np.uint16 if self.codebook_size <= 1 << 16 else np.uint32)

    def flush(self) -> int:
        """The stream ends. Returns how many frames had begun, and are not whole."""
        columns = np.arange(self._waiting.shape[1])
        begun = columns[None] - np.array(self.delays)[:, None] + 1
        begun[self._waiting >= self.codebook_size] = 0
        self._waiting = self._waiting[:, :0]
        return max(0, int(begun.max(initial=0)))

    def _look_at_pads(self) -> None:
        found = pads_before(self._waiting, self.codebook_size)
        if found != self.delays:
            raise InputError(
                f"these tokens have the delays {', '.join(map(str, found))}, by their pads; got "
                f"{', '.join(map(str, self.delays))}: say delay:{','.join(map(str, found))}"
            )
        self._unseen = False


def pads_before(tokens: Codes, codebook_size: int) -> tuple[int, ...]:
    """For each row, its pads before the first code; all of them where there is none."""
    codes = tokens < codebook_size
    return tuple(int(row.argmax()) if row.any() else tokens.shape[1] for row in codes)


class Unflattener:
    """Tokens of the layout `flat` as they come, cut anywhere -> codes of whole frames."""

    def __init__(self, codebooks: int, codebook_size: int) -> None:
        self.codebooks, self.codebook_size = codebooks, codebook_size
        self._waiting: Codes = np.zeros(0, np.uint16)  # codes of a frame that is not whole

    @property
    def waiting(self) -> int:
        """Codes that are there of a frame that is not whole."""
        return len(self._waiting)

    def push(self, tokens: Codes) -> Codes:
        """(1, tokens) -> (codebooks, frames), as many as are whole now.

        Raises:
            InputError: Where a token is not of the codebook that is due; then nothing has changed.
        """
        if tokens.ndim != 2 or tokens.shape[0] != 1:
            raise InputError(f"got tokens of shape {tokens.shape}; wanted 1 row")
        codes = _unflat(tokens[0], self.codebooks, self.codebook_size, self.waiting)
        codes = np.concatenate((self._waiting.astype(codes.dtype), codes))
        whole = len(codes) - len(codes) % self.codebooks
        self._waiting = codes[whole:].copy()
        return np.ascontiguousarray(codes[:whole].reshape(-1, self.codebooks).T)

    def flush(self) -> int:
        """The stream ends. Returns how many codes are left of a frame that is not whole."""
        left, self._waiting = self.waiting, self._waiting[:0]
        return left


def _unflat(tokens: Codes, codebooks: int, codebook_size: int, place: int) -> Codes:
    """Tokens, the first of them of codebook `place` -> codes."""
    books, codes = np.divmod(tokens.astype(np.int64), codebook_size)
    due = (place + np.arange(len(tokens))) % codebooks
    if (wrong := np.flatnonzero(books != due)).size:
        first = wrong[0]
        raise InputError(
            f"got token {int(tokens[first])}, of codebook {int(books[first])}, where one of "
            f"codebook {int(due[first])} is due: flat tokens of {codebooks} codebooks of "
            f"{codebook_size} entries come frame by frame, the first codebook first"
        )
    made: Codes = codes.astype(np.uint16 if codebook_size <= 1 << 16 else np.uint32)
    return made


def _check_codes(codes: Codes, codebook_size: int) -> None:
    if codes.ndim != 2 or codes.dtype.kind not in "ui":
        raise InputError(f"got {codes.dtype} of shape {codes.shape}; wanted codes, (books, frames)")
    if codes.size and not (0 <= int(codes.min()) and int(codes.max()) < codebook_size):
        raise InputError(
            f"got codes from {int(codes.min())} to {int(codes.max())}; wanted 0 to "
            f"{codebook_size - 1}"
        )
