"""TokenSet: a set of tokens that was made, read back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.manifest import Finished, read_manifests
from streamenc.bulk.readback.roworder import BUFFER_ROWS, RowOrder, Run, checked_share
from streamenc.bulk.readback.rowsource import RowSource, SetShard
from streamenc.bulk.readback.rowwalk import Place, walk
from streamenc.bulk.readback.shardrows import RowDict
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from streamenc.bulk.readback.rowdecoder import RowDecoder
    from streamenc.bulk.readback.torchrows import TorchRows


class TokenSet:
    """The finished parts of a set, in their order; see `open_set`.

    Iteration gives rows as dicts: `row["key"]`, tokens as arrays (codebooks, frames), and all other
    columns as Python has them.

    Attributes:
        output: Its folder.
        models: What made its tokens, each with the name of its column.
        layout: In which codes come.
        parts: How many there are once it is finished.
        finished: How many are.
        seconds: Of sound or video in all its rows.
    """

    def __init__(
        self,
        plan: JobPlan,
        finished: Sequence[Finished],
        source: RowSource,
        order: RowOrder,
        share: tuple[int, int] | None,
    ) -> None:
        self.output, self.models = plan.output, plan.models
        self.layout = source.wanted or plan.job.layout
        self.parts, self.finished = plan.parts, len(finished)
        self.seconds = sum(line.seconds for line in finished)
        self._plan, self._source, self._order, self._share = plan, source, order, share
        self._decoders: dict[str, RowDecoder] = {}

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    def __len__(self) -> int:
        """Rows that iteration gives: all, or those of this rank where one was given."""
        first, behind = self._range()
        return behind - first

    def __iter__(self) -> Iterator[RowDict]:
        for row, _ in walk(self._source, self._order, 0, self._range(), Place()):
            yield row

    def torch(
        self,
        *,
        shuffle: bool | None = None,
        seed: int | None = None,
        rank: int | None = None,
        world: int | None = None,
        buffer_rows: int = BUFFER_ROWS,
        even: bool = False,
    ) -> TorchRows:
        """The rows as a torch IterableDataset, for a DataLoader with any number of workers.

        Args:
            shuffle: As `open` has it, if not given.
            seed: As `open` has it, if not given.
            rank: As `open` has it, or as torch.distributed knows it where it is initialised.
            world: The same of how many there are.
            buffer_rows: How many rows are mixed with each other, in memory, where they are
                shuffled.
            even: Leaves the last rows of an epoch out, fewer than there are workers on all ranks,
                so that all have the same number of rows, and of batches.

        Raises UsageError for a number that is none.
        """
        from streamenc.bulk.readback.torchrows import TorchRows

        order = RowOrder(
            self._order.shuffle if shuffle is None else shuffle,
            self._order.seed if seed is None else seed,
            buffer_rows,
            even,
        )
        return TorchRows(self._source, order, checked_share(rank, world) or self._share)

    def datasets(self, *, streaming: bool = False) -> Any:
        """The rows as a `datasets.Dataset`, or as an `IterableDataset` where `streaming`.

        Raises UsageError where the package `datasets` is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            raise UsageError("this wants the package datasets: pip install datasets") from error
        source = self._source
        if source.format == "parquet" and not source.wanted and len(self):
            return datasets.load_dataset(
                "parquet",
                data_files=[str(source.folder / shard.files[0]) for shard in source.shards],
                split="train",
                streaming=streaming,
                columns=None if source.columns is None else list(source.columns),
            )
        kind = datasets.IterableDataset if streaming else datasets.Dataset
        return kind.from_generator(
            _rows_of, gen_kwargs={"source": source, "shards": list(range(len(source.shards)))}
        )

    def decode(self, row: RowDict, column: str | None = None, **how: Any) -> Tensor:
        """Sound (channels, samples), or images (3, images, height, width), of a row's tokens.

        The decoder is loaded with the first row, along with the encoder, whose fingerprint has to
        be the one that the set has: of the decoder it has none, and they are loaded from one place.
        Each piece between gaps is decoded by itself, and sound without gaps is as long as what was
        encoded.

        Args:
            row: Of this set, as iteration or `torch` give it.
            column: Of which tokens, where there are several.
            how: Of the first call for a column: `codec`, one that is loaded; `device`;
                `check=False` compares no fingerprint, and loads the decoder alone.

        Raises:
            UsageError: Where the model has no decoder, or has other weights now.
            InputError: Where the row has no such tokens.
        """
        from streamenc.bulk.readback.rowdecoder import RowDecoder

        model = self._model_of(row, column)
        if model.column not in self._decoders or how:
            ask = self._plan.job.models[self.models.index(model)]
            layout = self._source.wanted or model.layout
            layout = layout if model.kind == "codes" else "books"
            self._decoders[model.column] = RowDecoder(model, ask, layout, **how)
        return self._decoders[model.column].decode(row)

    def _model_of(self, row: RowDict, column: str | None) -> ModelFacts:
        there = [model for model in self.models if model.column in row]
        chosen = [model for model in there if column in (None, model.column)]
        if len(chosen) != 1:
            names = ", ".join(model.column for model in there) or "none"
            raise UsageError(
                f"got column={column!r} for a row with the tokens {names}; name one of them"
            )
        return chosen[0]

    def _range(self) -> tuple[int, int]:
        return self._order.share(sum(self._source.counts), self._share or (0, 1))

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self.models)
        return (
            f"TokenSet({str(self.output)!r}: {sum(self._source.counts)} rows, {self.hours:.2f} h, "
            f"{names}, {self.finished} of {self.parts} parts)"
        )


def open_set(
    output: str | os.PathLike[str],
    *,
    shuffle: bool = False,
    seed: int = 0,
    rank: int | None = None,
    world: int | None = None,
    columns: Sequence[str] | None = None,
    layout: str | None = None,
    finished_only: bool = False,
) -> TokenSet:
    """A set that `streamenc tokenize` made, to be read.

    Args:
        output: Its folder.
        shuffle: Whether shards come in another order, and rows mixed in blocks.
        seed: Of that order.
        rank: Gives the rows of this one of `world` readers; else all.
        world: How many readers there are.
        columns: Which columns are read; None for all.
        layout: In which codes come: "books", "flat", "delay" or "delay:0,1,1,1"; None for the
            layout in which the set has them.
        finished_only: Says that a set need not be finished: without, a warning tells of it.

    Raises:
        UsageError: For a column or a layout that the set cannot give.
        OutputError: Where there is no such set.
        MediaError: Where a shard cannot be read.
    """
    plan = JobPlan(Path(output))
    finished = list(read_manifests(plan.output).values())
    if len(finished) < plan.parts and not finished_only:
        warnings.warn(
            f"{str(plan.output)!r} has {len(finished)} of {plan.parts} parts so far, and rows of "
            "these alone are read; run `streamenc tokenize` again to finish it, or say "
            "finished_only=True",
            stacklevel=2,
        )
    source = RowSource(
        folder=plan.output,
        format=plan.job.format,
        shards=tuple(_shard(line) for line in finished),
        models=plan.models,
        wanted=layout or "",
        columns=None if columns is None else tuple(columns),
    )
    source.check()
    return TokenSet(plan, finished, source, RowOrder(shuffle, seed), checked_share(rank, world))


def _shard(line: Finished) -> SetShard:
    return SetShard(
        tuple(file.name for file in line.files),
        line.items,
        tuple(file.sha256 for file in line.files),
    )


def _rows_of(source: RowSource, shards: list[int]) -> Iterator[RowDict]:
    """What `datasets` calls, with some of the shards."""
    yield from source.read(Run(shard, 0, source.shards[shard].rows) for shard in shards)
