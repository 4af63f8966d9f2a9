"""The training recipe: up to a minute of it, and what it makes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import streamenc
from streamenc.coding.usage import perplexity
from streamenc.models.nano import NanoConfig
from tests.support.program import Done, script

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "data"
RECIPE = EXAMPLE.parent / "train_codec"
sys.path.insert(0, str(RECIPE))  # the recipe is a folder of scripts, not a package
import data  # noqa: E402
import losses  # noqa: E402
import quantizer  # noqa: E402

sys.path.remove(str(RECIPE))
trains = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9")


def train(*arguments: object) -> Done:
    return script(RECIPE / "train.py", *arguments)


def curve(out: Path, phase: str, name: str) -> list[tuple[int, float]]:
    with (out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = [row for row in rows if row["phase"] == phase and row["name"] == name]
    return [(int(row["step"]), float(row["value"])) for row in chosen]


@trains
@pytest.mark.timeout(300)
@pytest.mark.parametrize("half", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_training_and_its_resumption(half: int, tmp_path: Path) -> None:
    steps = 2 * half
    done = train("--smoke", "--out", tmp_path, "--steps", half, "--adversarial-from", 0.9)
    assert done.code == 0, done.error
    assert "streamenc.load(" in done.error
    done = train("--smoke", "--out", tmp_path, "--steps", steps, "--adversarial-from", 0.9)
    assert done.code == 0, done.error
    assert f"goes on from step {half}" in done.error
    if half == 100:  # the curves have a point there, and it has had time to learn
        (_, first), (_, last) = (curve(tmp_path, "training", "mel")[i] for i in (0, -1))
        assert last < 0.7 * first, "it did not learn"
        assert curve(tmp_path, "training", "adversarial")[-1][0] == steps
        assert all(value > 1 for _, value in curve(tmp_path, "training", "perplexity_1"))

    codec = streamenc.load(tmp_path / "codec")
    speech = torch.randn(1, 1, 3200) * 0.1
    decoded = codec.decode(codec.encode(speech, codebooks=3))
    assert decoded.shape == speech.shape and torch.isfinite(decoded).all()
    told = json.loads((tmp_path / "codec" / "training.json").read_text())
    assert told["progress"]["step"] == steps and told["sources"][0]["hours"] > 0

    done = train(
        "--smoke", "--out", tmp_path / "tuned", "--steps", 2, "--start", tmp_path / "codec"
    )
    assert done.code == 0, done.error
    tuned = streamenc.load(tmp_path / "tuned" / "codec")
    assert isinstance(codec.encoder.config, NanoConfig)
    assert tuned.encoder.config == codec.encoder.config


@trains
@pytest.mark.timeout(300)
def test_wrong_calls_are_told(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "x.wav").write_bytes(b"RIFF" + bytes(100))
    (tmp_path / "empty").mkdir()
    for arguments, told in (
        ((), "no FOLDER of speech"),
        ((tmp_path / "empty",), "holds no audio"),
        ((tmp_path / "nothere",), "holds no audio"),
        ((tmp_path / "damaged", "--held-out", 0), "x.wav is left out"),
        ((f"{EXAMPLE}=much", "--held-out", 0), "wanted a number above 0"),
        (("--smoke", "--decay-from", 2), "parts of a whole"),
    ):
        done = train(*arguments, "--out", tmp_path / "run")
        assert done.code != 0 and told in done.error


def test_shares_of_a_batch() -> None:
    assert data.divided([(None, 300), (None, 100)]) == [0.75, 0.25]
    assert data.divided([(None, 300), (0.2, 9), (None, 100)]) == pytest.approx([0.6, 0.2, 0.2])
    assert data.divided([(2.0, 1), (6.0, 1)]) == [0.25, 0.75]
    with pytest.raises(SystemExit, match="nothing is left"):
        data.divided([(1.0, 1), (None, 1)])


def test_entries_far_from_the_data_are_moved_to_it() -> None:
    torch.manual_seed(0)
    centres = 5 * torch.randn(6, 4)
    books = quantizer.TrainableRVQ(2, 24, 4, decay=0.8).train()
    books.start_from(100 + torch.randn(2, 24, 4))
    errors = []
    for _ in range(80):
        z = centres[torch.randint(6, (4, 50))].transpose(1, 2) + 0.1 * torch.randn(4, 4, 50)
        _, commitment, codes = books(z, torch.full((4,), 2))
        errors.append(float(commitment))
    assert errors[0] > 1000 and errors[-1] < 0.02
    assert perplexity(codes[:, 0].numpy()) > 6, "dead entries were not revived"


def test_dropped_levels_do_not_count_and_gradients_pass() -> None:
    torch.manual_seed(0)
    books = quantizer.TrainableRVQ(3, 8, 4).eval()
    books.start_from(torch.randn(3, 8, 4))
    z = torch.randn(2, 4, 10, requires_grad=True)
    y, _, codes = books(z, torch.tensor([1, 3]))
    first = books.codebooks[0][codes[:10, 0]].T
    torch.testing.assert_close(y[0], first)
    whole = sum(book[codes[10:, level]] for level, book in enumerate(books.codebooks))
    torch.testing.assert_close(y[1], whole.T)
    y.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))


def test_losses_are_zero_for_equals_and_grow_with_the_error() -> None:
    loss = losses.SpectralLoss(16_000)
    x = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    assert all(float(value) == 0 for value in loss(x, x).values())
    near, far = loss(0.9 * x, x), loss(0.3 * x, x)
    assert all(0 < near[name] < far[name] for name in near)
    turned = loss(-x, x)
    assert turned["phase"] > 0.01 and turned["mel"] < 1e-6 and turned["magnitude"] < 1e-9


def test_mel_bands_cover_every_bin_between_their_ends() -> None:
    for window, bands in ((256, 32), (512, 64), (1024, 96)):
        bank = losses.mel_bank(16_000, window, bands)
        assert bank.shape == (bands, window // 2 + 1)
        assert (bank.sum(dim=1) > 0).all()
        assert (bank.sum(dim=0)[1:-1] > 0).all()
        assert np.all(np.diff(bank.argmax(dim=1).numpy()) >= 0)
