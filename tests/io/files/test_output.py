from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from streamenc.errors import OutputError
from streamenc.io.files.output import WholeFile, open_output, output_error


def test_files_are_replaced_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"two"):
        with open_output(str(path)) as file:
            file.write(content)
    with pytest.raises(OutputError, match="overwrite=true"):
        open_output(str(path), overwrite=False)
    assert path.read_bytes() == b"two"
    with open_output(str(tmp_path / "b.bin"), overwrite=False) as file:
        file.write(b"new")


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no folder '.*/no'; create it first"):
        open_output(str(tmp_path / "no" / "a.bin"))
    with pytest.raises(OutputError, match="name a file in it"):
        open_output(str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"no folder '.*/file'"):
        open_output(str(tmp_path / "file" / "a.bin"))
    assert "disk is full" in str(output_error("a", OSError(errno.ENOSPC, "No space left")))
    assert "Input/output error" in str(output_error("a", OSError(errno.EIO, "Input/output error")))


def test_a_file_that_is_useless_before_its_end_has_its_name_then(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    whole = WholeFile(str(path))
    whole.file.write(b"after")
    assert path.read_bytes() == b"before"
    whole.complete()
    assert path.read_bytes() == b"after"
    with pytest.raises(OutputError, match="overwrite=true"):
        WholeFile(str(path), overwrite=False)
    given_up = WholeFile(str(path))
    given_up.discard()
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_such_a_file_is_no_folder_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is a pipe or device"):
        WholeFile(str(tmp_path / "pipe"))
    with pytest.raises(OutputError, match="name a file in it"):
        WholeFile(str(tmp_path))
    with pytest.raises(OutputError, match="create it first"):
        WholeFile(str(tmp_path / "no" / "a.bin"))
