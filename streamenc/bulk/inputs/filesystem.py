"""Files by address: of this machine, or in a store that fsspec opens."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from streamenc.addresses import shown_address
from streamenc.errors import MediaError, StreamencError, UsageError

# Stores whose files are bytes under a name; none that runs code or refers to other stores.
SCHEMES = frozenset(
    ("abfs", "abfss", "adl", "az", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https", "memory",
     "oss", "s3", "s3a", "sftp", "smb", "ssh", "webhdfs")
)  # fmt: skip
# What a store needs beside fsspec, where pip names it.
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
    "http": "fsspec[http]", "https": "fsspec[http]", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "adl": "adlfs", "oss": "ossfs", "sftp": "fsspec[sftp]",
    "ssh": "fsspec[sftp]", "smb": "fsspec[smb]", "hdfs": "fsspec[hdfs]",
}  # fmt: skip
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
# In a URL, ? begins a query.
_LOCAL_PATTERN, _REMOTE_PATTERN = re.compile(r"[*?\[]"), re.compile(r"[*\[]")


def scheme_of(address: str) -> str:
    """In small letters: "s3"; "" of a file of this machine.

    Raises UsageError for a scheme that is no store, such as that of a live stream.
    """
    found = _SCHEME.match(address)
    scheme = found[1].lower() if found else ""
    if scheme in ("", "file"):
        return ""
    if scheme not in SCHEMES or "::" in address:
        raise UsageError(
            f"{shown_address(address)!r} is in no store that data sets are read from; known are "
            f"files, and {', '.join(sorted(SCHEMES))}"
        )
    return scheme


def is_remote(address: str) -> bool:
    """Whether fsspec has to open it. Raises UsageError as `scheme_of`."""
    return scheme_of(address) != ""


def local_name(address: str) -> str:
    """The path of a file of this machine, also of `file://`."""
    return address.removeprefix("file://")


def joined(folder: str, name: str) -> str:
    """The address of `name`, as it stands in a file in `folder`."""
    if _SCHEME.match(name):
        return name
    if _SCHEME.match(folder):
        return name if os.path.isabs(name) else f"{folder.rstrip('/')}/{name}"
    return os.path.join(folder, name)


def parent(address: str) -> str:
    """The folder that an address lies in."""
    if _SCHEME.match(address):
        return address.rpartition("/")[0]
    return os.path.dirname(address)


def is_pattern(address: str) -> bool:
    """Whether it stands for several files, and is no name of one. Raises UsageError."""
    if is_remote(address):
        return bool(_REMOTE_PATTERN.search(address))
    return bool(_LOCAL_PATTERN.search(address)) and not os.path.exists(local_name(address))


def is_folder(address: str) -> bool:
    """Raises UsageError and MediaError."""
    if not is_remote(address):
        return os.path.isdir(local_name(address))
    with _words(address):
        store, path = _store(address)
        return bool(store.isdir(path))


def exists(address: str) -> bool:
    """Raises UsageError and MediaError."""
    if not is_remote(address):
        return os.path.exists(local_name(address))
    with _words(address):
        store, path = _store(address)
        return bool(store.exists(path))


def size_of(address: str) -> int:
    """In bytes. Raises UsageError, and MediaError where nobody knows."""
    with _words(address):
        if not is_remote(address):
            return os.stat(local_name(address)).st_size
        store, path = _store(address)
        size = store.size(path)
    if size is None:
        raise MediaError(f"{shown_address(address)!r} does not say how large it is")
    return int(size)


def opened(address: str) -> BinaryIO:
    """A file for reading, which can seek. Raises UsageError and MediaError."""
    with _words(address):
        if not is_remote(address):
            return open(local_name(address), "rb")
        store, path = _store(address)
        file: BinaryIO = store.open(path, "rb")
        return file


@contextmanager
def reading(address: str) -> Iterator[None]:
    """What a store raises while a file of it is read, as MediaError."""
    with _words(address):
        yield


def names_in(folder: str) -> Iterator[tuple[str, bool]]:
    """What lies in a folder, in order: (name, whether it is a folder).

    Raises UsageError and MediaError.
    """
    with _words(folder):
        if not is_remote(folder):
            with os.scandir(local_name(folder)) as entries:
                found = [(entry.name, entry.is_dir()) for entry in entries]
        else:
            store, path = _store(folder)
            listed = store.ls(path, detail=True)
            found = [
                (each["name"].rstrip("/").rpartition("/")[2], each["type"] == "directory")
                for each in listed
                if each["name"].rstrip("/") != path.rstrip("/")
            ]
    yield from sorted(found)


def root_of(pattern: str) -> str:
    """The folder that all files lie in which a pattern stands for; "" or with a / at its end."""
    wild = (_REMOTE_PATTERN if is_remote(pattern) else _LOCAL_PATTERN).search(pattern)
    assert wild
    return pattern[: pattern.rfind("/", 0, wild.start()) + 1]


def matching(pattern: str) -> list[str]:
    """The files that a pattern stands for, in order, named from `root_of` on; ** is all folders.

    Raises UsageError and MediaError.
    """
    root = root_of(pattern)
    with _words(pattern):
        if not is_remote(pattern):
            folder = local_name(root)
            found = glob.iglob(local_name(pattern)[len(folder) :], root_dir=folder, recursive=True)
            return sorted((name for name in found if os.path.isfile(folder + name)), key=_order)
        store, path = _store(pattern)
        named = store.glob(path, detail=True)
        before = len(_store(root)[1].rstrip("/")) + 1
        files = (name[before:] for name, each in named.items() if each["type"] == "file")
        return sorted(files, key=_order)


def _order(name: str) -> list[str]:
    """As a walk through folders has it."""
    return name.split("/")


def _store(address: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    scheme = scheme_of(address)
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(
            f"{shown_address(address)!r} is read by fsspec: pip install 'streamenc[bulk]'"
        ) from error
    try:
        store, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        needed = PACKAGES.get(scheme, "what fsspec needs for it")
        raise UsageError(
            f"{shown_address(address)!r} cannot be read ({error}): pip install '{needed}'"
        ) from error
    return store, path


@contextmanager
def _words(address: str) -> Iterator[None]:
    shown = shown_address(address)
    try:
        yield
    except StreamencError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"there is no file {shown!r}") from error
    except OSError as error:
        reason = error.strerror or str(error).replace(address, shown)
        raise MediaError(f"cannot read {shown!r}: {reason}") from error
    except Exception as error:  # of the libraries of stores, which raise their own
        if not is_remote(address):
            raise
        reason = f"{type(error).__name__}: {error}".replace(address, shown)
        raise MediaError(f"cannot read {shown!r}: {reason}") from error
