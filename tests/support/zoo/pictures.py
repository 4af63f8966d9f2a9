"""Models of images and video: Cosmos, ViT, DINOv2, ResNet, VAE, TAESD, VQGAN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support import references
from tests.support.zoo.row import ALONE, Promise, Row, other


def save_cosmos(folder: Path) -> None:
    references.cosmos().save_pretrained(folder)


def save_cosmos_4x8x8(folder: Path) -> None:
    references.cosmos(temporal_compression_ratio=4).save_pretrained(folder)


def save_cosmos_codes(folder: Path) -> None:
    """Six channels that are rounded, as in the models with codes; diffusers has none of them."""
    tensors = references.cosmos(temporal_compression_ratio=4).state_dict()
    generator = torch.Generator().manual_seed(7)
    for name, shape in (("quant_conv", (6, 5)), ("post_quant_conv", (5, 6))):
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        tensors[f"{name}.weight"] = weight[..., None, None, None]
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    save_file(tensors, folder / "model.safetensors")


def save_cosmos_images(folder: Path) -> None:
    save_file(references.cosmos_image_tensors(), folder / "model.safetensors")


def save_vit(family: str = "vit", **overrides: Any) -> Callable[[Path], None]:
    return lambda folder: references.vit(family, **overrides).save_pretrained(folder)


def save_resnet(folder: Path) -> None:
    references.resnet().save_pretrained(folder)


def save_vae(folder: Path) -> None:
    references.vae().save_pretrained(folder)


def save_vqgan(folder: Path) -> None:
    references.vqgan().save_pretrained(folder)


def save_movq(folder: Path) -> None:
    references.vqgan(**references.MOVQ_SMALL).save_pretrained(folder)


def save_dcae(folder: Path) -> None:
    references.dcae().save_pretrained(folder)


def save_taesd(folder: Path) -> None:
    references.taesd().save_pretrained(folder)


ROWS = [
    Row(
        "cosmos",
        "cosmos",
        save_cosmos,
        [(1, 8, 1, 1, 0, 1353), (1, 1, 1, 8, 0, 170)],
        options={"limit": 170},
    ),
    Row(
        "cosmos-window",
        "cosmos",
        save_cosmos,
        [(1, 8, 1, 1, 0, 0), (1, 1, 1, 8, 0, 0)],
        options={"mode": "window", "context": 5},
    ),
    Row(
        "cosmos-reference",
        "cosmos",
        save_cosmos_4x8x8,
        [(9, 9, 3, 3, 0, 0), (3, 3, 9, 9, 0, 0)],
        options={"mode": "reference", "clip": 9},
    ),
    Row(
        "cosmos-codes",
        "cosmos",
        save_cosmos_codes,
        [(1, 4, 1, 1, 0, 0), (1, 1, 1, 4, 0, 0)],
        options={"mode": "window", "context": 3},
    ),
    Row("cosmos-images", "cosmos", save_cosmos_images, [ALONE, ALONE]),
    Row("vit", "vit", save_vit(), [ALONE]),
    Row(
        "vit-patches",
        "vit",
        save_vit(),
        [ALONE],
        options={"output": "patches", "size": "any", "layers": "1,3"},
    ),
    Row("dinov2", "dinov2", save_vit("dinov2"), [ALONE], options={"size": 8}),
    Row(
        "dinov2-registers",
        "dinov2_with_registers",
        save_vit("dinov2_with_registers"),
        [ALONE],
        options={"size": "12x8", "output": "patches"},
    ),
    Row("resnet", "resnet", save_resnet, [ALONE], options={"size": "16x12"}),
    Row(
        "resnet-grid",
        "resnet",
        save_resnet,
        [ALONE],
        options={"size": "any", "output": "grid", "layer": 1},
    ),
    Row("vae", "vae", save_vae, [ALONE, ALONE]),
    Row("vqgan", "vqgan", save_vqgan, [ALONE, ALONE]),
    Row("movq", "vqgan", save_movq, [ALONE, ALONE]),
    Row("dcae", "dcae", save_dcae, [ALONE, ALONE]),
    Row("taesd", "taesd", save_taesd, [ALONE, ALONE]),
]
PUBLISHED: dict[str, Promise] = {
    "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8": (1, 4, 1, 1, 0, 125),
    "nvidia/Cosmos-0.1-Tokenizer-CV8x8x8": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-CV8x16x16": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8": (1, 4, 1, 1, 0, 125),
    "nvidia/Cosmos-0.1-Tokenizer-DV8x8x8": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-DV8x16x16": (1, 8, 1, 1, 0, 249),
    "nvidia/Cosmos-0.1-Tokenizer-CI8x8": ALONE,
    "nvidia/Cosmos-0.1-Tokenizer-CI16x16": ALONE,
    "nvidia/Cosmos-0.1-Tokenizer-DI8x8": ALONE,
    "nvidia/Cosmos-0.1-Tokenizer-DI16x16": ALONE,
    "google/vit-base-patch16-224": ALONE,
    "facebook/dinov2-small": ALONE,
    "facebook/dinov2-base": ALONE,
    "microsoft/resnet-50": ALONE,
    "stabilityai/sd-vae-ft-mse": ALONE,
    "madebyollin/taesd": ALONE,
    "amused/amused-256/vqvae": ALONE,
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers": ALONE,
    "mit-han-lab/dc-ae-f64c128-in-1.0-diffusers": ALONE,
    "mit-han-lab/dc-ae-f128c512-in-1.0-diffusers": ALONE,
    "kandinsky-community/kandinsky-2-2-decoder/movq": ALONE,
}
CONFIGURED = [
    ("vit", other("layer_norm_eps", 1e-6)),
    ("vit", other("num_attention_heads", 4)),
    ("dinov2", other("layer_norm_eps", 1e-5)),
    ("dinov2", other("num_attention_heads", 4)),
    ("dinov2-registers", other("layer_norm_eps", 1e-5)),
    ("resnet", other("downsample_in_first_stage", True)),
    ("vae", other("norm_num_groups", 4)),
    ("vqgan", other("norm_num_groups", 4)),
    ("dcae", other("decoder_conv_act_fn", "silu")),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("cosmos", {"mode": "window"}),
    ("cosmos-window", {"context": 4}),
    ("cosmos-codes", {"levels": (5, 5, 5, 8, 8, 8)}),
    ("taesd", {"rate": 30}),
    ("vit", {"size": 8}),
]
