"""Files of a server's keys, and what stands in $STREAMENC_KEYS."""

from __future__ import annotations

from pathlib import Path
from random import Random

from streamenc.errors import UsageError
from streamenc.serve.keyring import Keyring, keys_of_variable, read_keys
from tests.campaign.target import mutated

KEY = "k3y_" + "a" * 20
SEEDS = (
    f"# of the house\n{KEY}\nanna {KEY}1\n\nbert {KEY}2\n".encode(),
    f"anna {KEY}\n".encode() * 2000,
    f"{KEY}é\n{'x' * 600}\n\x1b[2J {KEY}\n".encode(),
)


class KeyFiles:
    """A file of keys, and the same as the variable; whose keys they are; nothing shows them."""

    seconds, peak_bytes = 1.0, 64 << 20

    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys"
        self._path.touch(0o600)

    def case(self, rng: Random) -> bytes:
        return mutated(rng.choice(SEEDS), rng)

    def take(self, data: bytes) -> None:
        self._path.write_bytes(data)
        for read in (
            lambda: read_keys(self._path),
            lambda: keys_of_variable(data.decode(errors="surrogateescape")),
        ):
            try:
                keys = read()
            except UsageError as error:
                assert KEY not in str(error), "a key is shown"
                raise
            Keyring(keys).owner(data.decode(errors="replace"))


def target(folder: Path) -> KeyFiles:
    return KeyFiles(folder)
