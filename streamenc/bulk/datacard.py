"""The card of a set: what it is, for programs in `streamenc.json` and for people in `README.md`."""

from __future__ import annotations

import os
import platform
import tempfile
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.manifest import Finished, read_errors, read_manifests
from streamenc.bulk.outputs.rowcolumns import RowColumns
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.io.files.output import output_error

VERSION = 1
CARD, README = "streamenc.json", "README.md"
# In the header of each README that is made; where it is missing, the README is somebody's own.
OURS = "# Made by `streamenc tokenize`, which makes it anew until this line is taken out."
PACKAGES = ("streamenc", "torch", "numpy", "pyarrow", "av")
# Format -> which files `datasets` loads.
LOADED = {"parquet": "data/*.parquet", "webdataset": "data/*.tar"}
MEANINGS = {
    "key": "the item's name",
    "n_samples": "samples, or images, that were decoded",
    "rate": "of these a second",
    "seconds": "how long the item is",
    "flags": "what to know of it: gaps, damaged, empty, column:NAME, ...",
}


def write_card(output: Path) -> None:
    """Writes both, of what is finished of a set, or how much of it. The same set has the same card,
    but for the versions of what made it.

    A README without the line `OURS` is somebody's own, and stays.

    Raises OutputError where there is no plan, or it cannot be written.
    """
    plan = JobPlan(output)
    card = card_of(plan)
    _put(output / CARD, msgspec.json.format(msgspec.json.encode(card)) + b"\n")
    readme = output / README
    try:
        own = readme.exists() and OURS.encode() not in readme.read_bytes()
    except OSError as error:
        raise output_error(str(readme), error) from error
    if not own:
        _put(readme, _readme(card).encode())


def card_of(plan: JobPlan) -> dict[str, Any]:
    """What `streamenc.json` says. Raises OutputError."""
    job, lines = plan.job, read_manifests(plan.output)
    seconds = sum(line.seconds for line in lines.values())
    return {
        "version": VERSION,
        "complete": len(lines) == plan.parts,
        "shards": len(lines),
        "shards_planned": plan.parts,
        "items": sum(line.items for line in lines.values()),
        "seconds": round(seconds, 6),
        "hours": round(seconds / 3600, 4),
        "bytes": sum(file.bytes for line in lines.values() for file in line.files),
        "errors": _errors(plan.output, lines),
        "verified": sum(line.verified for line in lines.values()),
        "differing": sum(line.differing for line in lines.values()),
        "format": job.format,
        "layout": job.layout,
        "models": [
            {
                **msgspec.to_builtins(facts),
                "options": ask.options,
                "frames": (frames := sum(line.frames[at] for line in lines.values())),
                # Of grids, each frame is as many as it has places.
                "tokens": frames * facts.rows if facts.kind == "codes" and not facts.axes else None,
            }
            for at, (facts, ask) in enumerate(zip(plan.models, job.models, strict=True))
        ],
        "columns": _columns(plan),
        "input": {"address": without_secrets(job.input), "kind": job.input_kind},
        "versions": _versions(),
        "license": None,
        "source_license": None,
    }


def without_secrets(address: str) -> str:
    """An address without a password, a user and what is behind a question mark."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _errors(output: Path, lines: dict[int, Finished]) -> dict[str, int]:
    """How many there are of each kind, of items of finished parts."""
    found = Counter(each.error for each in read_errors(output) if each.part in lines)
    return dict(sorted(found.items()))


def _columns(plan: JobPlan) -> list[dict[str, str]]:
    columns = RowColumns(plan.models, plan.columns)
    meanings = dict(MEANINGS)
    for facts, names in zip(plan.models, columns.names, strict=True):
        meanings[names.tokens] = _of_tokens(facts)
        meanings[names.shape] = f"the shape of `{names.tokens}`: rows, frames, height, width"
        meanings[names.scales] = "a factor for the sound of each frame"
        meanings[names.gaps] = "frames that do not follow on from the one before them"
        meanings[names.frame_rate] = f"frames of `{names.tokens}` a second"
        meanings[names.model] = f"what made `{names.tokens}`, as `streamenc.load` takes it"
        meanings[names.fingerprint] = "of its weights and configuration"
    for passed in columns.passed:
        meanings[passed.field.name] = f"`{passed.source}` of the input"
    return [
        {"name": field.name, "type": str(field.type), "meaning": meanings[field.name]}
        for field in columns.schema
    ]


def _of_tokens(facts: ModelFacts) -> str:
    if facts.axes:
        return f"{facts.kind} of {facts.name} on a grid, one behind the other"
    if facts.kind == "features":
        return f"features of {facts.name}, (bins, frames): {facts.rows} bins"
    if facts.layout == "flat":
        return f"codes of {facts.name}, frame by frame; code c of codebook k is c + k * size"
    return f"codes of {facts.name}, (codebooks, frames): {facts.rows} of {facts.codebook_size}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def _readme(card: dict[str, Any]) -> str:
    header = ["---", OURS, "tags:", "- streamenc", "- tokens"]
    if card["format"] in LOADED:
        header += ["configs:", "- config_name: default", f"  data_files: {LOADED[card['format']]}"]
    errors = ", ".join(f"{count} {kind}" for kind, count in card["errors"].items()) or "none"
    figures = [
        ("shards", f"{card['shards']} of {card['shards_planned']}"),
        ("items", f"{card['items']}"),
        ("hours", f"{card['hours']}"),
        ("bytes", f"{card['bytes']}"),
        ("errors", errors),
        ("layout", card["layout"]),
        ("input", f"`{card['input']['address']}`"),
    ]
    body = [
        "---",
        "",
        "# Tokens",
        "",
        "" if card["complete"] else "**Not all of its shards are there yet.**\n",
        *_table(("", ""), figures),
        "",
        *_table(
            ("model", "column", "frames a second", "rows", "frames", "fingerprint"),
            [
                (
                    f"`{model['name']}`",
                    f"`{model['column']}`",
                    f"{float(Fraction(model['frame_rate'])):g}",
                    str(model["rows"]),
                    str(model["frames"]),
                    f"`{model['fingerprint']}`",
                )
                for model in card["models"]
            ],
        ),
        "",
        "Made by " + ", ".join(f"{name} {what}" for name, what in card["versions"].items()) + ".",
        "",
        "## Reading it",
        "",
        *_reading(card),
        "",
        "## Columns",
        "",
        *_table(
            ("column", "type", ""),
            [(f"`{each['name']}`", each["type"], each["meaning"]) for each in card["columns"]],
        ),
        "",
        "Errors are in `errors.jsonl`, and hashes of the files in `manifest.jsonl`; "
        "`streamenc verify` looks at all of it.",
        "",
    ]
    return "\n".join([*header, *body])


def _reading(card: dict[str, Any]) -> list[str]:
    ways = {
        "parquet": [
            'datasets.load_dataset("OUTPUT")',
            "duckdb.sql(\"select * from 'OUTPUT/data/*.parquet'\")",
            'polars.read_parquet("OUTPUT/data/*.parquet")',
        ],
        "webdataset": ['webdataset.WebDataset("OUTPUT/data/000000.tar").decode()'],
        "shar": ['lhotse.CutSet.from_shar(in_dir="OUTPUT/data")  # codes: frames first'],
        "arrows": ["tar xf OUTPUT/data/000000.tar; streamenc decode KEY.codes.arrows a.wav"],
        "npz": ['numpy.load("OUTPUT/data/000000.npz")["KEY/codes"]'],
    }[card["format"]]
    return ["```", *ways, "```", "", *_back(card)]


def _back(card: dict[str, Any]) -> list[str]:
    if card["format"] != "parquet":
        return []
    return [
        'By `tokens = streamenc.bulk.open("OUTPUT")` rows are arrays, and `tokens.decode(row)` '
        "is what a row sounds or looks like, where its model decodes.",
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes it."""
    try:
        descriptor, part = tempfile.mkstemp(prefix=".card-", dir=path.parent)
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except OSError as error:
        raise output_error(str(path), error) from error
