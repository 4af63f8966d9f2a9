"""--verify: items that are encoded once more, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.bulk.encoding import modelpass
from streamenc.bulk.encoding.modellanes import LanePass
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.encoding.verifier import difference
from streamenc.bulk.items import Row, Tokens


def flagged(rows):
    """Of rows that were verified, those whose tokens differed."""
    rows = [row for row in rows if isinstance(row, Row)]
    assert all(row.verified for row in rows)
    return [row.key for row in rows if "differs" in row.flags]


@pytest.mark.parametrize("lanes", [0, 3])
def test_nothing_differs(lanes, job_of, sounds, tmp_path):
    job = job_of("nano", "mel", layout="books", verify=1.0)
    assert flagged(Tokenizer(job, tmp_path, lanes=lanes).rows(sounds)) == []


def test_a_wrong_code_is_found_in_lanes(job_of, sounds, tmp_path, monkeypatch, caplog):
    take = LanePass.take

    def wrong(self, data, scales):
        take(self, data ^ 1, scales)

    monkeypatch.setattr(LanePass, "take", wrong)
    rows = Tokenizer(job_of("nano", verify=1.0), tmp_path, lanes=3).rows(sounds)
    # Those of a second and less are encoded in one step by themselves.
    assert flagged(rows) == [item.key for item in (sounds[2], sounds[5], sounds[6])]
    assert "has other tokens when it is encoded alone" in caplog.text
    assert "codes" in caplog.text


def test_a_wrong_code_is_found_alone(job_of, sounds, tmp_path, monkeypatch):
    push = modelpass.ModelPass.push

    def lossy(self, data, anew=False):
        push(self, data[:, 320:], anew)

    monkeypatch.setattr(modelpass.ModelPass, "push", lossy)
    rows = Tokenizer(job_of("nano", verify=1.0), tmp_path).rows(sounds[:2])
    assert flagged(rows) == ["0", "1"]


def test_the_share_is_chosen_by_names(job_of, sounds, tmp_path):
    def chosen(verify):
        rows = Tokenizer(job_of("mel", verify=verify), tmp_path).rows(sounds)
        return [row.key for row in rows if isinstance(row, Row) and row.verified]

    some = chosen(0.5)
    assert 0 < len(some) < len(sounds)
    assert some == chosen(0.5)
    assert chosen(0.0) == []


def test_what_differs_is_told():
    codes = Tokens(np.zeros((2, 5), np.uint16))
    other = Tokens(np.eye(2, 5, dtype=np.uint16))
    assert difference(codes, codes) == ""
    assert difference(codes, other) == "2 of 10 codes"
    assert "5 frames, and 4" in difference(codes, Tokens(codes.data[:, :4]))
    ones = Tokens(np.ones((2, 5), np.float32))
    assert difference(ones, Tokens(ones.data * np.float32(1 + 1e-6))) == ""
    assert "features by 1.0e-02" in difference(Tokens(ones.data * np.float32(1.01)), ones)
    with_gap = Tokens(codes.data, None, (3,))
    assert difference(with_gap, codes)
