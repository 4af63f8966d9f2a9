"""MediaInput: files of any kind into a model, equal however they are cut and taken up again."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.videosource import VideoSource
from streamenc.nodes.resample import Resample
from streamenc.serve.inputs import containerdecoder, mediainput, replay
from streamenc.serve.limits import Limits
from tests.serve.inputs.compressed import file_of, pictures, tones
from tests.serve.inputs.packets import again, image_model, joined, made, packed, sound_model, told
from tests.support.profile import examples

SPEC, ASKED = sound_model(24000), {"format": "media"}
IMAGES = image_model(unit=16)
MONO = tones(96_000)
STEREO = tones(88_200, 44100, 2)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}
FILES = {
    "webm": file_of("webm", "libopus", MONO, options={"live": "1"}),
    "ogg": file_of("ogg", "libopus", MONO),
    "wav": file_of("wav", "pcm_s16le", STEREO, rate=44100),
    "mp3": file_of("mp3", "libmp3lame", STEREO, rate=44100),
    "flac": file_of("flac", "flac", STEREO, rate=44100),
    "mp4": file_of("mp4", "aac", STEREO, rate=44100, options=FRAGMENTS),
    "aac": file_of("adts", "aac", STEREO, rate=44100),
    "mpegts": file_of("mpegts", "aac", STEREO, rate=44100),
}
VIDEOS = {
    "webm": file_of("webm", "libvpx", images=pictures(20, 64, 96)),
    "mp4": file_of(
        "mp4", "libx264", images=pictures(20, 64, 96),
        options={"movflags": "frag_every_frame+empty_moov"},
    ),
}  # fmt: skip


def pushed(input, payload, cuts, times=(), cut=False):
    """All chunks but those of a flush."""
    chunks = []
    for begin, end in zip([0, *cuts], [*cuts, len(payload)], strict=True):
        chunks += input.push(packed(payload[begin:end], *(times if not begin else ()), cut=cut))
        cut = False
    return chunks


def cuts_of(payload, count, seed=0):
    return sorted(np.random.default_rng(seed).integers(0, len(payload), count).tolist())


def whole(payload, spec=SPEC, **asked):
    input = made(spec, **ASKED, **asked)
    return input.push(packed(payload)) + input.flush()


def frames_of(source):
    info = source.open_blocking()
    frames = [info]
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close_blocking()
    return frames


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    end = time.monotonic() + 5
    while any(thread.name == "streamenc-media" for thread in threading.enumerate()):
        assert time.monotonic() < end, "a thread that decodes was left"
        time.sleep(0.01)


# Where an MP3 ends, its source knows by its size, which what comes over a network has not.
@pytest.mark.parametrize("name", sorted(set(FILES) - {"mp3"}))
def test_equal_to_the_source_of_files(name, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    info, *frames = frames_of(MediaSource(str(path)))
    resample = Resample(24000, 1)
    resample.open(info)
    out = [part for frame in frames for part in resample.push(frame)] + list(resample.flush())
    chunks = whole(FILES[name])
    assert np.array_equal(joined(chunks), np.concatenate([part.data for part in out], axis=1))
    assert chunks[0].pts == round(out[0].pts * info.time_base * 24000)
    assert not any(chunk.discontinuity for chunk in chunks)
    ends = [chunk.pts + chunk.duration for chunk in chunks]
    assert ends[:-1] == [chunk.pts for chunk in chunks[1:]]


@pytest.mark.parametrize("name", FILES)
def test_cut_anyhow(name):
    payload = FILES[name]
    wanted = joined(whole(payload))
    for count in (1, 7, 60):
        input = made(SPEC, **ASKED)
        chunks = pushed(input, payload, cuts_of(payload, count, count))
        assert np.array_equal(joined(chunks + input.flush()), wanted)
        assert input.next_pts == chunks[0].pts + wanted.shape[1]


@pytest.mark.parametrize("name", FILES)
def test_taken_up_anywhere(name):
    payload = FILES[name]
    cuts = cuts_of(payload, 9)
    wanted = joined(whole(payload))
    input, chunks = made(SPEC, **ASKED), []
    for begin, end in zip([0, *cuts], [*cuts, len(payload)], strict=True):
        chunks += input.push(packed(payload[begin:end]))
        old, input = input, again(input, SPEC, **ASKED)
        old.close()
    assert np.array_equal(joined(chunks + input.flush()), wanted)


@pytest.mark.parametrize("name", VIDEOS)
def test_images_cut_anyhow_and_taken_up_anywhere(name, tmp_path):
    payload = VIDEOS[name]
    path = tmp_path / "file"
    path.write_bytes(payload)
    info, *frames = frames_of(VideoSource(str(path)))
    wanted = whole(payload, IMAGES)
    assert len(wanted) == len(frames) == 20
    for chunk, frame in zip(wanted, frames, strict=True):
        assert np.array_equal(chunk.data[0], frame.data)
        assert chunk.pts == round(frame.pts * info.time_base * 90_000)
    input, chunks = made(IMAGES, **ASKED), []
    cuts = cuts_of(payload, 6)
    for begin, end in zip([0, *cuts], [*cuts, len(payload)], strict=True):
        chunks += input.push(packed(payload[begin:end]))
        old, input = input, again(input, IMAGES, **ASKED)
        old.close()
    assert told(chunks + input.flush()) == told(wanted)


def test_what_is_decodable_comes_at_once():
    payload, given, most = FILES["webm"], 0, 0.0
    input = made(SPEC, **ASKED)
    for at in range(0, len(payload), 500):
        given += sum(chunk.items for chunk in input.push(packed(payload[at : at + 500])))
        if at > len(payload) / 2:
            most = max(most, 2 * (at + 500) / len(payload) - given / 24000)
    input.close()
    assert most < 0.3


def test_another_file_follows_on_behind_a_flush():
    input = made(SPEC, **ASKED)
    first = input.push(packed(FILES["webm"])) + input.flush()
    assert input.next_pts == 48_000
    second = input.push(packed(FILES["wav"])) + input.flush()
    assert (first[0].pts, second[0].pts) == (0, 48_000)
    assert np.array_equal(joined(second), joined(whole(FILES["wav"])))
    assert not any(chunk.discontinuity for chunk in first + second)


def test_a_flag_begins_another_file():
    input = made(SPEC, **ASKED)
    chunks = input.push(packed(FILES["webm"], 0, 1))
    count = len(chunks)
    chunks += input.push(packed(FILES["flac"], 100_000, 1, cut=True)) + input.flush()
    flagged = [number for number, chunk in enumerate(chunks) if chunk.discontinuity]
    assert len(flagged) == 1 and chunks[flagged[0]].pts == 100_000
    assert 0 < count <= flagged[0]


def test_tags_behind_a_file_are_left_out():
    input = made(SPEC, **ASKED)
    payload = FILES["wav"]
    at = payload.index(b"data") + 4
    payload = payload[:at] + (len(payload) - at - 4).to_bytes(4, "little") + payload[at + 4 :]
    chunks = input.push(packed(payload))
    for _ in range(3):
        chunks += input.push(packed(b"LIST" + bytes(100)))
    assert np.array_equal(joined(chunks + input.flush()), joined(whole(payload)))


@pytest.mark.parametrize(
    "payload",
    [
        b"no media at all " * 1000,
        bytes(10_000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n" * 100,
        b"ffconcat version 1.0\nfile /etc/hostname\n" * 200,
        b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 40,
        b"\x89PNG\r\n\x1a\n" + bytes(5000),
        VIDEOS["webm"],
    ],
)
def test_what_holds_no_sound(payload):
    input = made(SPEC, **ASKED)
    with pytest.raises(InputError):
        input.push(packed(payload))
        input.flush()
    input.close()


def test_a_file_whose_index_is_last():
    payload = file_of("mp4", "aac", STEREO, rate=44100)
    input = made(SPEC, **ASKED)
    with pytest.raises(InputError, match="moov"):
        input.push(packed(payload))
    input.close()


def test_one_message_that_becomes_too_much(monkeypatch):
    monkeypatch.setattr(containerdecoder, "MAX_SAMPLES", 50_000)
    input = made(SPEC, **ASKED)
    with pytest.raises(InputError, match="send shorter ones"):
        input.push(packed(FILES["flac"]))
    input.close()


def test_images_larger_than_are_taken():
    input = made(IMAGES, Limits(max_pixels=64 * 90), **ASKED)
    with pytest.raises(InputError, match="pixels"):
        input.push(packed(VIDEOS["webm"]))
        input.flush()
    input.close()


def test_a_decoder_that_takes_too_long(monkeypatch):
    monkeypatch.setattr(containerdecoder, "MAX_SECONDS", 0.05)
    go = threading.Event()
    real = containerdecoder._FedSource._open_container

    def slow(source):
        go.wait(5)
        return real(source)

    monkeypatch.setattr(containerdecoder._FedSource, "_open_container", slow)
    input = made(SPEC, **ASKED)
    with pytest.raises(InputError, match="within"):
        input.push(packed(FILES["webm"]))
    go.set()
    input.close()


def test_more_than_is_kept(monkeypatch):
    monkeypatch.setattr(replay, "MAX_KEPT_BYTES", 10_000)
    input = made(SPEC, **ASKED)
    input.push(packed(FILES["webm"][:8000]))
    assert input.exact and input.state() is not None
    input.push(packed(FILES["webm"][8000:]))
    assert not input.exact and "not all kept" in input.why and input.state() is None
    input.flush()
    assert input.exact
    monkeypatch.setitem(mediainput.MAX_AGAIN, "audio", 1000)
    input.push(packed(FILES["webm"][:9000]))
    assert not input.exact
    input.close()


def test_closing_while_it_waits():
    input = made(SPEC, **ASKED)
    input.push(packed(FILES["webm"][:100]))
    input.close()
    input.close()


@settings(max_examples=examples(150, fast=25), deadline=None)
@given(
    name=st.sampled_from([*FILES]),
    damage=st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 255)), max_size=20),
    kept=st.integers(0, 30_000),
    cuts=st.lists(st.integers(0, 30_000), max_size=4),
)
def test_damaged_files(name, damage, kept, cuts):
    payload = bytearray(FILES[name][:kept])
    for at, value in damage:
        if payload:
            payload[at % len(payload)] = value
    input = made(SPEC, **ASKED)
    try:
        pushed(input, bytes(payload), sorted(min(cut, len(payload)) for cut in cuts))
        input.flush()
    except InputError:
        return
    finally:
        input.close()


def test_damaged_states():
    input = made(SPEC, **ASKED)
    input.push(packed(FILES["webm"][:9000]))
    blob = input.state()
    input.close()
    rng = np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(blob)
        for at in rng.integers(0, len(blob), 3):
            damaged[at] = rng.integers(256)
        other = made(SPEC, **ASKED)
        try:
            other.restore(bytes(damaged[: rng.integers(len(blob) // 2, len(blob) + 1)]))
        except SnapshotError:
            continue
        finally:
            other.close()
    other = made(IMAGES, **ASKED)
    with pytest.raises(SnapshotError):
        other.restore(blob)
    other.close()


def test_models_that_take_no_such_sound():
    with pytest.raises(UsageError):
        made(sound_model(24000.5), **ASKED)


def test_in_another_process_without_torch(tmp_path):
    payload = FILES["mp3"]
    input = made(SPEC, **ASKED)
    before = input.push(packed(payload[:28_001]))
    (tmp_path / "state").write_bytes(input.state())
    (tmp_path / "rest").write_bytes(payload[28_001:])
    input.close()
    code = """
import sys, numpy as np
from pathlib import Path
from tests.serve.inputs.packets import joined, made, packed, sound_model
folder = Path(sys.argv[1])
input = made(sound_model(24000), format="media")
input.restore((folder / "state").read_bytes())
chunks = input.push(packed((folder / "rest").read_bytes())) + input.flush()
np.save(folder / "out.npy", joined(chunks))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    got = np.concatenate([joined(before), np.load(tmp_path / "out.npy")], axis=1)
    assert np.array_equal(got, joined(whole(payload)))
