"""Published encoders of text."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.models.text.textencoder import TextEncoder
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
        for one in texts:
            ids = tokenizer(
                how.prefix + one, truncation=True, max_length=how.longest, return_tensors="pt"
            )["input_ids"]
            made = model(input_ids=ids.to(subject.like.device))
            states = made.last_hidden_state[0]
            if how.pooling == "mean":
                vectors.append(states.mean(dim=0))
            elif how.pooling == "max":
                vectors.append(states.amax(dim=0))
            else:
                vectors.append(states[0] if how.pooling == "cls" else made.pooler_output[0])
        stacked = torch.stack(vectors, dim=1)[None]
        return F.normalize(stacked, dim=1) if how.normalised else stacked

    return Published("transformers", encode)
