"""Random checkpoints: what ours and the published implementations make of them is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamenc
from bench import peers, signals, weights

pytestmark = pytest.mark.reference
FRAMES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def speech() -> torch.Tensor:
    return torch.from_numpy(signals.speech(24_000, FRAMES * 1920))[None, None]


def started(kind: Callable[[Path], Any], checkpoint: Path) -> Any:
    peer = peers.start(kind, checkpoint)
    if isinstance(peer, str):
        pytest.skip(peer)
    return peer


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(peers.Moshi, marks=pytest.mark.slow),
        peers.RustyMimi,
        pytest.param(peers.TransformersMimi, marks=pytest.mark.slow),
    ],
)
def test_mimi_peers_stream_our_codes(folder: Path, kind: Callable[[Path], Any]) -> None:
    checkpoint = weights.mimi(folder)
    codec = streamenc.load(str(checkpoint), backend="torch")
    peer = started(kind, checkpoint)
    chunks = torch.split(speech(), 1920, dim=-1)
    with torch.inference_mode():
        step, stream = peer.encoder(8), codec.stream(codebooks=8)
        ours = torch.cat([stream.push(chunk) for chunk in chunks], dim=-1)
        theirs = np.concatenate([np.asarray(step(chunk)) for chunk in chunks], axis=-1)
        assert np.mean(theirs == ours.numpy()) > 0.95
        # Codes that are all alike would prove little.
        assert len(np.unique(ours[:, 1:].numpy())) > FRAMES
        if hasattr(peer, "decoder"):
            back = peer.decoder(8)
            audio = [np.asarray(back(codes)) for codes in torch.split(ours, 1, dim=-1)]
            audio = np.concatenate(audio, axis=-1)
        else:
            audio = peer.decode(ours).numpy()
        expected = codec.decode(ours).numpy()
    assert audio.shape == expected.shape
    assert np.abs(audio - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", [peers.Encodec, peers.TransformersEncodec])
def test_encodec_peers_give_our_codes(folder: Path, kind: Callable[[Path], Any]) -> None:
    checkpoint = weights.encodec(folder)
    codec = streamenc.load(f"encodec:{checkpoint}")
    peer = started(kind, checkpoint)
    with torch.inference_mode():
        ours = codec.encode(speech(), codebooks=8)
        assert isinstance(ours, torch.Tensor)
        assert (peer.encode(speech()) == ours).float().mean() > 0.95
        expected, audio = codec.decode(ours), peer.decode(ours)
    assert (audio - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_peer_that_is_not_installed_is_a_reason(tmp_path: Path) -> None:
    def missing(checkpoint: Path) -> Any:
        raise ModuleNotFoundError("No module named 'moshi'")

    assert peers.start(missing, tmp_path) == "not installed (No module named 'moshi')"


def test_weights_are_written_once(tmp_path: Path) -> None:
    first = weights.encodec(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert weights.encodec(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["encodec.safetensors"]


@pytest.mark.parametrize("kind", ["CV8x8x8", "CV4x8x8"])
@pytest.mark.parametrize("small", [True, False])
def test_cosmos_has_the_published_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, small: bool
) -> None:
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(weights, "written", lambda path, shapes, seed: found.update(shapes()))
    found: dict[str, tuple[int, ...]] = {}
    folder = weights.cosmos(tmp_path, kind, small=small)
    config = diffusers.AutoencoderKLCosmos.load_config(folder)
    with torch.device("meta"):
        model = diffusers.AutoencoderKLCosmos.from_config(config)
        published = diffusers.AutoencoderKLCosmos(temporal_compression_ratio=int(kind[2]))
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == wanted
    if not small:
        assert found == {n: tuple(p.shape) for n, p in published.named_parameters()}


def test_cosmos_with_codes_gives_them(tmp_path: Path) -> None:
    codec = streamenc.load(weights.cosmos(tmp_path, "DV4x8x8", small=True))
    assert codec.spec.codebook_size == 64_000 and codec.spec.hop == 4
    images = torch.from_numpy(signals.video(17, 32, 32))[None]
    codes = codec.encode(images)
    assert codes.shape == (1, 1, 5, 4, 4) and len(codes.unique()) > 16
    alone = weights.cosmos(tmp_path, "DV4x8x8", small=True, part="encoder")
    assert torch.equal(streamenc.load(alone, part="encoder").encode(images), codes)
