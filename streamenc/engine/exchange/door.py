"""Door: how batches of chunks come to an engine, and how batches of answers leave it.

Whoever serves many streams, an event loop or another process, hands over the chunks of many seats
in one call, from any thread, and gets their answers in one call a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from streamenc.engine.seats import Seat

# (seat, tag, what came, the error): the tag is the caller's own of that chunk or call, the seat
# None for a call of the engine itself. What came is None where there is an error.
Answer: TypeAlias = "tuple[Seat | None, Any, Any, BaseException | None]"


class Outlet(Protocol):
    """Where answers go: an event loop, the connection of a client."""

    def deliver(self, answers: list[Answer]) -> None:
        """Takes all answers of a turn that are for this outlet.

        Called on the engine's worker, which does nothing else meanwhile: it may not block, nor
        raise. For each chunk and call there is one answer, in the order of a seat's calls, whatever
        happens: also once a seat or the engine was closed.

        Outputs are rows of memory that nobody writes again, which they may share with others: who
        keeps one for long copies it.
        """


class Batch(NamedTuple):
    """Chunks of several seats; of a seat that occurs twice, in this order.

    Attributes:
        seats: Whose they are.
        chunks: As many, each as `Session.step` takes it; or one array (seats, channels, items). An
            array's memory may be used anew at once; a tensor's, once its answer came.
        tags: As many, of any kind; they come back with the answers.
        outlet: Where the answers go.
    """

    seats: Sequence[Seat]
    chunks: Sequence[Any]
    tags: Sequence[Any]
    outlet: Outlet
