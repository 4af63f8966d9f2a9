"""`streamenc verify` of a set of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.program import Done
from tests.support.tokensets import make_set

Call = Callable[..., Done]


def test_a_set_is_checked(call: Call, tmp_path: Path) -> None:
    output = make_set(tmp_path / "set", (2, 3))
    done = call("verify", output, "--sample", "0", "--json", tmp_path / "found.json")
    assert done.code == 0, done.error
    assert "2 of 2 parts, 2 files" in done.out and "All is as it should be." in done.out
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == 5

    (output / "data" / "000001.parquet").write_bytes(b"x")
    done = call("verify", output, "--sample", "0")
    assert done.code == 1
    assert "data/000001.parquet" in done.out and "give --repair" in done.out
    done = call("verify", output, "--sample", "0", "--repair")
    assert done.code == 1 and "1 parts are out of the manifest now" in done.out


def test_options_of_a_set_are_of_no_model(call: Call) -> None:
    for option in (("--sample", "3"), ("--repair",)):
        done = call("verify", "nano", *option)
        assert done.code == 2 and "of a set of tokens; 'nano' is none" in done.error
