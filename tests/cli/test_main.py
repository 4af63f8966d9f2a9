"""The command line as a user types it.

What is about messages and files runs in this process, by `call`; what is about the process itself,
its pipes, its signals, or two of them at once, in one of its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from typer.main import get_command

from streamenc.cli.app import app
from streamenc.cli.look import drawing, inspection
from streamenc.cli.look.plot import plot_stream
from streamenc.io.reading import read_file
from tests.support.media import write_wav
from tests.support.program import Done
from tests.support.references import randomise
from tests.support.zoo.salmonn import save_qformer

Call = Callable[..., Done]
REPOSITORY = Path(__file__).parents[2]
CLIP = REPOSITORY / "examples" / "data" / "speech.flac"


def streamenc(*args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamenc", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def start(*args: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "streamenc", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def mimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Mimi with random weights, as a folder; frames of 80 ms as in the published one."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MimiConfig(
        num_filters=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        vector_quantization_hidden_dimension=16,
        codebook_dim=16,
        codebook_size=64,
        num_quantizers=4,
        upsample_groups=32,
    )
    model = transformers.MimiModel(config)
    randomise(model)
    folder = tmp_path_factory.mktemp("mimi")
    model.save_pretrained(folder)
    return folder


def test_help_is_quick_and_has_examples() -> None:
    begin = time.perf_counter()
    done = streamenc("--help")
    seconds = time.perf_counter() - begin
    assert done.returncode == 0
    assert "encode" in done.stdout and "mic:" in done.stdout
    assert seconds < 1.5  # 0.25 s on an idle machine
    for command in ("encode", "decode", "listen", "run", "inspect"):
        assert f"streamenc {command} " in streamenc(command, "--help").stdout
    imported = "import sys, streamenc.cli.main; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True)
    assert out.stdout.strip() == "False"


def test_a_file_to_a_recording_and_its_inspection(tmp_path: Path) -> None:
    recording, stats, png = (tmp_path / name for name in ("mel.arrows", "stats.json", "mel.png"))
    done = streamenc("encode", CLIP, recording, "-m", "mel", "--stats", stats)
    assert done.returncode == 0, done.stderr
    info, frames = read_file(str(recording))
    assert info.kind == "features" and info.model == "mel" and info.shape[0] == 80
    assert sum(frame.data.shape[-1] for frame in frames) == pytest.approx(1334, abs=2)
    assert all(np.isfinite(frame.data).all() for frame in frames)
    report = json.loads(stats.read_text())
    assert report["outcome"] == "ended" and report["dropped"] == 0
    shown = streamenc("inspect", recording, "--png", png)
    assert shown.returncode == 0, shown.stderr
    assert "13.33" in shown.stdout and "100/s" in shown.stdout
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_codes_there_and_back(call: Call, tmp_path: Path, mimi: Path) -> None:
    recording, wav = tmp_path / "codes.arrows", tmp_path / "codes.wav"
    done = call("encode", CLIP, recording, "--model", mimi, "--codebooks", "3", "-q")
    assert done.code == 0, done.error
    info, frames = read_file(str(recording))
    assert info.kind == "codes" and frames[0].data.shape[0] == 3
    back = call("decode", recording, wav, "--model", mimi, "-q")
    assert back.code == 0, back.error
    sound, pieces = read_file(str(wav))
    seconds = sum(piece.data.shape[-1] for piece in pieces) / float(sound.rate)
    assert seconds == pytest.approx(13.3376, abs=0.001)
    shown = call("inspect", recording)
    assert "perplexity" in shown.out and "3 of" in shown.out


def test_a_live_stream_to_a_subscriber(tmp_path: Path, mimi: Path) -> None:
    url = f"zmq+tcp://127.0.0.1:{free_port()}"
    direct, heard, wav = (tmp_path / name for name in ("a.arrows", "b.arrows", "b.wav"))
    lossless = f"{url}?mode=credit"
    listener = start("listen", lossless, heard, wav, "--model", mimi, "-q")
    done = streamenc("encode", CLIP, lossless, direct, "-m", mimi, "--hops", "1", "-q")
    assert done.returncode == 0, done.stderr
    _, stderr = listener.communicate(timeout=30)
    assert listener.returncode == 0, stderr
    _, sent = read_file(str(direct))
    _, came = read_file(str(heard))
    assert [f.pts for f in came] == [f.pts for f in sent]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(came, sent, strict=True))
    sound, pieces = read_file(str(wav))
    seconds = sum(piece.data.shape[-1] for piece in pieces) / float(sound.rate)
    assert seconds == pytest.approx(13.3376, abs=0.001)


def test_json_lines_into_a_pipe_that_closes() -> None:
    command = f"{sys.executable} -m streamenc encode {CLIP} - -q | head -n 2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2 and done.stderr == ""


def test_raw_pcm_on_standard_input(tmp_path: Path) -> None:
    samples = (np.sin(np.arange(16_000) / 8) * 8000).astype("<i2").tobytes()
    target = tmp_path / "out.arrows"
    command = [sys.executable, "-m", "streamenc", "encode", "pcm:-?rate=16000", str(target), "-q"]
    done = subprocess.run(command, input=samples, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    info, frames = read_file(str(target))
    assert sum(frame.duration for frame in frames) * info.time_base == 1


def test_ctrl_c_drains(tmp_path: Path) -> None:
    recording = tmp_path / "live.arrows"
    process = start("encode", CLIP, recording, "--realtime")
    wait_for(lambda: recording.exists() and recording.stat().st_size > 2000)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 0, stderr
    assert time.monotonic() - begin < 6
    assert "stopped" in stderr
    _, frames = read_file(str(recording))
    assert 0 < sum(frame.data.shape[-1] for frame in frames) < 1300


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["encode", "nothere.wav", "x.arrows"], 1, ["nothere.wav"]),
        (["encode", CLIP, "gopher://x"], 2, ["gopher", "known are"]),
        (["encode", CLIP, "x.xyz"], 2, [".arrows"]),
        (["encode", CLIP, "x.arrows", "-m", "nosuch"], 1, ["nosuch", "kyutai/mimi"]),
        (["encode", CLIP, "x.arrows", "-m", "mel", "--set", "hop"], 2, ["NAME=VALUE"]),
        (["encode", CLIP, "x.arrows", "-m", "mel", "--set", "colour=1"], 2, ["colour"]),
        (["encode", CLIP, "no/such/folder/x.arrows"], 1, ["folder"]),
        (["encode", CLIP, "x.wav"], 2, ["audio"]),
        (["encode", CLIP, "zmq+tcp://127.0.0.1:1?mode=none"], 2, ["mode"]),
        (["decode", CLIP, "x.wav"], 2, ["codes"]),
        (["run", "none.toml"], 2, ["none.toml"]),
        (["inspect", "none.arrows"], 1, ["none.arrows"]),
        (["encode", CLIP], 2, ["OUTPUT"]),
        (["encode", CLIP, "x.arrows", "--device", "tpu9"], 2, ["tpu9", "cuda:1"]),
        (["encode", CLIP, "x.arrows", "--device", "cuda:99"], 2, ["cuda:99", "auto"]),
        (["encode", CLIP, "x.arrows", "--deadline-ms", "nan"], 2, ["deadline_ms", "finite"]),
        (["encode", CLIP, "x.arrows", "--max-age-ms", "0"], 2, ["max_age_ms=0", "above 0"]),
        (["encode", CLIP, "x.arrows", "--max-age-ms", "9"], 2, ["max_age_ms=9", "realtime"]),
        (["encode", CLIP, "x.arrows", "-q", "--stats", "no/such/x.json"], 1, ["no/such"]),
    ],
)
def test_errors_are_one_line_with_the_cure(
    call: Call,
    args: list[str],
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = call(*args)
    assert done.code == code, done.error
    assert "Traceback" not in done.error
    for word in words:
        assert word in done.error
    if "Usage" not in done.error:
        assert len(done.error.strip().splitlines()) == 1, done.error


def test_an_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = streamenc("encode", CLIP, "gopher://x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("streamenc: unknown scheme") and done.stderr.count("\n") == 1


def test_the_version(call: Call) -> None:
    done = call("--version")
    assert (done.code, done.out, done.error) == (0, f"streamenc {version('streamenc')}\n", "")


def test_an_output_that_exists_is_kept(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "x.arrows"
    target.write_text("precious")
    done = call("encode", CLIP, target)
    assert done.code == 2 and "--overwrite" in done.error
    assert target.read_text() == "precious"
    assert call("encode", CLIP, target, "-y", "-q").code == 0
    assert target.stat().st_size > 1000


def test_a_pipeline_keeps_an_output_that_exists(call: Call, tmp_path: Path) -> None:
    target, pipeline = tmp_path / "x.arrows", tmp_path / "p.toml"
    target.write_text("precious")
    pipeline.write_text(
        f"[nodes.clip]\nsource = '{CLIP}'\n[nodes.mel]\nencode = 'mel'\nafter = 'clip'\n"
        f"[nodes.out]\nsink = '{target}'\nafter = 'mel'\n"
    )
    done = call("run", pipeline, "-q")
    assert done.code == 2 and "--overwrite" in done.error
    assert target.read_text() == "precious"
    assert call("run", pipeline, "-q", "-y").code == 0
    assert target.stat().st_size > 1000


def test_a_long_plot_spans_its_seconds(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where not all frames are drawn; and a name without .png is a PNG."""
    spans = []
    monkeypatch.setattr(inspection, "MAX_PLOTTED_FRAMES", 100)
    monkeypatch.setattr(
        drawing,
        "plot_stream",
        lambda info, data, **k: spans.append(k["seconds"]) or plot_stream(info, data, **k),
    )
    assert call("encode", CLIP, tmp_path / "mel.arrows", "-q").code == 0
    inspection.inspect_file(str(tmp_path / "mel.arrows"), tmp_path / "plot.image")
    assert spans == [pytest.approx(13.34, abs=0.02)]
    assert (tmp_path / "plot.image").read_bytes()[:4] == b"\x89PNG"


def test_a_port_in_use(call: Call) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"zmq+tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = call("encode", CLIP, url)
    assert done.code == 1 and "in use" in done.error


def test_sound_that_is_no_sound(call: Call, tmp_path: Path) -> None:
    text, empty = tmp_path / "text.wav", tmp_path / "empty.wav"
    text.write_text("this is no sound at all " * 50)
    empty.touch()
    for path in (text, empty):
        done = call("encode", path, tmp_path / "x.arrows", "-y")
        assert done.code == 1 and path.name in done.error
        assert len(done.error.strip().splitlines()) == 1, done.error


def test_samples_that_are_not_finite(tmp_path: Path) -> None:
    samples = np.zeros(24_000, dtype="<f4")
    samples[12_345] = np.nan
    command = [sys.executable, "-m", "streamenc", "encode", "pcm:-?format=f32le", "-", "-q"]
    done = subprocess.run(command, input=samples.tobytes(), capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"not finite" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (96_000, 2)])
@pytest.mark.parametrize("level", [0.0, 4.0])
def test_any_rate_silence_and_clipping(
    call: Call, tmp_path: Path, rate: int, channels: int, level: float
) -> None:
    seconds = 0.7
    times = np.arange(int(rate * seconds)) / rate
    sound = np.clip(level * np.sin(2 * np.pi * 440 * times), -1, 1)
    path = write_wav(tmp_path / "x.wav", np.tile(sound, (channels, 1)), rate)
    done = call("encode", path, tmp_path / "x.arrows", "-q", "-y")
    assert done.code == 0, done.error
    info, frames = read_file(str(tmp_path / "x.arrows"))
    assert sum(frame.duration for frame in frames) * info.time_base == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "threads", "short"), [(["--threads", "3"], 3, 3), (["--hops", "1"], 2, 1)]
)
def test_the_threads_of_the_process(options: list[str], threads: int, short: int) -> None:
    """As told; without, torch's own number, here 2, and one for short steps."""
    program = (
        "import sys; from streamenc.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "import torch, streamenc; from streamenc.threads import step_threads; "
        "print(torch.get_num_threads(), step_threads(streamenc.load('mel').spec, 1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "encode", CLIP, "null:", "-m", "mel", "-q", *options],
        env={**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout.split()) == (0, [str(threads), str(short)]), done.stderr


def test_models_and_devices(call: Call) -> None:
    done = call("models")
    assert done.code == 0, done.error
    for name in ("nano", "mel", "mel:whisper", "kyutai/mimi", "facebook/encodec_24khz"):
        assert name in done.out
    done = call("devices")
    assert done.code in (0, 1)
    assert "Traceback" not in done.error
    (row,) = [line for line in done.out.splitlines() if line.startswith("compute ")]
    assert row.split()[1] == "cpu" and row.rstrip().endswith("*")


@pytest.mark.parametrize("command", ["encode", "decode", "listen", "verify"])
def test_every_command_takes_a_gpu_where_there_is_one(command: str) -> None:
    (device,) = [p for p in get_command(app).commands[command].params if p.name == "device"]
    assert device.default == "auto"


def test_the_report_says_on_what_it_ran(call: Call) -> None:
    done = call("encode", CLIP, "null:", "-m", "mel")
    assert done.code == 0 and " s on cpu; latencies" in done.error
    assert "computing on" not in done.error


def wait_for(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_ctrl_c_while_the_model_loads_is_no_success(tmp_path: Path) -> None:
    script = f"""
import sys, time
import streamenc.cli.main, streamenc.registry
def load(*args, **options):
    print("loading", flush=True)
    time.sleep(60)
streamenc.registry.load = load
sys.argv = ["streamenc", "encode", {str(CLIP)!r}, {str(tmp_path / "x.arrows")!r}]
streamenc.cli.main.main()
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "cancelled" in stderr


def test_the_input_is_never_the_output(call: Call, tmp_path: Path, mimi: Path) -> None:
    recording = tmp_path / "x.arrows"
    assert call("encode", CLIP, recording, "-m", mimi, "-q").code == 0
    before = recording.read_bytes()
    done = call("decode", recording, recording, "-m", mimi, "-y")
    assert done.code == 2 and "is the input" in done.error
    assert recording.read_bytes() == before


def test_a_wrong_number_of_codebooks(call: Call, tmp_path: Path, mimi: Path) -> None:
    done = call("encode", CLIP, tmp_path / "x.arrows", "-m", mimi, "-n", "99")
    assert done.code == 2 and "1 to 4 codebooks" in done.error
    done = call("encode", CLIP, tmp_path / "x.arrows", "-m", "mel", "-n", "2")
    assert done.code == 2 and "no codebooks" in done.error


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow HuBERT with random weights; frames of 20 ms as in the published one."""
    from tests.support import zoo

    folder = tmp_path_factory.mktemp("hubert")
    stem = {"conv_dim": [8] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8]}
    zoo.save_speech("hubert", **stem)(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_features_are_recorded_in_any_type(
    call: Call, hubert: Path, tmp_path: Path, dtype: str
) -> None:
    sound = 0.3 * np.sin(np.arange(16_000) / 5)
    clip = write_wav(tmp_path / "clip.wav", sound[None], 16_000)
    out = tmp_path / "out.arrows"
    done = call(
        "encode", clip, out, "--model", f"hubert:{hubert}", "--layer", "1,3", "--dtype", dtype
    )
    assert done.code == 0, done.error
    info, frames = read_file(str(out))
    assert (info.kind, info.shape, info.rate, info.dtype) == ("features", (48, None), 50, dtype)
    y = np.concatenate([frame.data for frame in frames], axis=1)
    # A second ends within frame 49: a frame spans what the stem sees, 435 samples here.
    assert y.shape == (48, 49) and y.dtype == info.array_dtype
    assert frames[0].pts == 0 and frames[-1].pts + frames[-1].duration == 49 * 320
    from streamenc.registry import load

    whole = load(hubert, part="encoder", layers=[1, 3]).encode(sound[None, None].astype("f4"))
    error = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2}[dtype]  # of 16-bit samples
    assert np.abs(y - whole[0].numpy()).max() < error * np.abs(y).max()
    done = call("inspect", out)
    assert done.code == 0 and dtype in done.out


def test_units_go_through_a_socket_and_are_printed(hubert: Path, tmp_path: Path) -> None:
    clip = write_wav(
        tmp_path / "clip.wav", np.random.default_rng(0).normal(0, 0.1, (1, 16_000)), 16_000
    )
    centroids = tmp_path / "centroids.npy"
    np.save(centroids, np.random.default_rng(1).normal(size=(64, 24)).astype(np.float32))
    address = f"zmq+tcp://127.0.0.1:{free_port()}?mode=credit"
    listening = start("listen", address)
    done = streamenc(
        "encode", clip, address, "-m", hubert, "--layer", "2", "--units", centroids, "--runs"
    )
    out, error = listening.communicate(timeout=60)
    assert done.returncode == listening.returncode == 0, done.stderr + error
    info, *runs = map(json.loads, out.splitlines())
    assert info["info"]["shape"] == [1, 1] and info["info"]["rate"] == "50/1"
    assert all(run["shape"] == [1, 1] for run in runs)
    assert sum(run["duration"] for run in runs) == 49 * 320


def test_options_of_features_on_other_models_are_refused(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out.arrows"
    for option, message in (
        (("--layer", "9"), "nano has no option 'layer'; it has none"),
        (("--dtype", "float16"), "of features; got 'float16' for the codes"),
        (("--runs",), "codes of one codebook"),
    ):
        done = call("encode", CLIP, out, *option)
        assert done.code == 2 and message in done.error, done.error


def test_features_come_from_no_input(call: Call, tmp_path: Path) -> None:
    save_qformer(tmp_path)
    done = call("encode", CLIP, "x.arrows", "-m", tmp_path, "--set", "inputs=features")
    told = " ".join(done.error.split())
    assert done.code == 2 and "takes features, which no input gives; call its encode" in told
