"""Trains a nano codec on your own speech; what it writes, `streamenc.load` takes.

    python examples/train_codec/train.py FOLDER... --out RUN [--minutes 60]
    python examples/train_codec/train.py FOLDER... --out RUN            # goes on where it stopped
    python examples/train_codec/train.py FOLDER... --out RUN --start nano   # fine-tunes
    python examples/train_codec/train.py --smoke --out RUN              # a minute, to see it work

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Crops, Source, load_sources, readable
from discriminators import Discriminators
from losses import SpectralLoss
from model import Average, TrainableCodec, has_bfloat16, optimizers
from torch import Tensor, nn
from validation import validate

from streamenc.coding.usage import perplexity
from streamenc.models.nano import NanoConfig

SPEECH = Path(__file__).parent.parent / "data"
SMALL = NanoConfig(
    spectral_width=64,
    spectral_hidden=128,
    encoder_width=64,
    encoder_blocks=1,
    encoder_hidden=128,
    decoder_width=64,
    decoder_blocks=1,
    decoder_hidden=128,
    synthesis_width=64,
    synthesis_blocks=1,
    synthesis_hidden=128,
    latent=32,
    codebooks=8,
    entries=256,
)
WEIGHTS = {"mel": 1.0, "magnitude": 50.0, "phase": 20.0, "commitment": 0.5}
ADVERSARIAL, MATCHING = 0.1, 0.5
WARM_UP_STEPS, REPORT_STEPS, REPORT_SECONDS = 200, 100, 30
CLIP = 3.0


@dataclass
class Progress:
    """How far a run has come; saved with it."""

    step: int = 0
    seconds: float = 0.0
    adversarial_steps: int = 0


@dataclass
class Run:
    """A training run: all that a checkpoint holds, and how to take a step."""

    options: argparse.Namespace
    model: TrainableCodec
    crops: Crops
    rng: np.random.Generator
    progress: Progress = field(default_factory=Progress)
    codes: Tensor | None = None  # of the last step

    def __post_init__(self) -> None:
        o = self.options
        self.average = Average(self.model)
        self.optimizers = optimizers(self.model, o.lr)
        self.judges = Discriminators(o.judge_width, mixed=o.mixed).to(o.device)
        self.judges_optimizer = torch.optim.AdamW(
            self.judges.parameters(), lr=o.judge_lr, betas=(0.5, 0.9), weight_decay=0.0
        )
        self.loss = SpectralLoss(self.model.config.sample_rate).to(o.device)

    def part(self) -> float:
        """How much of the run is over, 0 to 1."""
        o = self.options
        if o.steps:
            return self.progress.step / o.steps
        return self.progress.seconds / 60 / o.minutes

    def learning_rate(self) -> float:
        """Warms up, stays, and falls linearly over the last part of the run."""
        o = self.options
        rest = (1 - self.part()) / (1 - o.decay_from)
        warm = min(1.0, (self.progress.step + 1) / WARM_UP_STEPS)
        return float(o.lr * warm * min(1.0, max(0.02, rest)))

    def take_step(self) -> dict[str, Tensor]:
        o, config = self.options, self.model.config
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        x = self.crops.draw(self.rng).to(o.device)
        levels = draw_levels(self.rng, len(x), config.codebooks).to(o.device)
        if self.progress.step < o.plain_steps:
            # The codebooks' first entries are vectors of an encoder that already says something.
            z = self.model.encode(x)
            y, commitment = self.model.decode(z), 1e-3 * z.square().mean()
        else:
            y, commitment, self.codes = self.model(x, levels)
        # The first frame has no past: windows that would reach into it do not exist.
        decoded = y[:, 0, config.frame :]
        original = x[:, 0, config.frame : y.shape[-1]]
        losses = self.loss(decoded, original) | {"commitment": commitment}
        total = sum((WEIGHTS[name] * value for name, value in losses.items()), y.new_zeros(()))
        if self.part() >= o.adversarial_from:
            total = total + self._adversarial(original, decoded, losses)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.average.follow(self.model)
        self.progress.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def _adversarial(self, original: Tensor, decoded: Tensor, losses: dict[str, Tensor]) -> Tensor:
        """Trains the discriminators by a step; their verdict on the codec, once they know a bit."""
        o = self.options
        some = slice(0, max(1, round(len(original) * o.judged)))
        judged = self.judges.loss(original[some], decoded[some])
        judged.backward()
        self.judges_optimizer.step()
        self.judges_optimizer.zero_grad(set_to_none=True)
        self.progress.adversarial_steps += 1
        losses["judges"] = judged
        if self.progress.adversarial_steps <= o.judge_warm_up:
            return decoded.new_zeros(())
        self.judges.requires_grad_(False)
        adversarial, matching = self.judges.verdict(original[some], decoded[some])
        self.judges.requires_grad_(True)
        losses |= {"adversarial": adversarial, "matching": matching}
        return ADVERSARIAL * adversarial + MATCHING * matching

    def save(self, path: Path) -> None:
        """Atomically: what was saved before stays whole if this is interrupted."""
        parts = {
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "average_steps": self.average.steps,
            "judges": self.judges.state_dict(),
            "judges_optimizer": self.judges_optimizer.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "config": asdict(self.model.config),
            "judge_width": self.options.judge_width,
        }
        partial = path.with_suffix(".partial")
        torch.save(parts, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        parts = torch.load(path, map_location=self.options.device, weights_only=True)
        if parts["config"] != asdict(self.model.config):
            raise SystemExit(f"{path} is of another shape of model; give another --out")
        if parts["judge_width"] != self.options.judge_width:
            raise SystemExit(f"{path} was made with --judge-width {parts['judge_width']}")
        self.model.load_state_dict(parts["model"])
        self.average.model.load_state_dict(parts["average"])
        self.average.steps = parts["average_steps"]
        self.judges.load_state_dict(parts["judges"])
        self.judges_optimizer.load_state_dict(parts["judges_optimizer"])
        for optimizer, state in zip(self.optimizers, parts["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.progress = Progress(**parts["progress"])


def draw_levels(rng: np.random.Generator, batch: int, most: int) -> Tensor:
    """Quantizer dropout: three quarters, three eighths or all of the books, or any number."""
    favoured = [max(1, most * 3 // 4), max(1, most * 3 // 8), most]
    picks = rng.choice(4, size=batch, p=[0.35, 0.2, 0.1, 0.35])
    return torch.tensor(
        [favoured[pick] if pick < 3 else int(rng.integers(1, most + 1)) for pick in picks]
    )


def train(run: Run, clips: list[np.ndarray], sources: list[Source]) -> None:
    """Steps until the time is over or Ctrl-C; saves, validates and exports now and then."""
    o, out = run.options, run.options.out
    curves = Curves(out / "curves.csv")
    validated = time.monotonic()
    shown = Progress(run.progress.step, run.progress.seconds)
    totals: dict[str, list[Tensor]] = {}

    def checkpoint() -> None:
        run.save(out / "last.pt")
        settled = run.average.settle(run.model)
        settled.save(out / "codec")
        describe(out / "codec" / "training.json", run, sources)
        curves.add(run.progress, "validation", validate(settled, clips))

    try:
        while run.part() < 1:
            begun = time.monotonic()
            for name, value in run.take_step().items():
                totals.setdefault(name, []).append(value)
            p = run.progress
            p.seconds += time.monotonic() - begun
            if p.step % REPORT_STEPS == 0 or p.seconds - shown.seconds > REPORT_SECONDS:
                means = {name: float(torch.stack(v).mean()) for name, v in totals.items()}
                if run.codes is not None:
                    for book in (1, run.codes.shape[1]):
                        codes = run.codes[:, book - 1]
                        used = perplexity(codes[codes >= 0].cpu().numpy())
                        means[f"perplexity_{book}"] = used
                curves.add(p, "training", means)
                show(run, means, (p.step - shown.step) / (p.seconds - shown.seconds))
                shown, totals = Progress(p.step, p.seconds), {}
            if time.monotonic() - validated > o.validate_every * 60:
                checkpoint()
                validated = time.monotonic()
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
    checkpoint()
    print(f"codec in {out / 'codec'}: streamenc.load({str(out / 'codec')!r})", file=sys.stderr)


def show(run: Run, means: dict[str, float], steps_per_second: float) -> None:
    p = run.progress
    values = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
    print(
        f"{100 * run.part():5.1f} %  step {p.step}  {p.seconds / 60:.1f} min  "
        f"{steps_per_second:.2f} steps/s  {values}",
        file=sys.stderr,
        flush=True,
    )


class Curves:
    """A CSV file of what was measured when: step, minutes, phase, name, value."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, progress: Progress, phase: str, values: dict[str, float]) -> None:
        new = not self.path.exists()
        minutes = round(progress.seconds / 60, 3)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("step", "minutes", "phase", "name", "value"))
            for name, value in values.items():
                writer.writerow((progress.step, minutes, phase, name, f"{value:.6g}"))


def describe(path: Path, run: Run, sources: list[Source]) -> None:
    """What a model card needs to know of the run."""
    told: dict[str, Any] = {
        "sources": [
            {"folder": x.folder.name, "hours": round(x.hours, 3), "share": round(x.share, 4)}
            for x in sources
        ],
        "options": {k: v for k, v in vars(run.options).items() if k not in ("folders", "out")},
        "progress": asdict(run.progress),
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(told, indent=2) + "\n")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER[=SHARE]", help="speech; and its share of a batch")
    add("--out", type=Path, required=True, help="folder for checkpoints, curves and the codec")
    add("--minutes", type=float, default=60, help="training time, over all resumptions")
    add("--steps", type=int, default=0, help="so many steps instead")
    add("--start", metavar="MODEL", help="go on from a trained nano model instead of from nothing")
    add("--batch", type=int, default=24, help="crops in a batch")
    add("--frames", type=int, default=64, help="length of a crop, in frames of 20 ms")
    add("--lr", type=float, default=2e-3, help="learning rate")
    add("--decay-from", type=float, default=0.45, help="where in the run it begins to fall")
    add("--plain-steps", type=int, default=None, help="steps before quantisation begins (300)")
    add("--adversarial-from", type=float, default=0.7, help="when discriminators begin; 1: never")
    add("--judged", type=float, default=0.5, help="part of the batch that discriminators see")
    add("--judge-lr", type=float, default=3e-4, help="learning rate of the discriminators")
    add("--judge-width", type=int, default=32, help="channels of their first layer")
    add("--judge-warm-up", type=int, default=200, help="steps before their verdict counts")
    add("--held-out", type=int, default=20, help="last files of the first folder, to validate on")
    add("--validate-every", type=float, default=5, metavar="MINUTES")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=0, help="CPU threads; torch's choice if not given")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--float32", action="store_true", help="no bfloat16, even where the processor has it")
    add("--smoke", action="store_true", help="a small model on a clip of this repository")
    o = parser.parse_args()
    if o.smoke:
        o.folders = o.folders or [str(SPEECH)]
        o.held_out, o.batch, o.frames, o.judge_width, o.judge_warm_up = 0, 8, 32, 8, 5
        o.steps = o.steps or 150
        o.plain_steps = 20 if o.plain_steps is None else o.plain_steps
    if not o.folders:
        parser.error("no FOLDER of speech was given; --smoke needs none")
    if not hasattr(torch.optim, "Muon"):
        parser.error(f"got torch {torch.__version__}; training needs 2.9 or newer, for Muon")
    if o.minutes <= 0 or o.steps < 0 or o.batch < 1 or o.frames < 8 or o.held_out < 0:
        parser.error("--minutes and --batch are above 0, --frames is at least 8, none is negative")
    if o.plain_steps is None:
        o.plain_steps = 0 if o.start else 300
    if not (0 <= o.decay_from < 1 and 0 <= o.adversarial_from <= 1 and 0 < o.judged <= 1):
        parser.error("--decay-from, --adversarial-from and --judged are parts of a whole, 0 to 1")
    o.mixed = has_bfloat16(o.device) and not o.float32
    return o


def main() -> None:
    o = options()
    if o.threads:
        torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    o.out.mkdir(parents=True, exist_ok=True)
    config = SMALL if o.smoke else NanoConfig()
    model = TrainableCodec.like(o.start) if o.start else TrainableCodec(config)
    model.mixed = o.mixed
    model.to(o.device).train()
    config = model.config
    sources, validation = load_sources(o.folders, config.sample_rate, o.held_out)
    clips = [readable(path, config.sample_rate)[: 5 * config.sample_rate] for path in validation]
    clips = [clip for clip in clips if len(clip) > config.sample_rate // 2 and clip.any()]
    crops = Crops(sources, (o.frames + 1) * config.frame, o.batch)
    run = Run(o, model, crops, np.random.default_rng(o.seed))
    if (o.out / "last.pt").exists():
        run.restore(o.out / "last.pt")
        # Other crops than before: the generator is not saved.
        run.rng = np.random.default_rng([o.seed, run.progress.step])
        print(f"goes on from step {run.progress.step}", file=sys.stderr)
    train(run, clips, sources)


if __name__ == "__main__":
    main()
