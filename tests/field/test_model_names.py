"""What streams call the model that made them: a name for others, and no path of this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import streamenc
from streamenc.codec import Codec, public_name
from streamenc.io.reading import read_file
from streamenc.models.families import LISTED
from tests.support import zoo
from tests.support.drive import noise
from tests.support.media import write_wav
from tests.support.program import streamenc as run

SNAPSHOT = "models--kyutai--mimi/snapshots/0123abcd"


@pytest.mark.parametrize(
    ("files", "loaded", "wanted"),
    [
        ([], "kyutai/mimi", "kyutai/mimi"),
        ([], "mel:whisper", "mel:whisper"),
        ([], "someone/model/w.safetensors", "someone/model/w.safetensors"),
        ([], "package.module:load", "package.module:load"),
        (["secret/mine/model.safetensors"], "{}/secret/mine", "mine"),
        (["secret/mine/model.safetensors"], "{}/secret/mine/", "mine"),
        (["secret/mine/model.safetensors"], "./secret/mine", "mine"),
        (["secret/mine/model.safetensors"], "secret/mine", "mine"),
        (["secret/mine/model.safetensors"], "secret/../secret/mine/.", "mine"),
        (["secret/mine/model.safetensors"], "{}/secret/mine/model.safetensors", "mine"),
        (["secret/mine/tiny.pt"], "{}/secret/mine/tiny.pt", "tiny.pt"),
        (["secret/mine/tiny.pt"], "mimi:{}/secret/mine/tiny.pt", "mimi:tiny.pt"),
        (
            ["secret/tiny.pt"],
            "package.module:load:{}/secret/tiny.pt",
            "package.module:load:tiny.pt",
        ),
        ([f"{SNAPSHOT}/model.safetensors"], "{}/" + SNAPSHOT, "kyutai/mimi"),
        ([f"{SNAPSHOT}/vqvae/x.safetensors"], "{}/" + SNAPSHOT + "/vqvae", "kyutai/mimi/vqvae"),
        (["secret/nano/model.safetensors"], "{}/secret/nano", "./nano"),
        (["nano/model.safetensors"], "nano", "nano"),
    ],
)
def test_a_path_gives_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], loaded: str, wanted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.touch()
    assert public_name(loaded.format(tmp_path), LISTED) == wanted


def test_what_a_codec_of_ones_own_is_called() -> None:
    encoder = zoo.codec("nano").encoder
    assert Codec("mine", encoder, None).public_name == "mine"
    assert Codec("/home/me/mine", encoder, None, public_name="mine").public_name == "mine"


def test_the_working_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    zoo.save_nano(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    codec = streamenc.load(".")
    assert codec.name == "." and codec.public_name == "mine"


@pytest.mark.parametrize(("folder", "hint"), [("mimi", "perhaps kyutai/mimi"), ("mine", "-m NAME")])
def test_a_recording_holds_no_path_and_is_decoded_by_the_one_who_knows_it(
    tmp_path: Path, folder: str, hint: str
) -> None:
    model = tmp_path / "private place" / folder
    zoo.save_nano(model)
    codec = streamenc.load(model)
    write_wav(tmp_path / "a.wav", noise(codec.sample_rate // 4), codec.sample_rate)
    tokens, back = tmp_path / "a.arrows", tmp_path / "b.wav"
    assert run("encode", tmp_path / "a.wav", tokens, "-m", model, "-q").code == 0
    info, _ = read_file(str(tokens))
    assert info.model == folder
    assert b"private place" not in tokens.read_bytes()
    assert os.fsencode(tmp_path) not in tokens.read_bytes()
    without = run("decode", tokens, back, "-q")
    assert without.code == 2 and f"made by '{folder}'" in without.error and hint in without.error
    assert run("decode", tokens, back, "-q", "-m", model).code == 0
    assert back.stat().st_size > 1000


def test_a_folder_named_like_a_listed_model_is_not_taken_for_it(tmp_path: Path) -> None:
    model = tmp_path / "nano"
    zoo.save_nano(model)
    rate = streamenc.load(model).sample_rate
    write_wav(tmp_path / "a.wav", noise(rate // 4), rate)
    tokens = tmp_path / "a.arrows"
    assert run("encode", tmp_path / "a.wav", tokens, "-m", model, "-q").code == 0
    shutil.rmtree(model)
    done = run("decode", tokens, tmp_path / "b.wav", "-q")
    assert done.code == 2 and "made by './nano'" in done.error and "perhaps" not in done.error
