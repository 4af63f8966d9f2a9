"""`python -m tests.release DIST`: what users get, tried in empty environments.

Makes an environment for the wheel alone, for each of its extras alone, for the source
distribution, and for the lowest versions that its metadata allows, torch aside; uses each as its
reader would, away from any checkout; and looks whether a feature whose extra is missing says so by
its name. Needs `uv`.

    python -m build && python -m tests.release dist
    python -m tests.release dist --only core --only mqtt
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

CLIP = Path(__file__).parents[1] / "examples" / "data" / "speech.flac"
# Not the newest: pip's torch for Linux brings CUDA with it.
TORCH = "torch==2.13.0"


class Environment:
    """A virtual environment that has one distribution, and an empty folder to work in."""

    def __init__(self, folder: Path, torch: str, *install: str) -> None:
        self.bin, self.work = folder / "venv" / "bin", folder / "work"
        self.tidy()
        self.variables = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        } | {"VIRTUAL_ENV": str(folder / "venv"), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
        self._check([_uv(), "venv", "--quiet", "--python", sys.executable, str(folder / "venv")])
        self._check([_uv(), "pip", "install", "--quiet", torch, *install])

    def tidy(self) -> None:
        """A folder that has a clip, and nothing else."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        shutil.copy(CLIP, self.work / "talk.flac")

    def streamenc(self, *arguments: str) -> str:
        """What `streamenc ARGUMENTS` prints. Raises RuntimeError where it fails."""
        return self._check([str(self.bin / "streamenc"), *arguments])

    def python(self, source: str) -> str:
        return self._check([str(self.bin / "python"), "-W", "error", "-c", source])

    def refused(self, wanted: str, *arguments: str) -> None:
        """Raises RuntimeError unless `streamenc ARGUMENTS` fails with `wanted` in a sentence."""
        done = self._run([str(self.bin / "streamenc"), *arguments])
        told = " ".join(re.sub(r"[│╭╰─╮╯]", " ", done.stderr).split())
        if done.returncode == 0 or wanted not in told or "Traceback" in told:
            raise RuntimeError(f"{arguments} should have been refused with {wanted!r}: {told}")

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def _check(self, command: Sequence[str]) -> str:
        done = self._run(command)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout


def _uv() -> str:
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit("tests.release needs uv: pip install uv")
    return found


def core(at: Environment) -> None:
    """What the package does without any extra."""
    at.streamenc("--version")
    at.streamenc("models")
    at.streamenc("devices")
    at.streamenc("encode", "talk.flac", "tokens.arrows", "--codebooks", "12")
    at.streamenc("decode", "tokens.arrows", "talk.wav")
    at.streamenc("inspect", "tokens.arrows")
    at.streamenc("encode", "talk.flac", "mel.parquet", "-m", "mel")
    at.streamenc("tokenize", "*.flac", "set", "-m", "nano", "--codebooks", "8")
    at.streamenc("verify", "set")
    at.python(
        "import streamenc, sys; assert 'torch' not in sys.modules\n"
        "tokens = streamenc.read('tokens.arrows'); assert tokens.data.shape[0] == 12\n"
        "codec = streamenc.load(); sound = codec.decode(tokens.data[None])\n"
        "assert sound.shape[-1] == tokens.data.shape[1] * 320"
    )


def without_extras(at: Environment) -> None:
    """Each feature of an extra says which one it wants."""
    at.refused("streamenc[mqtt]", "encode", "talk.flac", "mqtt://127.0.0.1/tokens")
    at.streamenc("encode", "talk.flac", "tokens.arrows")
    at.refused("streamenc[plot]", "inspect", "tokens.arrows", "--png", "tokens.png")
    at.refused("streamenc[onnx]", "export", "nano", "nano.onnx")
    at.refused("streamenc[serve]", "serve", "-m", "nano")
    at.refused("streamenc[serve]", "encode", "talk.flac", "ws://127.0.0.1:1/v1/room/a")
    at.refused("pip install 's3fs'", "tokenize", "s3://bucket/a", "other", "-m", "nano")
    at.refused("streamenc[ray]", "tokenize", "*.flac", "other", "-m", "nano", "--ray", "auto")


def mqtt(at: Environment) -> None:
    at.refused("127.0.0.1:1", "encode", "talk.flac", "mqtt://127.0.0.1:1/tokens")


def plot(at: Environment) -> None:
    at.streamenc("encode", "talk.flac", "tokens.arrows")
    at.streamenc("inspect", "tokens.arrows", "--png", "tokens.png")


def cpu(at: Environment) -> None:
    at.python(
        "import streamenc, numpy as np\n"
        "compiled, plain = streamenc.load(backend='compiled'), streamenc.load(backend='torch')\n"
        "sound = streamenc.read('talk.flac', sample_rate=16000, channels=1).data[None]\n"
        "with compiled.stream() as a, plain.stream() as b:\n"
        "    equal = np.asarray(a.push(sound)) == np.asarray(b.push(sound))\n"
        "assert equal.mean() > .9995, equal.mean()"
    )


def onnx(at: Environment) -> None:
    at.streamenc("export", "nano", "nano.onnx")
    at.python(
        "import streamenc\n"
        "with streamenc.load(backend='onnx').stream() as stream:\n"
        "    assert stream.push([[[0.1] * 3200]]).shape[-1] >= 8"
    )


def serve(at: Environment) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(at.bin / "streamenc"), "serve", "-m", "nano", "--bind", f"127.0.0.1:{port}"],
        cwd=at.work,
        env=at.variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _answered(f"http://127.0.0.1:{port}/ready", server)
        url = f"http://127.0.0.1:{port}/v1/encode?model=nano&codebooks=8"
        with urllib.request.urlopen(url, CLIP.read_bytes(), timeout=120) as answer:
            if b"codes" not in answer.read():
                raise RuntimeError("no codes from the server")
    finally:
        server.send_signal(signal.SIGINT)
        _, told = server.communicate(timeout=60)
    if server.returncode:
        raise RuntimeError(f"the server ended with {server.returncode}: {told}")


def _answered(url: str, server: subprocess.Popen[str]) -> None:
    """Waits until a server answers there."""
    until = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"{url} did not answer")


def webrtc(at: Environment) -> None:
    at.python("import aiortc")
    serve(at)


def bulk(at: Environment) -> None:
    at.python(
        "import fsspec; fsspec.filesystem('memory').pipe('/clips/a.flac', open('talk.flac', 'rb')"
        ".read())\nfrom streamenc import bulk\n"
        "job = bulk.TokenizeJob(input='memory://clips', models=('nano',))\n"
        "bulk.tokenize(job, 'set')"
    )


def text(at: Environment) -> None:
    at.python("import tokenizers")


def heif(at: Environment) -> None:
    at.python("import pillow_heif")


def gpu(at: Environment) -> None:
    at.python("import triton")


def ray(at: Environment) -> None:
    at.streamenc("tokenize", "*.flac", "set", "-m", "nano", "--codebooks", "8", "--ray", "auto")


def vad(at: Environment) -> None:
    at.streamenc("encode", "talk.flac", "tokens.arrows", "--vad", "speech")


# Name -> extra, how it is tried.
TRIALS: dict[str, tuple[str, tuple[Callable[[Environment], None], ...]]] = {
    "core": ("", (core, without_extras)),
    "mqtt": ("mqtt", (mqtt,)),
    "plot": ("plot", (plot,)),
    "heif": ("heif", (heif,)),
    "text": ("text", (text,)),
    "cpu": ("cpu", (cpu,)),
    "onnx": ("onnx", (onnx,)),
    "gpu": ("gpu", (gpu,)),
    "serve": ("serve", (serve,)),
    "webrtc": ("webrtc", (webrtc,)),
    "bulk": ("bulk", (bulk,)),
    "ray": ("ray", (ray,)),
    "vad": ("vad", (vad,)),
    "all": ("all", (core, plot, cpu, onnx, serve, bulk, vad)),
    "sdist": ("", (core,)),
    "lowest": ("all", (core, plot)),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", type=Path, help="where the wheel and the source distribution are")
    parser.add_argument("--only", action="append", choices=TRIALS, help="may be repeated")
    parser.add_argument("--torch", default=TORCH, help=f"what to install as torch: {TORCH}")
    parser.add_argument("--index", help="where torch is, beside PyPI")
    args = parser.parse_args()
    (wheel,), (source,) = args.dist.resolve().glob("*.whl"), args.dist.resolve().glob("*.tar.gz")
    failed = 0
    for name in args.only or TRIALS:
        extra, trials = TRIALS[name]
        install = [f"{source if name == 'sdist' else wheel}{f'[{extra}]' if extra else ''}"]
        if args.index:
            install += ["--extra-index-url", args.index, "--index-strategy", "unsafe-best-match"]
        if name == "lowest":
            install += ["--resolution", "lowest-direct"]
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="streamenc-release-") as folder:
            try:
                at = Environment(Path(folder), args.torch, *install)
                for trial in trials:
                    at.tidy()
                    trial(at)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"{name}: FAILED after {time.monotonic() - begun:.0f} s: {error}", flush=True)
            else:
                print(f"{name}: well, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
