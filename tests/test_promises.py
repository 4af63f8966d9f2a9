"""What models promise of their steps, written down: no change of a layer changes it unnoticed."""

from __future__ import annotations

import pytest

from streamenc.models.families import LISTED
from streamenc.registry import published_spec
from streamenc.spec import StreamSpec
from tests.support import zoo


def promise(spec: StreamSpec) -> zoo.Promise:
    return (spec.lead, spec.hop, spec.lead_out, spec.hop_out, spec.delay, spec.limit)


def test_every_model_is_written_down() -> None:
    assert zoo.PUBLISHED.keys() == LISTED.keys()
    assert all(len(row.promises) in (1, 2) for row in zoo.ROWS)


@pytest.mark.parametrize("name", LISTED)
def test_published_promises(name: str) -> None:
    assert promise(published_spec(name)) == zoo.PUBLISHED[name]


@pytest.mark.parametrize("name", LISTED)
def test_published_receptive_fields(name: str) -> None:
    spec = published_spec(name)
    alone = spec.input.kind == "video" and spec.hop == 1
    assert spec.receptive_field == zoo.FIELDS.get(name, 1 if alone else None)


@pytest.mark.parametrize("case", zoo.CASES, ids="-".join)
def test_promises_of_small_models(case: tuple[str, str]) -> None:
    name, side = case
    row = zoo.row(name)
    assert promise(zoo.model(name, side).spec) == row.promises[row.sides.index(side)]
