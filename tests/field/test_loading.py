"""Weights as people have them: of 16 bits, quantised, of newer layouts, beside others' configs."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import streamenc
from streamenc import registry
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.codec import Codec
from streamenc.errors import CheckpointError, StreamencError
from streamenc.stream import Stream
from tests.support import encodec_references, references, zoo

transformers = pytest.importorskip("transformers")

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
# One row of the zoo for each layout that is read in a way of its own.
LAYOUTS = (
    "nano",
    "mimi",
    "encodec",
    "encodec-48k",
    "cosmos",
    "cosmos-codes",
    "cosmos-images",
    "whisper-chunked",
    "wav2vec2",
    "wav2vec2-stable",
    "hubert-units",
    "vit",
    "dinov2",
    "dinov2-registers",
    "resnet",
    "vae",
    "vqgan",
    "taesd",
)
QUICK = ("mimi", "encodec", "whisper-chunked")


def layouts(*quick: str) -> Any:
    """All of them, of which the quick profile has some."""
    slow = pytest.mark.slow
    rows = [pytest.param(n, marks=[] if n in quick else slow) for n in LAYOUTS]
    return pytest.mark.parametrize("name", rows)


def saved(name: str, folder: Path) -> Path:
    """The file of weights of a row of the zoo."""
    save = zoo.row(name).save
    assert save is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(folder)
    (weights,) = folder.glob("*.safetensors")
    return weights


def loaded(name: str, folder: Path) -> Codec:
    row = zoo.row(name)
    part: Any = "both" if len(row.sides) == 2 else "encoder"
    return streamenc.load(folder, part=part, **row.options)


def fingerprints(codec: Codec) -> list[str]:
    sides = [codec.encoder, codec.decoder] if codec.has_decoder else [codec.encoder]
    return [model.fingerprint() for model in sides]


def floats(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


# Types of numbers


@pytest.mark.reference
@pytest.mark.parametrize("family", ["mimi", "encodec"])
@HALVES
def test_codes_of_16_bit_weights_are_transformers_codes_in_float32(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    if family == "mimi":
        kind, theirs = transformers.MimiModel, references.mimi()
        audio = 0.6 * encodec_references.noise(24 * 300)
    else:
        kind, theirs = (
            transformers.EncodecModel,
            encodec_references.transformers_model(**encodec_references.SMALL),
        )
        audio = encodec_references.noise(320 * 60)
    theirs.to(dtype).save_pretrained(tmp_path)
    theirs = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    bandwidth = {} if family == "mimi" else {"bandwidth": theirs.config.target_bandwidths[-1]}
    with torch.inference_mode():
        wanted = theirs.encode(audio, **bandwidth).audio_codes
    codes = streamenc.load(tmp_path).encode(audio)
    assert torch.equal(codes, wanted.reshape(codes.shape))


@layouts(*QUICK)
@HALVES
def test_16_bit_weights_are_the_same_numbers_in_float32(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    weights = saved(name, tmp_path)
    tensors = floats(load_file(weights), dtype)
    save_file(tensors, weights)
    half = fingerprints(loaded(name, tmp_path))
    save_file(floats(tensors, torch.float32), weights)
    assert half == fingerprints(loaded(name, tmp_path))
    weights.unlink()
    shards: list[dict[str, Tensor]] = [{}, {}, {}]
    for number, key in enumerate(sorted(tensors)):
        shards[number % 3][key] = tensors[key]
    prefix, weight_map = weights.stem, {}
    for number, shard in enumerate(shards):
        file = f"{prefix}-0000{number}-of-00003.safetensors"
        save_file(shard, tmp_path / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"weight_map": weight_map}
    (tmp_path / f"{prefix}.safetensors.index.json").write_text(json.dumps(index))
    assert half == fingerprints(loaded(name, tmp_path))


def read_by(name: str, folder: Path) -> list[str]:
    """The names of the floats that a family reads."""
    row = zoo.row(name)
    checkpoint = open_checkpoint(str(folder))
    module = registry.family_module(row.family)
    part = "both" if len(row.sides) == 2 else "encoder"
    module.load(str(folder), checkpoint, part, **row.options)
    read = dict.fromkeys(checkpoint.read)
    renamed = [key for key in read if key not in checkpoint]
    assert not renamed, "folders have the names that are read"
    return [key for key in read if checkpoint.stored(key).is_floating_point()]


FOREIGN: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda t: (127 * t / t.abs().max().clamp(min=1e-9)).round().to(torch.int8),
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "int64": lambda t: t.round().to(torch.int64),
    "complex64": lambda t: t.to(torch.complex64),
}


@layouts(*QUICK)
def test_one_tensor_of_another_type_is_refused(tmp_path: Path, name: str) -> None:
    weights = saved(name, tmp_path)
    tensors = load_file(weights)
    names = read_by(name, tmp_path)
    kinds = list(FOREIGN)
    for number, key in enumerate(names[:: max(1, len(names) // 12)]):
        kind = kinds[number % len(kinds)]
        save_file({**tensors, key: FOREIGN[kind](tensors[key])}, weights)
        with pytest.raises(CheckpointError, match=rf"'{key}' is of type {kind}.*wanted floats"):
            loaded(name, tmp_path)


@layouts(*QUICK)
def test_weights_that_are_not_there_or_not_whole_are_refused(tmp_path: Path, name: str) -> None:
    weights = saved(name, tmp_path)
    tensors = load_file(weights)
    names = read_by(name, tmp_path)
    for key in names[:: max(1, len(names) // 6)]:
        save_file({n: t for n, t in tensors.items() if n != key}, weights)
        with pytest.raises(CheckpointError):
            loaded(name, tmp_path)
        nan = torch.full_like(tensors[key], torch.nan)
        save_file({**tensors, key: nan}, weights)
        with pytest.raises(CheckpointError, match="not finite"):
            loaded(name, tmp_path)
    save_file(tensors, weights)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        loaded(name, tmp_path)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        loaded(name, tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        loaded(name, tmp_path)


def bitsandbytes_8(layer: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    scale = weight.abs().amax(1)
    yield f"{layer}.weight", (127 * weight / scale[:, None]).round().to(torch.int8)
    yield f"{layer}.SCB", scale


def bitsandbytes_4(layer: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{layer}.weight", torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
    yield f"{layer}.weight.absmax", torch.ones(4)
    yield f"{layer}.weight.quant_map", torch.ones(16)


def float8(layer: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{layer}.weight", weight.to(torch.float8_e4m3fn)
    yield f"{layer}.weight_scale_inv", torch.ones(1, 1)


def gptq(layer: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{layer}.qweight", torch.zeros(weight.shape[1] // 8, len(weight), dtype=torch.int32)
    yield f"{layer}.scales", torch.ones(1, len(weight)).half()


def simulated(layer: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Floats that are meant to be multiplied by a scale."""
    yield f"{layer}.weight", weight
    yield f"{layer}.weight_scale", torch.ones(len(weight), 1)


@pytest.mark.parametrize("method", [bitsandbytes_8, bitsandbytes_4, float8, gptq, simulated])
@pytest.mark.parametrize("stated", [None, "its_method"])
def test_a_quantised_layer_is_refused_by_the_methods_name(
    tmp_path: Path, method: Any, stated: str | None
) -> None:
    weights = saved("mimi", tmp_path)
    tensors = load_file(weights)
    layer = "encoder_transformer.layers.1.mlp.fc1"
    tensors |= dict(method(layer, tensors.pop(f"{layer}.weight")))
    save_file(tensors, weights)
    if stated:
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": stated}
        (tmp_path / "config.json").write_text(json.dumps(config))
    by = stated or "(bitsandbytes, [48] bits|FP8|GPTQ)"
    with pytest.raises(CheckpointError, match=f"{layer}.*quantised by {by}.*dequantize"):
        streamenc.load(tmp_path, part="encoder")
    assert streamenc.load(tmp_path, part="decoder").has_decoder


# Layouts


@pytest.mark.reference
@pytest.mark.parametrize(
    "make",
    [
        references.mimi,
        references.vit,
        lambda: references.vit("dinov2"),
        lambda: references.vit("dinov2", use_swiglu_ffn=True),
        lambda: references.vit("dinov2_with_registers"),
        references.encodec,
        references.whisper,
        references.resnet,
        lambda: references.speech("hubert"),
    ],
)
def test_names_in_a_folder_and_in_memory(tmp_path: Path, make: Callable[[], Any]) -> None:
    """transformers 5 has names of its own for tensors in memory, which many people save."""
    model = make()
    family = model.config.model_type
    model.save_pretrained(tmp_path)
    part: Any = "both" if family in ("mimi", "encodec") else "encoder"
    options: Any = zoo.WHISPER_CHUNKS if family == "whisper" else {}
    ours = fingerprints(streamenc.load(tmp_path, part=part, **options))
    save_file(
        {n: t.clone().contiguous() for n, t in model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    assert ours == fingerprints(streamenc.load(tmp_path, part=part, **options))
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    by_hand = streamenc.load(f"{family}:{tmp_path / 'mine.pt'}", part=part, **options)
    assert ours == fingerprints(by_hand)


ABSURD = (None, 0, -1, 3, 1e308, 2**40, True, "x", [], [0], [2**40], {}, {"a": 1})


@layouts()
def test_any_config_is_refused_or_runs(tmp_path: Path, name: str) -> None:
    saved(name, tmp_path)
    path = tmp_path / "config.json"
    if not path.exists():
        pytest.skip("its layout has no config")
    config = json.loads(path.read_text())
    for number, key in enumerate(config):
        for value in ABSURD[number % 3 :: 3]:
            path.write_text(json.dumps({**config, key: value}))
            try:
                codec = loaded(name, tmp_path)
            except StreamencError:
                continue
            spec = codec.spec
            Stream(codec.encoder).push(zoo.signal(codec.encoder, spec.lead + spec.hop))


@pytest.mark.reference
def test_a_processors_preparation_is_read(tmp_path: Path) -> None:
    """As transformers 5 saves it, in processor_config.json alone."""
    words = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "a"])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    references.speech("wav2vec2", **references.LAYER_NORM).save_pretrained(tmp_path)
    before, plain = streamenc.load(tmp_path), streamenc.load(tmp_path, normalize=False)
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
        transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")),
    ).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    read = streamenc.load(tmp_path)
    assert fingerprints(read) == fingerprints(plain) != fingerprints(before)


def test_an_image_processors_preparation_is_read(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    said = {"size": {"height": 12, "width": 12}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    nested = streamenc.load(tmp_path)
    assert nested.spec.input.image is not None and nested.spec.input.image.filter == "bicubic"
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert fingerprints(nested) == fingerprints(streamenc.load(tmp_path))


def test_rotary_positions_of_another_kind_are_refused(tmp_path: Path) -> None:
    saved("mimi", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="rope_parameters.*linear.*only 'default'"):
        streamenc.load(tmp_path)


class Dictionary:
    """As fairseq keeps one beside its weights."""

    def __init__(self) -> None:
        self.symbols = ["a", "b"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trainings_checkpoint_is_opened_for_its_weights(tmp_path: Path, zipped: bool) -> None:
    weights = saved("hubert-units", tmp_path / "folder")
    content = {
        "args": argparse.Namespace(arch="hubert", normalize=False),
        "task_state": {"dictionaries": [Dictionary()]},
        "model": load_file(weights),
        "optimizer_history": [{"criterion_name": "HubertCriterion"}],
    }
    path = tmp_path / "folder" / "hubert_base.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    options = zoo.row("hubert-units").options
    named = streamenc.load(path, part="encoder", **options)
    assert fingerprints(named) == fingerprints(loaded("hubert-units", tmp_path / "folder"))


# What stands beside the weights


def test_the_config_beside_a_named_file_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = saved("mimi", tmp_path)
    folder = fingerprints(streamenc.load(tmp_path))
    weights.rename(tmp_path / "mine.safetensors")
    for name in (tmp_path / "mine.safetensors", f"mimi:{tmp_path / 'mine.safetensors'}"):
        assert fingerprints(streamenc.load(name)) == folder
    assert not caplog.records


def test_the_config_of_another_model_beside_a_named_file_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = encodec_references.transformers_model(**encodec_references.SMALL)
    path = encodec_references.save_th(model, tmp_path / "mine.th")
    alone = fingerprints(streamenc.load(path))
    (tmp_path / "config.json").write_text('{"model_type": "moshi", "hidden_size": 4096}')
    for name in (path, f"encodec:{path}"):
        caplog.clear()
        assert fingerprints(streamenc.load(name)) == alone
        (record,) = caplog.records
        assert "config.json beside it is of 'moshi', not of encodec" in record.getMessage()


def test_a_size_that_is_advised_is_taken(tmp_path: Path) -> None:
    from streamenc.coding.defaults import wanted_images

    saved("vit", tmp_path)
    codec = streamenc.load(tmp_path)
    with pytest.raises(streamenc.UsageError, match=r"--set size=\d+x\d+") as caught:
        wanted_images(codec.spec, "22x17", None, None)
    size = str(caught.value).partition("--set size=")[2].split(",")[0]
    again = streamenc.load(tmp_path, size=size)
    assert again.spec.input.image is not None and size == "24x16"
    assert again.spec.input.image.size == (16, 24)
    with pytest.raises(streamenc.UsageError, match="multiples of 4: 24x16"):
        streamenc.load(tmp_path, size="22x17")
