"""DAC against transformers and descript-audio-codec, with random weights; layouts and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc.codec import Codec
from streamenc.errors import CheckpointError
from streamenc.stream import Stream
from streamenc.testing.subject import raw, run
from tests.support.compare import assert_close, assert_codes_equal
from tests.support.dac_references import dac, descript
from tests.support.references import transformers

LENGTHS = (1, 9, 10, 11, 144, 145, 146, 155, 333, 2_001)


def noise(length: int, *, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return 0.3 * torch.randn(batch, 1, length, generator=generator).double()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = tmp_path_factory.mktemp("dac")
    dac().save_pretrained(where)
    return str(where)


@pytest.fixture(scope="module")
def codec(folder: str) -> Codec:
    return streamenc.load(folder, dtype=torch.float64)


@pytest.mark.reference
class TestTransformers:
    def test_every_length(self, codec: Codec) -> None:
        """As its processor pads the waveform; past every window, in pieces."""
        published = dac().double()
        prepare = transformers.DacFeatureExtractor(hop_length=10)
        for length in LENGTHS:
            x = noise(length, batch=1)
            padded = prepare(x[0, 0].numpy(), sampling_rate=16_000, return_tensors="pt")
            with torch.inference_mode():
                # The processor rounds to float32.
                padded = padded["input_values"].double()
                theirs = published.encode(padded)
                latents = published.encoder(padded)
                x = x.float().double()
                assert_close(run(raw(codec.encoder), x, [70, 400]), latents, 1e-10)
                codes = run(codec.encoder, x, [110])
                assert torch.equal(codes, theirs.audio_codes)
                audio = published.decode(audio_codes=theirs.audio_codes).audio_values
                assert_close(run(codec.decoder, codes, [5, 40])[:, 0], audio, 1e-10)

    @pytest.mark.parametrize("books", [1, 3])
    def test_fewer_codebooks(self, codec: Codec, books: int) -> None:
        published, x = dac().double(), noise(900, batch=2)
        with torch.inference_mode():
            theirs = published.encode(x, n_quantizers=books).audio_codes
            audio = published.decode(audio_codes=theirs).audio_values
        assert torch.equal(codec.encode(x, codebooks=books), theirs)
        assert_close(codec.decode(theirs)[:, 0], audio, 1e-10)

    def test_codebooks_change_in_mid_stream(self, codec: Codec) -> None:
        """Levels that are missing add nothing, their biases neither."""
        codes = codec.encode(noise(600))
        books = codec.decoder.quantizer
        stream = Stream(raw(codec.decoder))
        pieces = [stream.push(codes[:, :2, :20]), stream.push(codes[..., 20:]), stream.flush()]
        latents = torch.zeros(1, 12, 60).double()
        for level in range(4):
            frames = slice(20 if level > 1 else 0, 60)
            latents[0, :, frames] += books.entries(codes[0, level, frames], level).t()
        assert_close(torch.cat(pieces, dim=-1), codec.decoder.chain(latents), 1e-10)

    @pytest.mark.parametrize(
        "config",
        [
            {"downsampling_ratios": [3, 2, 4], "encoder_hidden_size": 2},
            {"codebook_size": 32, "codebook_dim": 3, "n_codebooks": 2},
            {"sampling_rate": 44_100, "decoder_hidden_size": 12},
        ],
        ids=lambda config: "-".join(config),
    )
    def test_config_is_honoured(self, config: dict[str, Any], tmp_path: Path) -> None:
        published = dac(**config)
        published.save_pretrained(tmp_path)
        ours, published = streamenc.load(str(tmp_path), dtype=torch.float64), published.double()
        assert ours.sample_rate == published.config.sampling_rate
        assert ours.spec.hop == published.config.hop_length
        x = noise(40 * ours.spec.hop)
        with torch.inference_mode():
            codes = published.encode(x).audio_codes
            audio = published.decode(audio_codes=codes).audio_values
        assert torch.equal(run(ours.encoder, x, [17]), codes)
        assert_close(run(ours.decoder, codes, [2])[:, 0], audio, 1e-10)


def save_original(path: Path, prefix: str = "", **overrides: Any) -> Any:
    """As the package's own model saves itself."""
    published = descript(**overrides)
    state = {prefix + name: tensor for name, tensor in published.state_dict().items()}
    torch.save({"state_dict": state, "metadata": {"kwargs": {"sample_rate": 16_000}}}, path)
    return published


@pytest.mark.reference
class TestOriginal:
    def test_equal(self, tmp_path: Path) -> None:
        save_original(tmp_path / "weights.pth")
        (tmp_path / "config.json").write_text('{"model_type": "dac", "sampling_rate": 16000}')
        ours = streamenc.load(str(tmp_path), dtype=torch.float64)
        published = descript().double()
        for length in LENGTHS:
            x = noise(length, batch=2)
            with torch.inference_mode():
                padded = torch.nn.functional.pad(x, (0, -length % 10))
                latents = published.encoder(padded)
                _, codes, *_ = published.encode(padded)
                audio = published.decode(published.quantizer.from_codes(codes)[0])
            # Weight normalisation is folded in once, and kept in float32.
            assert_close(run(raw(ours.encoder), x, [70, 400], batch=2), latents, 1e-5)
            found = run(ours.encoder, x, [110], batch=2)
            assert_codes_equal(found, codes, latents, [ours.encoder.quantizer])
            assert_close(run(ours.decoder, codes, [5, 40], batch=2), audio, 1e-4)

    @pytest.mark.parametrize(("books", "rate"), [(12, 16_000), (32, 24_000)])
    def test_published_ones_need_no_config(self, tmp_path: Path, books: int, rate: int) -> None:
        save_original(
            tmp_path / "weights.pth",
            encoder_dim=1,
            encoder_rates=[2, 4, 5, 8],
            decoder_dim=16,
            decoder_rates=[8, 5, 4, 2],
            n_codebooks=books,
        )
        ours = streamenc.load(str(tmp_path / "weights.pth"))
        assert (ours.sample_rate, ours.spec.output.channels) == (rate, books)

    def test_parler_names(self, tmp_path: Path) -> None:
        save_original(tmp_path / "pytorch_model.bin", "model.")
        config = {"model_type": "dac", "sampling_rate": 44_100, "num_codebooks": 4}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert streamenc.load(str(tmp_path)).sample_rate == 44_100

    def test_others_must_say_their_rate(self, tmp_path: Path) -> None:
        save_original(tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=r'strides of \[2, 5\] with 4 .* "sampling_rate"'):
            streamenc.load(str(tmp_path / "weights.pth"))

    def test_recognised_by_its_tensors(self, tmp_path: Path) -> None:
        save_original(tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match="put a config.json beside it"):
            streamenc.load(str(tmp_path / "weights.pth"), part="decoder")


def changed(folder: str, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """The folder with other tensors."""
    tensors = load_file(Path(folder) / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(folder) / "config.json").read_text())
    return str(tmp_path)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_needs_no_other(folder: str, tmp_path: Path, side: str, codec: Codec) -> None:
    other = {"encoder": "decoder", "decoder": "encoder"}[side]

    def remove(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(other)]:
            del tensors[name]

    alone = streamenc.load(changed(folder, tmp_path, remove), part=side, dtype=torch.float64)
    x = noise(300)
    if side == "encoder":
        assert torch.equal(alone.encode(x), codec.encode(x))
    else:
        codes = codec.encode(x)
        assert torch.equal(alone.decode(codes), codec.decode(codes))
    with pytest.raises(CheckpointError, match=f"{other}.* missing"):
        streamenc.load(str(tmp_path))


def test_tensors_tell_what_a_missing_config_would(folder: str, tmp_path: Path) -> None:
    changed(folder, tmp_path, lambda tensors: None)
    (tmp_path / "config.json").write_text('{"sampling_rate": 16000}')
    with pytest.raises(CheckpointError, match="is missing"):
        streamenc.load(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="none of the published models"):
        streamenc.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.block.1.conv1.bias"), "'encoder.block.1.conv1.bias' is missing"),
        (lambda t: t.update({"encoder.block.7.conv1.bias": torch.ones(3)}), "belongs to no layer"),
        (
            lambda t: t.update({"quantizer.quantizers.4.in_proj.bias": torch.ones(4)}),
            "belongs to no layer",
        ),
        (lambda t: t.update({"decoder.conv1.bias": torch.ones(9)}), r"wants \(8,\)"),
        (
            lambda t: t.update({"encoder.conv2.bias": torch.full((12,), float("nan"))}),
            "not finite",
        ),
        (
            lambda t: t.update({"encoder.conv2.bias": torch.ones(12, dtype=torch.int8)}),
            "of type int8",
        ),
        (lambda t: t.pop("quantizer.quantizers.0.codebook.weight"), "not named as in DAC"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: str, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        streamenc.load(changed(folder, tmp_path, change))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate is 0"),
        ({"sampling_rate": "16k"}, "sampling_rate is '16k'"),
        ({"n_codebooks": 1 << 20}, "n_codebooks is 1048576"),
        ({"codebook_size": True}, "codebook_size is True"),
        ({"codebook_dim": [8, 8]}, r"codebook_dim is \[8, 8\]"),
        ({"downsampling_ratios": 5}, "its config cannot be used"),
        ({"downsampling_ratios": [2, 5, 1 << 40]}, "the same product"),
        ({"encoder_hidden_size": "3"}, "encoder_width is '3'"),
        ({"n_codebooks": 3}, "belongs to no layer"),
        ({"n_codebooks": 5}, "is missing"),
        ({"decoder_hidden_size": 10}, "halved 2 times"),
        ({"upsampling_ratios": [2, 5]}, "do not fit the config"),
    ],
)
def test_configs_that_make_no_model_are_refused(
    folder: str, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    where = changed(folder, tmp_path, lambda tensors: None)
    path = Path(where) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CheckpointError, match=message):
        streamenc.load(where)


def test_an_odd_stride_ends_the_sound_early(codec: Codec) -> None:
    codes = codec.encode(noise(1_234))
    assert codes.shape[-1] == 124 and codec.decode(codes).shape[-1] == 1_238
    assert "ends 2 samples before" in codec.decoder.spec.note
