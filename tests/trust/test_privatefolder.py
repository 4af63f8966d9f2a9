from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamenc.trust.privatefolder import (
    NotOurs,
    check_private,
    make_private,
    read_private,
    write_private,
)

if not hasattr(os, "geteuid"):
    pytest.skip("rights are those of POSIX", allow_module_level=True)


def of_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another user had made it, who is not root."""
    if os.geteuid() == 0:
        os.chown(path, 4242, 4242)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_made_is_for_this_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    before = os.umask(0)
    try:
        make_private(folder)
        make_private(folder)
        write_private(folder / "x", b"1")
    finally:
        os.umask(before)
    assert [mode(each) for each in (folder, folder.parent, folder / "x")] == [0o700, 0o700, 0o600]
    assert read_private(folder / "x") == b"1"
    with pytest.raises(FileExistsError):
        write_private(folder / "x", b"2")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(folder / "link", b"2")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("rights", "who"), [(0o777, "any user"), (0o770, "its group")])
def test_where_others_may_write_nothing_is_believed(tmp_path: Path, rights: int, who: str) -> None:
    folder, file = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    file.write_bytes(b"planted")
    if os.geteuid() == 0:
        os.chown(folder, 0, 4242)
        os.chown(file, 0, 4242)
    for each in (folder, file):
        each.chmod(rights)
    if who == "its group" and os.geteuid() != 0:
        pytest.skip("the group may be this user's own")
    for refused in (
        lambda: check_private(folder),
        lambda: make_private(folder),
        lambda: read_private(file),
    ):
        with pytest.raises(NotOurs, match=f"can be written by {who}.*chmod go-w"):
            refused()
    for each in (folder, file):
        each.chmod(rights & ~0o022)
    check_private(folder)
    assert read_private(file) == b"planted"


def test_what_is_anothers_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "a", tmp_path / "b"
    folder.mkdir(mode=0o755)
    file.write_bytes(b"planted")
    for each in (folder, file):
        of_another(each, monkeypatch)
    for refused in (lambda: make_private(folder), lambda: read_private(file)):
        with pytest.raises(NotOurs, match="belongs to another user"):
            refused()


def test_links_pipes_and_files_are_no_private_files_or_folders(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic links|link"):
        read_private(tmp_path / "link")
    with pytest.raises(NotOurs, match="is no file"):
        read_private(tmp_path / "pipe")
    with pytest.raises(NotOurs, match="is no folder"):
        check_private(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        check_private(tmp_path / "none")
