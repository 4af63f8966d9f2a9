"""Trains a small language model on the tokens of sound, for a minute.

    python examples/train_lm/train.py --out RUN                   # on the clip of this repository
    python examples/train_lm/train.py FOLDER --out RUN --minutes 10

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import LanguageModel
from torch import Tensor
from torch.utils.data import DataLoader

import streamenc.bulk
from streamenc.bulk.tokendataset import TokenSet
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize

CLIPS = Path(__file__).parent.parent / "data"
REPORT_STEPS = 100


def tokenized(o: argparse.Namespace) -> TokenSet:
    """The set of tokens, made if it is not there yet."""
    ask = ModelAsk(name=o.model, codebooks=o.codebooks)
    job = TokenizeJob(input=str(o.input), models=(ask,), layout="flat")
    tokenize(job, o.out / "tokens", workers=0)
    return streamenc.bulk.open(o.out / "tokens")


def windows(tokens: TokenSet, o: argparse.Namespace) -> Iterator[Tensor]:
    """(batch, context + 1): rows of the set, in a new order in each epoch, cut where frames begin.

    Short rows are put behind each other, so that no place of a batch is empty.
    """
    rows = tokens.torch(shuffle=True, seed=o.seed)
    rng = np.random.default_rng(o.seed)
    length, batch, epoch = o.context + 1, [], 0
    while True:
        rows.set_epoch(epoch)
        left = torch.zeros(0, dtype=torch.int64)
        for row in DataLoader(rows, batch_size=None, num_workers=o.workers):
            start = o.codebooks * int(rng.integers(0, o.context // o.codebooks))
            left = torch.cat((left, row["codes"][start:]))
            while len(left) >= length:
                batch.append(left[:length])
                left = left[o.context :]  # which is whole frames
                if len(batch) == o.batch:
                    yield torch.stack(batch)
                    batch = []
        epoch += 1


def unigram_entropy(tokens: TokenSet) -> float:
    """Bits a token, of who knows how common each is, and which codebook is due: what is to beat."""
    model = tokens.models[0]
    counts = np.zeros(model.entries)
    for row in tokens:
        np.add.at(counts, row["codes"], 1)
    bits = 0.0
    for book in counts.reshape(model.codebooks, -1):
        share = book[book > 0] / book.sum()
        bits -= float((share * np.log2(share)).sum()) / model.codebooks
    return bits


def train(lm: LanguageModel, tokens: TokenSet, o: argparse.Namespace) -> list[float]:
    """Bits a token of each step."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=o.lr, weight_decay=0.01)
    losses: list[float] = []
    began = time.monotonic()
    for batch in windows(tokens, o):
        seconds = time.monotonic() - began
        part = len(losses) / o.steps if o.steps else seconds / 60 / o.minutes
        if part >= 1:
            break
        for group in optimizer.param_groups:  # warms up, and falls to a tenth
            group["lr"] = o.lr * min(1, (len(losses) + 1) / 50) * (1 - 0.9 * part)
        logits = lm(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()) / math.log(2))
        if len(losses) % REPORT_STEPS == 0:
            mean = np.mean(losses[-REPORT_STEPS:])
            print(f"step {len(losses)}  {seconds:.0f} s  {mean:.2f} bits a token", flush=True)
    return losses


def go_on(lm: LanguageModel, tokens: TokenSet, o: argparse.Namespace) -> None:
    """The beginning of a row and what the model makes follow, as a WAV."""
    facts = tokens.models[0]
    row = next(iter(tokens))
    count = int(o.seconds * float(row["frame_rate"])) // o.codebooks * o.codebooks
    start = torch.from_numpy(row["codes"][:count].astype(np.int64))
    rng = torch.Generator().manual_seed(o.seed)
    made = lm.eval().go_on(start, count, facts.codebooks, o.temperature, rng)
    sound = tokens.decode(row | {"codes": made.numpy(), "gaps": [], "n_samples": None})
    write_wav(o.out / "continued.wav", sound, int(float(facts.rate)))
    print(f"{o.out / 'continued.wav'}: {o.seconds:g} s of {row['key']}, and as much behind it")


def write_wav(path: Path, sound: Tensor, rate: int) -> None:
    """(channels, samples) in [-1, 1], as 16-bit PCM."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((len(sound), 2, rate, 0, "NONE", ""))
        file.writeframes((sound.clamp(-1, 1).T * 32767).round().numpy().astype("<i2").tobytes())


def plot(losses: list[float], entropy: float, path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=0.8, label="language model")
    axes.axhline(entropy, color="black", linestyle="--", label="unigram entropy")
    axes.set(xlabel="step", ylabel="bits a token", xlim=(1, max(2, len(losses))))
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "input", nargs="?", default=CLIPS, help="what `streamenc tokenize` takes: a folder of sound"
    )
    add("--out", type=Path, required=True, help="folder for the tokens, the WAV and the plot")
    add("--model", default="nano", help="a codec, which decodes as well")
    add("--codebooks", type=int, default=2, help="of each frame")
    add("--minutes", type=float, default=1, help="training time")
    add("--steps", type=int, default=0, help="so many steps instead")
    add("--batch", type=int, default=4, help="windows in a batch")
    add("--context", type=int, default=128, help="tokens that the model sees")
    add("--workers", type=int, default=0, help="processes of the DataLoader")
    add("--lr", type=float, default=4e-3, help="learning rate")
    add("--seconds", type=float, default=2, help="of sound that is continued, and by how much")
    add("--temperature", type=float, default=0.8, help="of what is drawn")
    add("--seed", type=int, default=1)
    o = parser.parse_args()
    if o.context % o.codebooks:
        parser.error("--context is a multiple of --codebooks: windows hold whole frames")
    if o.minutes <= 0 or o.steps < 0 or o.batch < 1 or o.seconds <= 0 or o.temperature <= 0:
        parser.error("--minutes, --batch, --seconds and --temperature are above 0")
    return o


def main() -> None:
    o = options()
    torch.manual_seed(o.seed)
    tokens = tokenized(o)
    entropy = unigram_entropy(tokens)
    print(f"{tokens}\nunigram entropy: {entropy:.2f} bits a token")
    lm = LanguageModel(tokens.models[0].entries, o.context)
    losses = train(lm, tokens, o)
    last = np.mean(losses[-20:])
    print(f"{len(losses)} steps: {last:.2f} bits a token at the end, {entropy - last:.2f} less")
    plot(losses, entropy, o.out / "loss.png")
    go_on(lm, tokens, o)


if __name__ == "__main__":
    main()
