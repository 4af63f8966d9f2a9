"""`check_set`: whether a set is whole, and holds what its plan and manifests say."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.manifest import Finished, all_lines, forget_parts, read_errors
from streamenc.bulk.outputs.rowcolumns import names_of
from streamenc.bulk.outputs.shard import READ_BYTES, Written
from streamenc.bulk.readback.roworder import Run
from streamenc.bulk.readback.rowsource import RowSource, SetShard
from streamenc.bulk.readback.shardrows import READERS, RowDict
from streamenc.bulk.readback.tokencheck import TokenCheck
from streamenc.errors import MediaError, StreamencError

SAMPLE_ROWS = 16
MOST_NAMED = 20  # of what there may be thousands of
AGAIN = (
    "give --repair, which takes the part out of the manifest, and run `streamenc tokenize` again"
)
# What a set has beside its data; `datasets` and the Hub keep theirs in names with a dot.
OWN = ("README.md", "streamenc.json", "data", "plan", "scratch")


class Problem(msgspec.Struct, frozen=True):
    """Something that is not as it should be.

    Attributes:
        file: Of the set, relative to its folder.
        what: In words.
        remedy: What to do about it.
        part: Which the next run can make anew; None where that helps nothing.
    """

    file: str
    what: str
    remedy: str
    part: int | None = None


class SetReport(msgspec.Struct):
    """What was looked at, and what was found.

    Attributes:
        parts, finished: How many there are, and have a line.
        files, bytes: That were read and hashed.
        rows, seconds: Whose tokens were looked at, and of how much sound or video.
        lengths: Rows whose number of frames was compared with their samples.
        decoded: Rows that were decoded.
        problems: What is wrong.
        left_out: What was not looked at, and why.
        repaired: Parts that the next run makes anew.
    """

    output: str
    parts: int = 0
    finished: int = 0
    files: int = 0
    bytes: int = 0
    rows: int = 0
    seconds: float = 0.0
    lengths: int = 0
    decoded: int = 0
    problems: list[Problem] = []
    left_out: list[str] = []
    repaired: list[int] = []

    @property
    def good(self) -> bool:
        return not self.problems


def check_set(
    output: str | os.PathLike[str],
    *,
    sample: int = SAMPLE_ROWS,
    repair: bool = False,
    device: str = "cpu",
    tell: Callable[[SetReport, int], None] | None = None,
) -> SetReport:
    """Reads all of a set: each part of the plan there once, files, hashes, counts, keys, tokens.

    Memory grows by 8 bytes for each row.

    Args:
        output: Its folder.
        sample: So many rows, spread over the set, are decoded; 0 loads no model, and then the
            number of frames is not compared with the samples either.
        repair: Takes parts out of the manifests that are not what they say, so that the next run
            makes them anew.
        device: Where models are loaded to.
        tell: Called with what is known so far and the bytes there are, after each part.

    Raises:
        OutputError: Where there is no set, or its manifests cannot be read.
        UsageError: Where a run writes what is to be repaired.
    """
    return _Check(JobPlan(Path(output)), sample, device, tell or _nobody).run(repair)


class _Check:
    def __init__(
        self, plan: JobPlan, sample: int, device: str, tell: Callable[[SetReport, int], None]
    ) -> None:
        self._plan, self._output, self._tell = plan, plan.output, tell
        self._lines = list(all_lines(plan.output))
        self._report = SetReport(str(plan.output), plan.parts)
        self._keys: list[np.ndarray] = []  # of each part that was read, 8 bytes of each key
        self._key_parts: list[Finished] = []
        self._tokens = [
            TokenCheck(model, ask, device if sample else None)
            for model, ask in zip(plan.models, plan.job.models, strict=True)
        ]
        rows = sum(line.items for line in self._lines)
        sample = min(sample, rows)
        self._sampled = {rows * (2 * number + 1) // (2 * sample) for number in range(sample)}

    def run(self, repair: bool) -> SetReport:
        report, total = self._report, sum(f.bytes for line in self._lines for f in line.files)
        readable = self._plan.job.format in READERS
        if not readable:
            report.left_out.append(f"rows: shards of {self._plan.job.format} are not read back")
        self._check_parts()
        errors = Counter(error.part for error in read_errors(self._output))
        first = 0
        for line in self._lines:
            whole = [self._check_file(line, file) for file in line.files]
            if errors[line.part] != line.errors:
                what = f"{errors[line.part]} errors of the part; the manifest has {line.errors}"
                self._add("errors.jsonl", what, line.part)
            if readable and all(whole):
                self._check_rows(line, first)
            first += line.items
            self._tell(report, total)
        self._check_keys()
        self._check_strays()
        report.left_out += [why for tokens in self._tokens for why in tokens.left_out]
        report.lengths = sum(tokens.lengths for tokens in self._tokens)
        report.decoded = sum(tokens.decoded for tokens in self._tokens)
        bad = sorted({problem.part for problem in report.problems if problem.part is not None})
        if repair and bad and forget_parts(self._output, set(bad)):
            report.repaired = bad
        return report

    def _check_parts(self) -> None:
        plan, report = self._plan, self._report
        times = Counter(line.part for line in self._lines)
        report.finished = sum(0 <= part < plan.parts for part in times)
        for part, count in sorted(times.items()):
            if not 0 <= part < plan.parts:
                self._add("manifest.jsonl", f"part {part} is not in the plan", part)
            elif count > 1:
                self._add("manifest.jsonl", f"part {part} has {count} lines", part)
        if missing := plan.parts - report.finished:
            what = f"{missing} of {plan.parts} parts are not finished"
            self._add("manifest.jsonl", what, remedy="run `streamenc tokenize` again")

    def _check_file(self, line: Finished, file: Written) -> bool:
        """Whether it is what the manifest says."""
        path, digest, size = self._output / file.name, hashlib.sha256(), 0
        try:
            with open(path, "rb") as content:
                while some := content.read(READ_BYTES):
                    digest.update(some)
                    size += len(some)
        except OSError as error:
            self._add(file.name, f"it cannot be read: {error.strerror or error}", line.part)
            return False
        self._report.files += 1
        self._report.bytes += size
        if size != file.bytes:
            self._add(file.name, f"it has {size} bytes; it had {file.bytes}", line.part)
        elif digest.hexdigest() != file.sha256:
            self._add(file.name, "its content is another than was written: SHA-256", line.part)
        else:
            return True
        return False

    def _check_rows(self, line: Finished, first: int) -> None:
        name, report = line.files[0].name, self._report
        frames, keys, seconds = [0] * len(self._tokens), [], 0.0
        try:
            for number, row in enumerate(self._rows(line), first):
                keys.append(_hashed(row["key"]))
                seconds += row["seconds"] or 0.0
                for at, tokens in enumerate(self._tokens):
                    frames[at] += tokens.frames(row)
                    for what in tokens.check(row, decode=number in self._sampled):
                        self._add(name, f"{row['key']}: {what}", line.part)
        except (StreamencError, KeyError) as error:
            self._add(name, f"its rows cannot be read: {error}", line.part)
            return
        report.rows += len(keys)
        report.seconds += seconds
        self._keys.append(np.array(keys, np.uint64))
        self._key_parts.append(line)
        if len(keys) != line.items:
            self._add(name, f"{len(keys)} rows; the manifest has {line.items}", line.part)
        elif tuple(frames) != line.frames:
            self._add(name, f"{frames} frames; the manifest has {list(line.frames)}", line.part)
        elif abs(seconds - line.seconds) > 1e-3 + 1e-6 * line.seconds:
            self._add(name, f"{seconds:.3f} s; the manifest has {line.seconds:.3f}", line.part)

    def _rows(self, line: Finished) -> Iterator[RowDict]:
        columns = ["key", "n_samples", "rate", "seconds"]
        for model in self._plan.models:
            names = names_of(model)
            columns += filter(None, (names.tokens, names.gaps, names.scales))
        return self._source(line, tuple(columns)).read([Run(0, 0, line.items)])

    def _source(self, line: Finished, columns: tuple[str, ...]) -> RowSource:
        files, hashes = zip(*((file.name, file.sha256) for file in line.files), strict=True)
        job = self._plan.job
        shard = SetShard(files, line.items, hashes)
        return RowSource(self._output, job.format, (shard,), self._plan.models, "", columns)

    def _check_keys(self) -> None:
        """That no key is there twice; those whose hashes are equal are looked at once more."""
        if not self._keys:
            return
        hashes = np.sort(np.concatenate(self._keys))
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(twice):
            return
        seen: dict[str, str] = {}
        found = 0
        for hashed, line in zip(self._keys, self._key_parts, strict=True):
            if not np.isin(hashed, twice).any():
                continue
            name = line.files[0].name
            for row in self._source(line, ("key",)).read([Run(0, 0, line.items)]):
                key = row["key"]
                if _hashed(key) not in twice:
                    continue
                if key in seen:
                    found += 1
                    if found <= MOST_NAMED:
                        what = f"the key {key!r} is in {seen[key]} already"
                        self._add(name, what, remedy="two items of the input have one name")
                seen.setdefault(key, name)
        if found > MOST_NAMED:
            self._add("data", f"{found - MOST_NAMED} more keys are there twice", remedy="")

    def _check_strays(self) -> None:
        listed = {file.name for line in self._lines for file in line.files}
        strays = []
        for path in sorted(self._output.iterdir()):
            name = path.name
            own = name in OWN or name.startswith((".", "manifest", "errors"))
            strays += [] if own else [name]
        data = self._output / "data"
        if data.is_dir():
            there = sorted(path.relative_to(self._output).as_posix() for path in data.iterdir())
            strays += [name for name in there if name not in listed]
        for name in strays[:MOST_NAMED]:
            remedy = "finish the set, if it is of a part in hand; else remove it"
            self._add(name, "no manifest names it", remedy=remedy)
        if len(strays) > MOST_NAMED:
            what = f"{len(strays) - MOST_NAMED} more files that no manifest names"
            self._add("data", what, remedy="remove them")

    def _add(self, file: str, what: str, part: int | None = None, remedy: str = AGAIN) -> None:
        self._report.problems.append(Problem(file, what, remedy, part))


def _hashed(key: str) -> int:
    if not isinstance(key, str):
        raise MediaError(f"a row has the key {key!r}")
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _nobody(report: SetReport, total: int) -> None:
    """Whom nobody asks."""
