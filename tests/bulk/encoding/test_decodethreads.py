"""Items decoded by threads: the rows that there are without, in their order."""

from __future__ import annotations

import pytest

from streamenc.bulk.decoding.preparing import Preparing
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.items import Item, Local
from tests.bulk.encoding.test_manyitems import same


def test_rows_are_those_without_threads(job_of, sounds, tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("no sound at all")
    items = [*sounds, Item("text", Local(str(text))), *sounds]
    alone = Tokenizer(job_of("nano"), tmp_path)
    with Tokenizer(job_of("nano"), tmp_path, lanes=3, decoders=2) as tokenizer:
        same(tokenizer.rows(items), alone.rows(items))
        rows = tokenizer.rows(items)
        next(rows)
        rows.close()  # in the middle of all
        same(tokenizer.rows(sounds[:3]), alone.rows(sounds[:3]))


def test_an_error_of_our_own_comes_to_who_waits(job_of, sounds, tmp_path, monkeypatch):
    def broken(self, item):
        raise AssertionError("a mistake")
        yield

    with Tokenizer(job_of("nano"), tmp_path, lanes=3, decoders=2) as tokenizer:
        monkeypatch.setattr(Preparing, "pieces", broken)
        with pytest.raises(AssertionError, match="a mistake"):
            list(tokenizer.rows(sounds))
