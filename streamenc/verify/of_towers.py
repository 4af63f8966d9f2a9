"""Published vision towers: those of CLIP and SigLIP, and Video-LLaVA's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamenc.verify.of_images import by_time, flat, preparation
from streamenc.verify.published import Absent, Published, Subject


def clip(subject: Subject) -> Published:
    """transformers' CLIP, SigLIP and SigLIP 2: what our `output` says, of the last layer."""
    import transformers

    if subject.options.keys() & {"layer", "layers", "norm"}:
        raise Absent("other hidden states than the last one are compared in streamenc's own tests")
    output = subject.options.get("output", "pooled")
    kind = transformers.AutoModel
    if subject.codec.family == "clip_vision_model" and output == "embedding":
        kind = transformers.CLIPVisionModelWithProjection
    model = subject.pretrained(kind)
    tower: Any = getattr(model, "vision_model", model)
    patch, naflex = tower.config.patch_size, tower.config.model_type.startswith("siglip2")
    ours: Any = subject.codec.encoder
    # NaFlex's processor chooses sizes, and cuts patches.
    prepared = (lambda images: ours.prepared(flat(images))) if naflex else preparation(subject)

    def encode(images: Tensor) -> Tensor:
        pixels = prepared(images)
        rows, columns = (side // patch for side in pixels.shape[2:])
        given: dict[str, Any] = {"pixel_values": pixels, "interpolate_pos_encoding": True}
        if naflex:
            # All images have one size, so that none of them is padded.
            cut = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
            whole = cut.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), rows * columns, -1)
            shapes = torch.tensor([[rows, columns]] * len(pixels), device=pixels.device)
            mask = torch.ones(whole.shape[:2], dtype=torch.long, device=pixels.device)
            given = {
                "pixel_values": whole,
                "spatial_shapes": shapes,
                "pixel_attention_mask": mask,
            }
        found = tower(**given)
        if output == "pooled":
            return by_time(found.pooler_output, images)
        if output == "embedding":
            return by_time(model.visual_projection(found.pooler_output), images)
        hidden = found.last_hidden_state
        if output == "cls":
            return by_time(hidden[:, 0], images)
        grid = hidden[:, hidden.shape[1] - rows * columns :].transpose(1, 2)
        return by_time(grid.unflatten(2, (rows, columns)), images)

    return Published("transformers", encode)


def video_llava(subject: Subject) -> Published:
    """transformers' Video-LLaVA: what its language model reads of videos."""
    from transformers import VideoLlavaForConditionalGeneration

    if subject.options:
        raise Absent("other outputs than the published one are compared in streamenc's own tests")
    if subject.codec.spec.hop > 1:
        raise Absent("transformers has no attention between frames, as this layout has")
    model = subject.pretrained(VideoLlavaForConditionalGeneration).model
    prepared = preparation(subject)

    def encode(images: Tensor) -> Tensor:
        states = model.get_video_features(prepared(images)[None]).pooler_output
        tokens = states.reshape(images.shape[0] * images.shape[2], -1, states.shape[-1])
        return by_time(tokens.transpose(1, 2)[:, :, None], images)

    return Published("transformers", encode)
