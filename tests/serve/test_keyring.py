"""Keys of files and of the variable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from streamenc.errors import UsageError
from streamenc.serve.keyring import Keyring, keys_of_variable, read_keys

ONE, OTHER = "0123456789abcdef", "fedcba9876543210_-"


def written(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_keys_of_a_file(tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path, f"# mine\n\nrobot {ONE}\n{OTHER}\nrobot {ONE}\n"))
    assert [key.owner for key in keys] == ["robot", f"key-{keys[1].digest[:8]}"]
    assert ONE not in repr(keys) and OTHER not in repr(keys)
    ring = Keyring(keys)
    assert ring.owner(ONE) == "robot"
    assert ring.owner(OTHER) == keys[1].owner
    assert ring.owner(ONE[:-1]) is ring.owner("") is ring.owner(ONE + "0") is None
    assert ring.owner("\udcff" * 20) is None
    assert ring and not Keyring()


def test_keys_of_the_variable() -> None:
    keys = keys_of_variable(f"robot {ONE},{OTHER}\n")
    assert [Keyring(keys).owner(key) for key in (ONE, OTHER)] == [key.owner for key in keys]
    assert keys_of_variable("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short", "key 1 has a key of 5 letters; wanted 16 to 512"),
        (f"{ONE}\na b {OTHER}", "key 2 has 3 words"),
        (f"näme {ONE}", "a name of other letters"),
        (f"{ONE}é", "letters that do not travel"),
        ("# none", "holds no key"),
        ("k" * 513, "a key of 513 letters"),
    ],
)
def test_what_is_no_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_keys(written(tmp_path, text))
    assert ONE not in str(caught.value) and OTHER not in str(caught.value)


def test_files_that_do_not_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="cannot read the keys"):
        read_keys(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        read_keys(tmp_path / "binary")
    path = written(tmp_path, ONE)
    with caplog.at_level(logging.WARNING):
        read_keys(path)
        assert not caplog.records
        path.chmod(0o644)
        read_keys(path)
    assert "can be read by others" in caplog.text and ONE not in caplog.text
