"""Private folders: what lies in them is believed, so nobody else may write there."""

from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path

ROOT = 0


def make_private(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for this user alone (0700).

    Raises OSError where it cannot be made, and NotOurs where it is there and is not private.
    """
    missing = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        missing.append(each)
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
    check_private(folder)


class NotOurs(OSError):
    """Something that others may have written; its text says what, why and what to do."""


def check_private(folder: Path) -> None:
    """Raises NotOurs where others may write in a folder, FileNotFoundError where there is none."""
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotOurs(f"{folder} is no folder")
    if reason := _why_not(found):
        raise NotOurs(f"{folder} {reason}: what lies there may be anybody's")


def read_private(path: Path) -> bytes:
    """A file that only this user, or root, can have written. A link is not followed.

    Raises NotOurs and OSError.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise NotOurs(f"{path} is no file")
        if reason := _why_not(found):
            raise NotOurs(f"{path} {reason}")
        return file.read()


def write_private(path: Path, content: bytes) -> None:
    """A new file for this user alone (0600). Raises FileExistsError, for a link too, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


def _why_not(found: os.stat_result) -> str:
    """Why others may have written something; "" where it is this user's, or root's, alone."""
    if not hasattr(os, "geteuid"):  # Windows has other rights, and a cache in the user's profile
        return ""
    user = os.geteuid()
    if found.st_uid not in (user, ROOT):
        return f"belongs to another user (number {found.st_uid}; this one is {user})"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by any user (chmod go-w)"
    if found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid, user):
        return "can be written by its group (chmod go-w)"
    return ""


def _is_own_group(group: int, user: int) -> bool:
    """Whether a group is a user's private one, as many systems make for each: of the same name,
    and without other members."""
    if importlib.util.find_spec("grp") is None:
        return False
    import grp
    import pwd

    try:
        name, found = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}
