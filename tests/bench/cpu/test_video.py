"""Video's measurements at their smallest: what is compared, what is refused, what is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import weights
from bench.cpu import video
from bench.harness import Settings, Table
from streamenc.models.model import Model

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    pytest.importorskip("diffusers")
    return Settings(1, 2, tmp_path_factory.mktemp("video"), quick=True)


@pytest.fixture(scope="module")
def found(settings: Settings) -> dict[str, Table]:
    return {table.title: table for table in video.tables(settings)}


def one(found: dict[str, Table], *words: str) -> Table:
    (title,) = (t for t in found if all(word in t for word in words))
    return found[title]


def test_everything_is_compared_and_timed(found: dict[str, Table]) -> None:
    for words, most in (
        (("encode", "16 x 16, 17 frames"), 7),
        (("encode", "24 x 16"), 4),
        (("decode",), 5),
    ):
        table = next(t for title, t in found.items() if all(w in title for w in words))
        assert table.reference == video.THEIRS
        assert len(table.rows) == most + 1  # and the reference once more
        for row in table.rows:
            assert row.count == 1 and row.ratio and row.ratio > 0
            assert "not timed" not in row.note
    steps = one(found, "16 x 16, 17 frames", "step by step")
    names = [row.name for row in steps.rows]
    assert f"{video.OURS}: the first frame" in names
    assert any("2 hops a step: steps of 16 frames" in name for name in names)
    # Those of the one round, without the warm-up.
    counts = {row.name.rpartition(": ")[2]: row.count for row in steps.rows[:2]}
    assert counts == {"the first frame": 1, "steps of 8 frames": 2}


def test_restarts_are_off_and_the_stream_is_not(found: dict[str, Table]) -> None:
    facts = one(found, "seams").facts
    assert facts["streamed, largest relative error of latents and frames"] < video.TOLERANCE
    errors = [value for key, value in facts.items() if "latent of 8 frames after a seam" in key]
    assert len(errors) == 2 and all(0.05 < error < 2 for error in errors)
    decoded = [float(v.split()[1]) for k, v in facts.items() if "against the exact one" in k]
    assert len(decoded) == len(video.OFFSETS) and all(5 < psnr < 40 for psnr in decoded)
    assert not any("against the video" in key for key in facts)  # random weights


def test_windows_are_exact_within_their_context(found: dict[str, Table]) -> None:
    facts = one(found, "windows").facts
    errors = {k: v for k, v in facts.items() if k.startswith("context")}
    assert len(errors) == 2
    for text in errors.values():
        within = float(text.split()[4].strip(","))
        beyond = float(text.split()[7].strip("%"))
        assert within < video.TOLERANCE and beyond > 0.1


def test_a_window_has_flat_memory_and_a_limit_is_reserved(found: dict[str, Table]) -> None:
    facts = one(found, "memory").facts
    states = [v.split(",")[0] for k, v in facts.items() if k.startswith("window")]
    assert len(states) == 4 and len(set(states)) == 1
    reserved = [float(v.split()[1]) for k, v in facts.items() if k.startswith("mode=offline")]
    assert reserved == sorted(set(reserved))


def test_what_is_wrong_is_not_timed(settings: Settings) -> None:
    bench = video.Bench(settings)
    x = bench.clip(9, 16, 16)
    with torch.inference_mode():
        right = bench.whole_encode()
        streams = {video.OURS: video.Streamed(bench.encoder(limit=2), x)}
        run = video.Run(bench, x, streams, lambda x: right(x) * (1 + 1e-3), "latents")
        (table, steps) = run.tables("wrong", 1)
    rows = {row.name: row for row in table.rows}
    assert rows[video.OURS].count == 0 and "not timed: latents off by 1" in rows[video.OURS].note
    assert rows[video.THEIRS].count == 1 and not steps.rows


def test_without_diffusers_ours_is_the_measure(settings: Settings) -> None:
    bench = video.Bench(settings)
    bench.peer = "not installed: diffusers"
    with torch.inference_mode():
        table, _ = bench._encode(16, 16, 9, 1, few=True)
    rows = {row.name: row for row in table.rows}
    assert table.reference == video.OURS and rows[video.OURS].ratio == 1
    assert rows[video.THEIRS].note == "not installed: diffusers"


@pytest.mark.parametrize("hops", [1, 2])
def test_a_clip_through_a_stream_is_all_of_it(settings: Settings, hops: int) -> None:
    bench = video.Bench(settings)
    x = bench.clip(30, 16, 16)  # a tail that is no whole hop
    with torch.inference_mode():
        model: Model = bench.encoder(limit=5)
        streamed = video.Streamed(model, x, hops=hops)
        assert streamed.frames == 30
        z = streamed(0)
        assert torch.equal(video.Streamed(model, x, hops=hops)(1), z)
        whole = video.Streamed(model, x, all_at_once=True)(0)
    assert z.shape == whole.shape == (1, 16, 5, 2, 2)
    assert (z - whole).abs().max() < 1e-4


def test_weights_of_ones_own_and_a_clip(settings: Settings, tmp_path: Path) -> None:
    own = weights.cosmos(tmp_path, small=True, seed=1)
    bench = video.Bench(replace(settings, cosmos=own))
    with torch.inference_mode():
        facts = bench._seams().facts
    assert facts["clips"].endswith(f"weights of {own.name}")
    told = [key for key in facts if key.endswith("against the video")]
    assert len(told) == 2 * (1 + len(video.OFFSETS))
    other = weights.cosmos(tmp_path, "CV4x8x8", small=True)
    with pytest.raises(SystemExit, match="every 4 frames; wanted CV8x8x8"):
        video.Bench(replace(settings, cosmos=other))


def test_psnr() -> None:
    wanted = torch.tensor([0.0, 1.0])
    assert video._psnr(wanted + 0.1, wanted) == pytest.approx(20)
    assert video._psnr(wanted, wanted) > 200


def test_large_images_may_be_left_out(tmp_path: Path) -> None:
    assert video.Scale.of(Settings(1, 250, tmp_path)).wide == (720, 1280)
    assert video.Scale.of(Settings(1, 250, tmp_path, small=True)).wide is None
    assert video.Scale.of(Settings(1, 50, tmp_path)).rounds == 1
