"""Attachment: a client at its stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from streamenc.errors import InputError
from streamenc.io.network.websocket.livemessages import FromServer
from streamenc.serve.streams.outbox import Sent

if TYPE_CHECKING:
    from streamenc.serve.streams.livestream import LiveStream


class Attachment:
    """An async iterator of what goes to the client: numbered messages in order, and in between what
    has no number: the info packet (bytes), acknowledgements, credits (bytes), goaway, errors.

    It ends where the stream ends, or another client takes over.

    Attributes:
        ended: Why it ended, a code of docs/server: "closed" where the client had wished it.
        message: That in words.
    """

    def __init__(self, stream: LiveStream) -> None:
        self.stream = stream
        self.ended = self.message = ""
        self._notices: dict[object, FromServer | bytes] = {}  # by what only the newest of goes
        self._described = False

    def credit(self, received: int, window: int) -> None:
        """The client has `received` numbered messages, and can hold `window` more.

        Raises:
            InputError: For more than were sent.
        """
        if self.ended == "taken_over":
            return  # who resumed has said what came
        try:
            self.stream.outbox.acknowledge(received, window)
        except ValueError as error:
            raise InputError(str(error)) from None

    def notify(self, notice: FromServer | bytes, instead: str = "") -> None:
        """What has no number goes to the client before what has one.

        Args:
            instead: Of what it is the newest: an earlier one that was not sent yet is left out.
        """
        self._notices[instead or object()] = notice
        self.stream.outbox.changed.set()

    def end(self, code: str, message: str) -> None:
        """Nothing more goes to this client."""
        if not self.ended:
            self.ended, self.message = code, message
            self.stream.outbox.changed.set()

    def detach(self) -> None:
        """The client is gone; its stream is kept for a while."""
        self.stream.detached(self)

    async def __aiter__(self) -> AsyncIterator[Sent | FromServer | bytes]:
        outbox = self.stream.outbox
        while True:
            outbox.changed.clear()
            while self._notices:
                yield self._notices.pop(next(iter(self._notices)))
            if self.ended and self.ended != "closed":
                return
            sent = outbox.peek()
            if sent is None:
                if self.ended and not outbox.waiting:
                    return
                await outbox.changed.wait()
                continue
            if not self._described and isinstance(sent.packet, bytes):
                self._described = True
                yield self.stream.info_packet
                continue  # meanwhile it may have been dropped, or gone to another client
            # Before it goes: its acknowledgement may be here before who sends it comes back.
            outbox.went()
            if sent.before:
                yield sent.before
            yield sent
