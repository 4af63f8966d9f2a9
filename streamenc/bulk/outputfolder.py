"""The folder of a set: whether a run may make it one, and a place in it for what is not whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamenc.bulk.inputs.filesystem import is_remote, local_name
from streamenc.bulk.jobplan import FOLDER
from streamenc.errors import UsageError
from streamenc.io.files.output import output_error

SCRATCH = "scratch"
# What a run that ended before it had a plan may have left, and what is nobody's data.
_OURS = re.compile(r"\..*|scratch|(manifest|errors)\b.*")
_PATTERN = re.compile(r"[*?\[{]")


def check_place(output: Path, input: str) -> None:
    """Makes the folder of a set, or sees that it is one.

    Raises:
        UsageError: Where other data are in it, or it is in the input.
        OutputError: Where it cannot be made.
    """
    if not is_remote(input):
        _check_outside(output, local_name(input))
    try:
        output.mkdir(parents=True, exist_ok=True)
        if (output / FOLDER).exists():
            return
        others = [name for name in sorted(os.listdir(output)) if not _OURS.fullmatch(name)]
    except OSError as error:
        raise output_error(str(output), error) from error
    if others:
        raise UsageError(
            f"{str(output)!r} holds {others[0]!r} and no plan of a set; give a folder that is "
            "empty, or not there yet"
        )


def _check_outside(output: Path, input: str) -> None:
    """Else the next listing of the input would find the set in it."""
    found = _PATTERN.search(input)
    if found and "**" not in input:
        return  # it finds files of one depth, by their names
    base = os.path.dirname(input[: found.start()]) if found else input
    if not os.path.isdir(base or "."):
        return
    root, place = os.path.realpath(base or "."), os.path.realpath(output)
    if os.path.commonpath((root, place)) == root:
        raise UsageError(
            f"OUTPUT {str(output)!r} is in INPUT {input!r}, which would then hold its own tokens; "
            "give a folder beside it"
        )


@contextmanager
def scratch_folder(output: Path, share: tuple[int, int]) -> Iterator[Path]:
    """A folder of this run alone, for what is not whole yet, for as long as the block lasts.

    What is in it is of a run that was killed: the manifest's lock says that there is no other.

    Raises OutputError.
    """
    scratch = output / SCRATCH / f"{share[0]:05d}-of-{share[1]:05d}"
    try:
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
    except OSError as error:
        raise output_error(str(scratch), error) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if share[1] == 1:  # else another run may be about to make a folder in it
            with suppress(OSError):
                scratch.parent.rmdir()
