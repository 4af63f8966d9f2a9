"""PartBoard: who does which part, what came of it, and what it died of; one for all workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from streamenc.bulk.partwork import Progress

MOST_BEGUN = 12  # times, of one part, before it is given up
DEATHS = 2  # with an item in hand, after which it is an error
REASON = "the process that took it ended, or its machine, for the second time"


@dataclass(frozen=True, slots=True)
class Order:
    """How a part is to be done.

    Attributes:
        stopped: It is not to be begun.
        skip: Keys of items that are not to be tried, and why.
        singly: Whether items are taken one by one, each said before it is opened.
        given_up: Why not to try again; "" otherwise.
    """

    stopped: bool = False
    skip: dict[str, str] = field(default_factory=dict)
    singly: bool = False
    given_up: str = ""


@dataclass(slots=True)
class News:
    """What happened since it was asked last.

    Attributes:
        begun: Parts.
        lost: Parts whose worker is gone, each as often; they were begun anew.
        progress: In the order in which it came.
        peak_bytes: Memory of the largest worker at its largest.
    """

    begun: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass(slots=True)
class _Part:
    begun: int = 0
    key: str = ""
    deaths: Counter[str] = field(default_factory=Counter)


class PartBoard:
    """Remembers the parts in hand, and no other; on the machine of the run, which asks for news."""

    def __init__(self) -> None:
        self._in_hand: dict[int, _Part] = {}
        self._news = News()
        self._stop = 0

    def begin(self, part: int) -> Order:
        """A worker is about to do a part, maybe for one that is gone."""
        if self._stop:
            return Order(stopped=True)
        known = self._in_hand.setdefault(part, _Part())
        known.begun += 1
        self._news.begun.append(part)
        if known.begun > 1:
            # What it had told belongs to what is done anew.
            self._news.progress = [each for each in self._news.progress if each.part != part]
            self._news.lost.append(part)
        if known.key:
            known.deaths[known.key] += 1
            known.key = ""
        if known.begun > MOST_BEGUN:
            return Order(
                given_up=f"part {part} was begun {MOST_BEGUN} times, and each time its worker "
                "ended, or its machine, before it was done; where memory runs out, give workers "
                "more of it (concurrency=...), or parts fewer items"
            )
        skip = {key: REASON for key, count in known.deaths.items() if count >= DEATHS}
        return Order(skip=skip, singly=known.begun > 1)

    def at(self, part: int, key: str) -> int:
        """An item is about to be opened. As `told`."""
        self._in_hand[part].key = key
        return self._stop

    def told(self, progress: Progress, peak_bytes: int) -> int:
        """Some of a part is done.

        Returns:
            0; 1 where no part is to be begun; 2 where those in hand are to be broken off.
        """
        self._news.progress.append(progress)
        self._news.peak_bytes = max(self._news.peak_bytes, peak_bytes)
        return self._stop

    def done(self, part: int) -> None:
        """A part is written, or broken off."""
        self._in_hand.pop(part, None)

    def stop(self, level: int) -> None:
        """As `told` returns it from now on."""
        self._stop = max(self._stop, level)

    def news(self) -> News:
        made, self._news = self._news, News()
        return made
