"""Repositories of the Hugging Face Hub: what a model needs is fetched into its cache, no more."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from streamenc.addresses import HIDDEN, shown_address
from streamenc.checkpoints.configs import CONFIGS, read_config
from streamenc.checkpoints.selection import of_part, weights_among
from streamenc.checkpoints.weightfiles import ENDINGS, reason_of
from streamenc.errors import CheckpointError

log = logging.getLogger(__name__)


def fetch(name: str, revision: str | None, part: str) -> Path:
    """The folder or file of a Hub name, "ORG/REPO" or "ORG/REPO/INSIDE", in the Hub's cache.

    part  "both", or the side of the model that is wanted.

    Raises CheckpointError.
    """
    parts, shown = name.split("/"), shown_address(name)
    if len(parts) < 2 or not all(parts) or parts[0][0] in ".~" or ".." in parts:
        raise CheckpointError(
            f"{shown!r} is neither a file, a folder nor a Hub name such as kyutai/mimi; "
            "see `streamenc models`"
        )
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return _fetched("/".join(parts[:2]), PurePosixPath(*parts[2:]), revision, part)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = _without_token(reason_of(error))
        raise CheckpointError(
            f"{shown!r} is no local path and could not be fetched from the Hugging Face Hub: "
            f"{reason}. Check the name and the network, or give a local folder"
        ) from error


def _without_token(reason: str) -> str:
    """What went wrong, without the token that this machine asks the Hub with."""
    from huggingface_hub import get_token

    token = get_token()
    return reason.replace(token, HIDDEN) if token else reason


def _fetched(repo: str, inner: PurePosixPath, revision: str | None, part: str) -> Path:
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The HTTP library differs from release to release; what it raises has a base class in common
    # with the Hub's errors.
    bases = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    unreachable: tuple[type[Exception], ...] = (OSError, *bases)
    names_file = inner.suffix in ENDINGS
    inside = inner.parent if names_file else inner
    where = f"{repo}/{inside}" if inside.parts else repo

    def download(files: Sequence[str], *, here: bool = False) -> Path:
        """here: what was fetched before, without asking the Hub."""
        patterns = [str(inside / file) for file in files]
        found = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, local_files_only=here
        )
        return Path(found) / inside

    if names_file:
        return download([*CONFIGS, inner.name]) / inner.name
    try:
        listed = list_repo_files(repo, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except unreachable as error:
        try:
            folder = download(["*"], here=True)
        except LocalEntryNotFoundError:
            folder = Path(os.devnull)
        if folder.is_dir() and any(file.suffix in ENDINGS for file in folder.iterdir()):
            log.info("%s: taken from the cache, as the Hub does not answer", where)
            return folder
        raise OSError(reason_of(error)) from error
    files = {PurePosixPath(file).name for file in listed if PurePosixPath(file).parent == inside}
    weights = weights_among(files, where, lambda index: read_config(download([index]) / index))
    # Of two state dicts both are fetched: one alone would not tell of which part it is.
    if all(file.endswith(".jit") for file in weights):
        weights = of_part(weights, part)
    return download([*CONFIGS, *weights])
