"""Streams sound through an exported step with onnxruntime and numpy alone: no streamenc, no torch.

    streamenc export nano nano.onnx --codebooks 12
    python examples/onnx_step.py nano.json speech.wav

The JSON beside the graph says how long the steps are and which tensors are the state. The first
step, `start`, needs no state; each later one takes the state of the one before.
"""

from __future__ import annotations

import json
import sys
import time
import wave
from pathlib import Path

import numpy as np
import onnxruntime


def main(description: str, sound: str) -> None:
    folder, about = Path(description).parent, json.loads(Path(description).read_text())
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = 1
    start, step = (
        onnxruntime.InferenceSession(folder / about[which], threads) for which in ("start", "step")
    )
    samples = read_wav(sound, about["input"]["rate"])
    first, later = about["input"]["first_items"], about["input"]["items"]
    names = [leaf["name"] for leaf in about["state"]]

    codes, *state = start.run(None, {"x": samples[None, None, :first]})
    parts, times_ms = [codes], []
    # A tail shorter than a step is left out here.
    for begin in range(first, len(samples) - later + 1, later):
        feed = {"x": samples[None, None, begin : begin + later]}
        feed |= dict(zip(names, state, strict=True))
        begun = time.perf_counter()
        codes, *state = step.run(None, feed)
        times_ms.append((time.perf_counter() - begun) * 1e3)
        parts.append(codes)

    whole = np.concatenate(parts, axis=-1)[0]
    step_ms = later / about["input"]["rate"] * 1e3
    print(f"{about['model']}: {whole.shape[0]} codebooks x {whole.shape[1]} frames")
    print(f"first frame: {whole[:, 0].tolist()}")
    print(f"median step {np.median(times_ms):.2f} ms, for {step_ms:g} ms of sound")


def read_wav(path: str, rate: float) -> np.ndarray:
    """16-bit mono samples as floats in [-1, 1]."""
    with wave.open(path) as file:
        found = file.getframerate(), file.getnchannels(), file.getsampwidth()
        if found != (rate, 1, 2):
            sys.exit(f"{path}: got (rate, channels, bytes) {found}; wanted ({rate:g}, 1, 2)")
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return pcm.astype(np.float32) / 32768


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
