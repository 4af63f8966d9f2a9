"""Where the links of a chained Ogg begin."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from streamenc.io.media import oggchain
from streamenc.io.media.oggchain import OggChain
from tests.support.sound import listen, write_sound


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Mono, stereo, mono: of another length each."""
    folder = tmp_path_factory.mktemp("links")
    return [
        write_sound(folder / f"{n}.ogg", "libopus", 48_000, channels, seconds)
        for n, (channels, seconds) in enumerate([(1, 0.5), (2, 1.0), (1, 0.7)])
    ]


@pytest.mark.parametrize("block_bytes", [2**20, 100, 27])
def test_links_are_opened_one_after_another(
    tmp_path: Path, links: list[Path], monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(oggchain, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a, b:c.ogg"
    path.write_bytes(b"".join(link.read_bytes() for link in links))
    with av.open(f"file:{path}") as container:
        chain = OggChain.of(container)
    assert chain is not None
    for channels, samples in ((2, 48_000), (1, 33_600)):
        with chain.open_next(0) as link:
            assert link.streams.audio[0].layout.nb_channels == channels
            if channels == 1:
                assert sum(frame.samples for frame in link.decode(audio=0)) == samples
    assert chain.open_next(0) is None


def test_other_files_have_no_links(tmp_path: Path) -> None:
    with av.open(f"file:{write_sound(tmp_path / 'a.mkv', 'libopus', 48_000)}") as container:
        assert OggChain.of(container) is None


def test_what_is_cut_off_in_the_next_link_is_skipped(tmp_path: Path, links: list[Path]) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(links[0].read_bytes() + links[1].read_bytes()[:30])
    _, frames, source = listen(path)
    assert sum(frame.duration for frame in frames) == 24_000
    assert not any(frame.discontinuity for frame in frames)
