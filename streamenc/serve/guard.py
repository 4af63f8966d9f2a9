"""Guard: who may come in: keys, origins, and how many streams one key may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


class Refused(Exception):
    """A request that is not let in: an HTTP status, a word for programs, and a sentence."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Admission:
    """Who was let in.

    Attributes:
        owner: The name of its key; "" where none is needed.
    """

    owner: str = ""


class Guard:
    """Looks at each request before anything is done for it."""

    def admit(self, connection: HTTPConnection) -> Admission:
        """Raises Refused."""
        return Admission()
