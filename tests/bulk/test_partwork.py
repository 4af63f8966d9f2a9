"""A part: what its line says of the items that were verified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamenc.bulk.encoding.modelpass import ModelPass
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.jobplan import make_plan
from streamenc.bulk.manifest import Finished, read_manifests
from streamenc.bulk.partwork import Progress, do_part
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from tests.support.bulksets import sounds


@pytest.fixture
def job(tmp_path: Path) -> TokenizeJob:
    folder = tmp_path / "in"
    folder.mkdir()
    for key, data in sounds(5).items():
        (folder / f"{key}.wav").write_bytes(data)
    (folder / "torn.wav").write_bytes(b"RIFF")
    models = (ModelAsk(name="nano"), ModelAsk(name="mel"))
    return TokenizeJob(
        input=str(folder), input_kind="folder", models=models, items_per_shard=4, verify=1.0
    )


def wrong(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """Those of one length lose a hop on the way that is verified."""
    push = ModelPass.push

    def lossy(self: ModelPass, data: np.ndarray, anew: bool = False) -> None:
        push(self, data[:, 320:] if data.shape[1] == samples else data, anew)

    monkeypatch.setattr(ModelPass, "push", lossy)


def lines(job: TokenizeJob, output: Path) -> list[Finished]:
    """Of all parts, done by hand."""
    told: list[Progress] = []
    with Tokenizer(job, output.parent) as tokenizer:
        plan = make_plan(output, job, tokenizer.facts)
        parts = range(plan.parts)
        done = [do_part(plan, part, tokenizer, output, told.append).line for part in parts]
    assert sum(progress.items for progress in told) == sum(line.items for line in done) == 5
    return done


def test_a_part_counts_what_was_verified(
    job: TokenizeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = lines(job, tmp_path / "right")
    assert [(line.verified, line.differing) for line in right] == [(4, 0), (1, 0)]
    wrong(monkeypatch, 16_000 + 2 * 37)
    # Both models are wrong; the item is one.
    found = lines(job, tmp_path / "wrong")
    assert [(line.verified, line.differing) for line in found] == [(4, 1), (1, 0)]


def test_a_run_counts_what_was_verified(
    job: TokenizeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tokenize(job, tmp_path / "right", workers=0)
    assert (figures.verified, figures.differing, figures.errors) == (5, 0, 1)
    wrong(monkeypatch, 16_000 + 4 * 37)
    figures = tokenize(job, tmp_path / "wrong", workers=0)
    assert (figures.verified, figures.differing) == (5, 1)
    written = read_manifests(tmp_path / "wrong")
    assert [line.differing for line in written.values()] == [0, 1]
    # Of a set that is gone on with, all of it counts.
    figures = tokenize(job, tmp_path / "wrong", workers=0)
    assert (figures.parts_done, figures.verified, figures.differing) == (0, 5, 1)
