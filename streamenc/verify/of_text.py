"""Published encoders of text."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.models.text.textencoder import BATCH, TextEncoder
from streamenc.verify.published import Absent, Published, Subject


def text(subject: Subject) -> Published:
    """transformers' model and its tokenizer, with the pooling of ours."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    encoder = subject.codec.encoder
    assert isinstance(encoder, TextEncoder)
    how = encoder.sentence
    config = AutoConfig.from_pretrained(subject.source, revision=subject.revision)
    model = subject.pretrained(T5EncoderModel if config.model_type == "t5" else AutoModel)
    path = Path(subject.source).expanduser()
    more = {} if path.exists() else {"revision": subject.revision}
    tokenizer = AutoTokenizer.from_pretrained(subject.source, **more)
    if not tokenizer.is_fast:
        raise Absent("transformers has another tokenizer for it than the one in tokenizer.json")

    def encode(texts: list[str]) -> Tensor:
        vectors = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                [how.prefix + one for one in texts[start : start + BATCH]],
                padding=True,
                truncation=True,
                max_length=how.longest,
                return_tensors="pt",
            ).to(subject.like.device)
            mask = batch["attention_mask"]
            made = model(input_ids=batch["input_ids"], attention_mask=mask)
            states, there = made.last_hidden_state, mask[..., None]
            if how.pooling == "mean":
                vectors.append((states * there).sum(dim=1) / there.sum(dim=1))
            elif how.pooling == "max":
                vectors.append(states.masked_fill(there == 0, -torch.inf).amax(dim=1))
            else:
                vectors.append(states[:, 0] if how.pooling == "cls" else made.pooler_output)
        stacked = torch.cat(vectors).T[None]
        return F.normalize(stacked, dim=1) if how.normalised else stacked

    return Published("transformers", encode)
