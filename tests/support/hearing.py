"""BEATs written plainly, and the published layout of small models with random weights."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RATE, BANDS = 16_000, 128
CFG: dict[str, Any] = {
    "input_patch_size": 32,
    "embed_dim": 10,
    "conv_bias": False,
    "encoder_layers": 2,
    "encoder_embed_dim": 12,
    "encoder_ffn_embed_dim": 20,
    "encoder_attention_heads": 3,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "conv_pos": 6,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 8,
    "max_distance": 9,
    "gru_rel_pos": True,
    "dropout": 0.0,
    "finetuned_model": True,
    "predictor_class": 4,
}


def beats_tensors(seed: int = 0, **changed: Any) -> dict[str, Tensor]:
    """Random weights under the published names."""
    cfg = CFG | changed
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def put(name: str, *shape: int, base: float = 0.0, scale: float | None = None) -> None:
        spread = 1 / math.sqrt(math.prod(shape[1:])) if scale is None else scale
        tensors[name] = base + spread * torch.randn(shape, generator=generator)

    def linear(name: str, out: int, into: int) -> None:
        put(f"{name}.weight", out, into)
        put(f"{name}.bias", out, scale=0.1)

    def norm(name: str, width: int) -> None:
        put(f"{name}.weight", width, base=1.0, scale=0.1)
        put(f"{name}.bias", width, scale=0.1)

    patch, embed, width = cfg["input_patch_size"], cfg["embed_dim"], cfg["encoder_embed_dim"]
    heads, hidden = cfg["encoder_attention_heads"], cfg["encoder_ffn_embed_dim"]
    put("patch_embedding.weight", embed, 1, patch, patch)
    norm("layer_norm", embed)
    if embed != width:
        linear("post_extract_proj", width, embed)
    put("encoder.pos_conv.0.bias", width, scale=0.1)
    put("encoder.pos_conv.0.weight_g", 1, 1, cfg["conv_pos"], base=1.0, scale=0.2)
    put("encoder.pos_conv.0.weight_v", width, width // cfg["conv_pos_groups"], cfg["conv_pos"])
    norm("encoder.layer_norm", width)
    put("bias", cfg["num_buckets"], heads, scale=1.0)
    shared = tensors.pop("bias")
    for index in range(cfg["encoder_layers"]):
        there = f"encoder.layers.{index}."
        tensors[f"{there}self_attn.relative_attention_bias.weight"] = shared
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{there}self_attn.{part}", width, width)
        linear(f"{there}self_attn.grep_linear", 8, width // heads)
        put(f"{there}self_attn.grep_a", 1, heads, 1, 1, base=1.0, scale=0.3)
        linear(f"{there}fc1", hidden, width)
        linear(f"{there}fc2", width, hidden)
        norm(f"{there}self_attn_layer_norm", width)
        norm(f"{there}final_layer_norm", width)
    linear("predictor", cfg["predictor_class"], width)
    return tensors


def save_beats(path: Path, seed: int = 0, **changed: Any) -> None:
    """A file as published, {"cfg", "model"}."""
    torch.save({"cfg": CFG | changed, "model": beats_tensors(seed, **changed)}, path)


def plain_fbank(samples: np.ndarray) -> np.ndarray:
    """Kaldi's definition, frame by frame: (samples,) in [-1, 1] -> (frames, bands)."""
    length, hop, n_fft = 400, 160, 512
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85
    frames = []
    for start in range(0, len(samples) - length + 1, hop):
        frame = samples[start : start + length] * 32768.0
        frame = frame - frame.mean()
        emphasised = frame.copy()
        emphasised[1:] -= 0.97 * frame[:-1]
        emphasised[0] -= 0.97 * frame[0]
        power = np.abs(np.fft.rfft(emphasised * window, n_fft)) ** 2
        frames.append(np.log(np.maximum(triangles() @ power, 1.1920928955078125e-07)))
    return np.array(frames).reshape(-1, BANDS)


@functools.cache
def triangles() -> np.ndarray:
    """How much each of 257 bins adds to each band, (bands, bins)."""
    points = np.linspace(mel(20.0), mel(8000.0), BANDS + 2)
    weights = np.zeros((BANDS, 257))
    for band in range(BANDS):
        left, centre, right = points[band : band + 3]
        for index in range(256):
            at = mel(index * RATE / 512)
            if left < at < right:
                rising, falling = (at - left) / (centre - left), (right - at) / (right - centre)
                weights[band, index] = min(rising, falling)
    return weights


def mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)


def plain_beats(
    tensors: dict[str, Tensor], clip: Tensor, *, layer: int | None = None, **changed: Any
) -> Tensor:
    """The published model on one clip, (samples,) -> (tokens, width), in float64."""
    cfg = CFG | changed
    t = {name: tensor.double() for name, tensor in tensors.items()}
    frames = (torch.from_numpy(plain_fbank(clip.numpy())) - 15.41663) / (2 * 6.55582)
    patch, heads, depth = (
        cfg[key] for key in ("input_patch_size", "encoder_attention_heads", "encoder_layers")
    )
    x = F.conv2d(frames[None, None], t["patch_embedding.weight"], stride=patch)[0]
    x = x.permute(1, 2, 0).flatten(0, 1)  # time first, then frequency
    x = normed(t, "layer_norm", x)
    if "post_extract_proj.weight" in t:
        x = linear_of(t, "post_extract_proj", x)
    kernel = t["encoder.pos_conv.0.weight_v"]
    kernel = kernel / kernel.pow(2).sum(dim=(0, 1), keepdim=True).sqrt()
    # As weights are kept: in float32.
    kernel = (kernel * t["encoder.pos_conv.0.weight_g"]).float().double()
    pad, groups = cfg["conv_pos"] // 2, cfg["conv_pos_groups"]
    bias = t["encoder.pos_conv.0.bias"]
    wide = F.conv1d(x.t()[None], kernel, bias, padding=pad, groups=groups)[0, :, : len(x)]
    x = normed(t, "encoder.layer_norm", x + F.gelu(wide).t())
    buckets = [
        [bucket(key - query, cfg["num_buckets"], cfg["max_distance"]) for key in range(len(x))]
        for query in range(len(x))
    ]
    alpha = (2 * depth) ** 0.25
    for index in range(depth if layer is None else layer):
        there = f"encoder.layers.{index}."
        attention = f"{there}self_attn."
        table = t[f"{attention}relative_attention_bias.weight"][torch.tensor(buckets)]
        outputs = []
        q, k, v = (linear_of(t, f"{attention}{part}_proj", x).chunk(heads, -1) for part in "qkv")
        for head in range(heads):
            gates = linear_of(t, f"{attention}grep_linear", q[head])
            a, b = torch.sigmoid(gates.view(-1, 2, 4).sum(-1)).unbind(-1)
            gate = a * (b * t[f"{attention}grep_a"][0, head, 0, 0] - 1) + 2
            scores = q[head] @ k[head].t() / math.sqrt(q[head].shape[-1])
            scores = scores + gate[:, None] * table[:, :, head]
            outputs.append(scores.softmax(-1) @ v[head])
        y = linear_of(t, f"{attention}out_proj", torch.cat(outputs, -1))
        x = normed(t, f"{there}self_attn_layer_norm", alpha * x + y)
        y = linear_of(t, f"{there}fc2", F.gelu(linear_of(t, f"{there}fc1", x)))
        x = normed(t, f"{there}final_layer_norm", alpha * x + y)
    return x


def bucket(distance: int, buckets: int, farthest: int) -> int:
    """Which bias a key so far behind its query has."""
    half = buckets // 2
    near, size = half // 2, abs(distance)
    if size >= near:
        share = math.log(size / near) / math.log(farthest / near)
        size = min(half - 1, near + int(share * (half - near)))
    return size + (half if distance > 0 else 0)


def linear_of(t: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])


def normed(t: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)


def noise(samples: int, seed: int = 0) -> Tensor:
    """(samples,) in float64; louder and louder."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.02, 0.2, samples, dtype=torch.float64)


QFORMER_HIDDEN, QFORMER_OUT, WINDOW = 20, 6, 17


def salmonn_tensors(
    speech: int, audio: int, *, width: int = 64, queries: int = 1, layers: int = 2, seed: int = 7
) -> dict[str, Tensor]:
    """What is trained of SALMONN, with random weights, and something of its language model."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def linear(name: str, out: int, into: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(out, into, generator=generator) / into**0.5
        tensors[f"{name}.bias"] = 0.1 * torch.randn(out, generator=generator)

    def norm(name: str, channels: int) -> None:
        tensors[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=generator)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=generator)

    tensors["speech_query_tokens"] = torch.randn(1, queries, width, generator=generator)
    norm("ln_speech", speech)
    norm("ln_audio", audio)
    norm("speech_Qformer.bert.embeddings.LayerNorm", width)
    tensors["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    for index in range(layers):
        there = f"speech_Qformer.bert.encoder.layer.{index}."
        for attention, seen in (("attention", width), ("crossattention", speech + audio)):
            for part, into in (("query", width), ("key", seen), ("value", seen)):
                linear(f"{there}{attention}.self.{part}", width, into)
            linear(f"{there}{attention}.output.dense", width, width)
            norm(f"{there}{attention}.output.LayerNorm", width)
        linear(f"{there}intermediate_query.dense", QFORMER_HIDDEN, width)
        linear(f"{there}output_query.dense", width, QFORMER_HIDDEN)
        norm(f"{there}output_query.LayerNorm", width)
    linear("speech_llama_proj", QFORMER_OUT, width)
    lora = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    tensors[lora] = torch.randn(8, 6, generator=generator)
    return tensors


def plain_qformer(
    tensors: dict[str, Tensor], speech: Tensor, audio: Tensor, head_dim: int = 64
) -> Tensor:
    """The published fusion of one clip, (frames, channels) each -> (vectors, out), in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items() if "llama_model" not in name}
    speech, audio = normed(t, "ln_speech", speech), normed(t, "ln_audio", audio)
    longer = max(len(speech), len(audio))
    parts = [torch.cat((x, x.new_zeros(longer - len(x), x.shape[1]))) for x in (speech, audio)]
    fused, vectors = torch.cat(parts, dim=-1), []

    def attended(name: str, x: Tensor, seen: Tensor) -> Tensor:
        outputs = []
        q, k, v = (
            linear_of(t, f"{name}.self.{part}", y).split(head_dim, -1)
            for part, y in (("query", x), ("key", seen), ("value", seen))
        )
        for head in range(len(q)):
            scores = q[head] @ k[head].t() / math.sqrt(head_dim)
            outputs.append(scores.softmax(-1) @ v[head])
        y = linear_of(t, f"{name}.output.dense", torch.cat(outputs, -1))
        return normed(t, f"{name}.output.LayerNorm", x + y, 1e-12)

    for start in range(0, longer - WINDOW + 1, WINDOW):
        seen = fused[start : start + WINDOW]
        x = normed(
            t, "speech_Qformer.bert.embeddings.LayerNorm", t["speech_query_tokens"][0], 1e-12
        )
        index = 0
        while f"speech_Qformer.bert.encoder.layer.{index}.attention.self.query.weight" in t:
            there = f"speech_Qformer.bert.encoder.layer.{index}."
            x = attended(f"{there}attention", x, x)
            x = attended(f"{there}crossattention", x, seen)
            y = F.gelu(linear_of(t, f"{there}intermediate_query.dense", x))
            y = linear_of(t, f"{there}output_query.dense", y)
            x = normed(t, f"{there}output_query.LayerNorm", x + y, 1e-12)
            index += 1
        vectors.append(linear_of(t, "speech_llama_proj", x))
    return torch.cat(vectors)


def save_salmonn(folder: Path, **changed: Any) -> None:
    """A folder of the published file, with `whisper`, whose window is 1.2 s, and `beats` in it."""
    from tests.support import references

    references.whisper(max_source_positions=60).save_pretrained(folder / "whisper")
    (folder / "beats").mkdir()
    save_beats(folder / "beats" / "BEATs.pt")
    torch.save({"model": salmonn_tensors(16, 12, **changed)}, folder / "salmonn_v1.pth")
