"""JobPlan: the parts of a job, fixed before any of them is begun, so that each run does the same.

In the folder `plan` of the output:

    job.json      What was asked, what the models are, and the columns that are passed through.
    parts.jsonl   A Span on each line: the N-th becomes the N-th shard.
    kept/         What the input keeps, such as a listing.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa

from streamenc.bulk.inputs.datainput import Input, Span
from streamenc.bulk.inputs.looks import open_input
from streamenc.bulk.outputs.shard import sync_folder
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.errors import OutputError, UsageError
from streamenc.io.files.output import output_error

VERSION = 1
FOLDER, JOB, PARTS, KEPT = "plan", "job.json", "parts.jsonl", "kept"


class _Header(msgspec.Struct, frozen=True):
    version: int
    job: TokenizeJob
    models: tuple[ModelFacts, ...]
    columns: str
    parts: int


class JobPlan:
    """A plan that is there.

    Args:
        output: The folder of the set.

    Attributes:
        job, models, columns: As it was made for.
        parts: How many there are.

    Raises OutputError where there is none that can be read.
    """

    def __init__(self, output: Path) -> None:
        folder = output / FOLDER
        try:
            header = msgspec.json.decode((folder / JOB).read_bytes(), type=_Header)
            self.columns = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(header.columns)))
            self._lines = (folder / PARTS).read_bytes().splitlines()
        except (OSError, ValueError, msgspec.MsgspecError, pa.ArrowException) as error:
            raise OutputError(
                f"{folder} holds no plan that can be read ({error}): is {str(output)!r} a set of "
                "streamenc tokenize? Give another OUTPUT, or remove that folder"
            ) from error
        self.output, self._folder = output, folder
        self.job, self.models, self.parts = header.job, header.models, header.parts

    def span(self, part: int) -> Span:
        return msgspec.json.decode(self._lines[part], type=Span)

    def input(self) -> Input:
        """What reads its parts."""
        job = self.job
        return open_input(
            job.input_kind,
            job.input,
            self.models[0].takes,
            self._folder / KEPT,
            **job.input_options,
        )


def make_plan(output: Path, job: TokenizeJob, models: Sequence[ModelFacts]) -> JobPlan:
    """The plan of a job in its output: the one that is there, or a new one.

    Raises:
        UsageError: Where the output holds another job, or the input nothing.
        OutputError: Where it cannot be written.
    """
    if not (output / FOLDER).exists():
        _write(output, job, tuple(models))
    plan = JobPlan(output)
    _compare(plan, job, tuple(models))
    return plan


def _write(output: Path, job: TokenizeJob, models: tuple[ModelFacts, ...]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".plan-", dir=output))
    except OSError as error:
        raise output_error(str(output), error) from error
    try:
        (made / KEPT).mkdir()
        input = open_input(
            job.input_kind, job.input, models[0].takes, made / KEPT, **job.input_options
        )
        columns = base64.b64encode(input.columns().serialize().to_pybytes()).decode()
        count = 0
        with open(made / PARTS, "wb") as file:
            for span in input.spans(job.items_per_shard):
                file.write(msgspec.json.encode(span) + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        if not count:
            raise UsageError(f"there is nothing to tokenise in {job.input!r}")
        header = _Header(VERSION, job, models, columns, count)
        with open(made / JOB, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(header)))
            file.flush()
            os.fsync(file.fileno())
        made.chmod(0o755)
        try:
            os.rename(made, output / FOLDER)
        except OSError:
            if not (output / FOLDER).exists():
                raise
            shutil.rmtree(made)  # another run was first; whether it is the same job is seen next
        sync_folder(output)
    except BaseException as error:  # Ctrl-C among them: no half of a plan stays; passed on
        shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError):
            raise output_error(str(output), error) from error
        raise


def _compare(plan: JobPlan, job: TokenizeJob, models: tuple[ModelFacts, ...]) -> None:
    differing = list(_differences(plan.job, job))
    for there, asked in zip(plan.models, models, strict=False):
        if there.fingerprint != asked.fingerprint:
            differing.append(
                f"the weights of {asked.name}: {there.fingerprint} there, {asked.fingerprint} now"
            )
    if differing:
        raise UsageError(
            f"{str(plan.output)!r} holds another job; differing are {'; '.join(differing)}. Ask "
            "for the same to go on with it, or give another OUTPUT"
        )


def _differences(there: TokenizeJob, asked: TokenizeJob) -> Iterator[str]:
    for name in there.__struct_fields__:
        before, now = getattr(there, name), getattr(asked, name)
        if before != now:
            yield f"{name}: {before!r} there, {now!r} now"
