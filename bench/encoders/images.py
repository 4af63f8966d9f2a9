"""Encoders of images, of the published sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.encoders import Encoder


def _transformers(kind: str, **sizes: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**sizes)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)

    return save


def _diffusers(kind: str, **sizes: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        import diffusers

        getattr(diffusers, kind)(**sizes).save_pretrained(folder)

    return save


_MOVQ = {
    "block_out_channels": (128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 16384,
    "norm_type": "spatial",
    "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
}
_DCAE = {
    **{
        f"{side}_block_types": (*("ResBlock",) * 3, *("EfficientViTBlock",) * 3)
        for side in ("encoder", "decoder")
    },
    **{f"{side}_qkv_multiscales": ((),) * 6 for side in ("encoder", "decoder")},
    "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
    "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
    "decoder_norm_types": (*("batch_norm",) * 3, *("rms_norm",) * 3),
    "decoder_act_fns": (*("relu",) * 3, *("silu",) * 3),
}
_SAVE_MOVQ, _SAVE_DCAE = _diffusers("VQModel", **_MOVQ), _diffusers("AutoencoderDC", **_DCAE)
_SIGLIP = _transformers("SiglipVision", patch_size=16, image_size=224)
_NAFLEX = _transformers("Siglip2Vision", patch_size=16, num_patches=256)


def _save_video_llava(folder: Path) -> None:
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    small = {"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    text = {"model_type": "llama", **small, **heads, "vocab_size": 64}
    VideoLlavaForConditionalGeneration(VideoLlavaConfig(text_config=text)).save_pretrained(folder)


ENCODERS = [
    Encoder("CLIP base, 32 pixels", "clip_vision_model", _transformers("CLIPVision")),
    Encoder("SigLIP 2 base", "siglip_vision_model", _SIGLIP),
    Encoder("SigLIP 2 base NaFlex", "siglip2_vision_model", _NAFLEX),
    Encoder("DINOv3 small", "dinov3_vit", _transformers("DINOv3ViT", num_register_tokens=4)),
    Encoder("Video-LLaVA, a frame", "video_llava", _save_video_llava, seconds=1),
    Encoder("MoVQ encoder", "vqgan", _SAVE_MOVQ, seconds=1, size=(128, 128)),
    Encoder("MoVQ decoder", "vqgan", _SAVE_MOVQ, seconds=1, size=(128, 128), part="decoder"),
    Encoder("DC-AE encoder", "dcae", _SAVE_DCAE, seconds=1, size=(256, 256)),
    Encoder("DC-AE decoder", "dcae", _SAVE_DCAE, seconds=1, size=(256, 256), part="decoder"),
]
