"""The page, in Chromium, whose microphone is a file: what is drawn is what was heard."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.io.network import wire
from streamenc.serve.guard import Guard
from streamenc.serve.keyring import Keyring, keys_of
from tests.serve.conftest import Served, nano
from tests.serve.conftest import _started as started
from tests.serve.inputs.packets import made
from tests.support import zoo
from tests.support.media import write_wav

api = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]

RATE = 48000
# What goes over the page's sockets, for the test to see.
RECORD = """
globalThis.wire = { sent: [], received: [], said: [] };
const text = (data) => btoa(Array.from(
  new Uint8Array(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength),
  (byte) => String.fromCharCode(byte)).join(""));
const Original = globalThis.WebSocket;
globalThis.WebSocket = class extends Original {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", ({ data }) => {
      if (typeof data !== "string") wire.received.push(text(data));
    });
  }
  send(data) {
    super.send(data);
    if (typeof data === "string") wire.said.push(data);
    else wire.sent.push(text(data));
  }
};
"""
# The least ratio of contrast of any text that is seen, and where.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = rgba(colour).map((v) => v / 255).map(
      (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const { backgroundColor } = getComputedStyle(at);
      if (rgba(backgroundColor)[3] === 255) return backgroundColor;
    }
    return "white";
  };
  let least = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const off = element.disabled || element.closest("noscript, label:has(:disabled)");
    if (!own || off || !element.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < least[0]) least = [ratio, element.outerHTML.slice(0, 80)];
  }
  return least;
}"""


FOCUSED = "(({ id, value, textContent }) => id || (value ?? textContent))(document.activeElement)"


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds that are nowhere alike."""
    rng = np.random.default_rng(0)
    samples = np.cumsum(rng.standard_normal(10 * RATE)) % 7.0 / 35 - 0.1
    return write_wav(tmp_path_factory.mktemp("sound") / "heard.wav", samples[None], RATE)


@pytest.fixture(scope="module")
def chromium(microphone: Path) -> Iterator[Any]:
    flags = [
        "--no-sandbox",
        "--disable-background-networking",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server; whatever the browser complains of fails the test."""
    contexts, complaints = [], []

    def go(served: Served, wait_for: str = "#start:enabled", **options: Any) -> Any:
        context = chromium.new_context(permissions=["microphone", "camera"], **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.add_init_script(RECORD)
        page.goto(served.http)
        page.wait_for_selector(wait_for)
        return page

    yield go
    for context in contexts:
        context.close()
    # That a key is wanted, a browser tells by itself.
    assert not [said for said in complaints if "status of 401" not in said]


def packets(page: Any, way: str) -> list[wire.Data]:
    """Data packets that went "sent" or "received"."""
    read = [wire.decode(base64.b64decode(text)) for text in page.evaluate(f"wire.{way}")]
    return [packet for packet in read if isinstance(packet, wire.Data)]


def wait_for_state(page: Any, words: str) -> None:
    page.wait_for_function(
        "w => document.getElementById('state-words').textContent.includes(w)", arg=words
    )


def wait_for_received(page: Any, count: int) -> None:
    page.wait_for_function("n => wire.received.length > n", arg=count)


def finish(page: Any) -> None:
    page.click("#start")
    wait_for_state(page, "Closed")


def sent_samples(page: Any) -> np.ndarray[Any, Any]:
    """int16 (samples,), in order and each once, whatever was sent again."""
    by_seq = {packet.seq: packet for packet in packets(page, "sent")}
    ordered = [by_seq[seq] for seq in sorted(by_seq)]
    ends = np.cumsum([packet.data.shape[1] for packet in ordered])
    assert [packet.pts for packet in ordered] == [0, *ends[:-1]]
    return np.concatenate([packet.data[0] for packet in ordered])


def offline(page: Any) -> Any:
    """The 8 codebooks of nano, of all that the page sent, encoded at once."""
    floats = sent_samples(page).astype(np.float32) / np.float32(32768)
    rate = json.loads(page.evaluate("wire.said[0]"))["rate"]  # of the machine's sound card
    at_models_rate = soxr.resample(floats, rate, 16000, quality="HQ")
    return nano().encode(at_models_rate[None], codebooks=8)


def test_codes_of_the_microphone_are_those_of_its_samples(
    served: Served, visit: Callable[..., Any]
) -> None:
    page = visit(served)
    page.click("#start")
    wait_for_received(page, 40)
    assert page.inner_text("#stage-title") == "nano, tokens"
    page.wait_for_function("() => document.querySelectorAll('#rows tbody tr').length === 8")
    finish(page)
    assert np.unique(sent_samples(page)).size > 1000
    codes = np.concatenate([packet.data for packet in packets(page, "received")], axis=1)
    assert codes.shape[1] >= 40
    np.testing.assert_array_equal(codes, offline(page).numpy()[0])
    assert page.inner_text("#f-bits") == "4.00 kbit/s"
    assert page.inner_text("#f-hop") == "20.0 ms"
    assert page.inner_text("#f-dropped") == "0"
    assert "Closed after" in page.inner_text("#log")


def test_an_echo_plays_and_goes_on_after_a_break(served: Served, visit: Callable[..., Any]) -> None:
    page = visit(served)
    page.check("input[value=echo]", force=True)
    page.click("#start")
    wait_for_received(page, 40)
    page.click("#break")
    wait_for_state(page, "Resumed once, nothing lost")
    page.wait_for_function("() => / ms$/.test(document.getElementById('f-sound').textContent)")
    page.wait_for_function("() => / ms$/.test(document.getElementById('f-trip').textContent)")
    assert page.inner_text("#f-resumed") == "1, exactly"
    finish(page)
    received, expected = packets(page, "received"), offline(page)
    codes = [packet.data for packet in received if packet.track == 0]
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), expected.numpy()[0])
    heard = np.concatenate([packet.data for packet in received if packet.track == 1], axis=1)
    wanted = nano().decode(expected)[0].numpy()[:, : heard.shape[1]]
    np.testing.assert_allclose(heard, wanted, atol=1e-5)
    log = page.inner_text("#log")
    assert "broke (broken on purpose)" in log and "nothing comes twice" in log


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a model of images."""
    folder = tmp_path_factory.mktemp("pictures")
    with Engine(max_sessions=4, max_wait_ms=1) as engine:
        codecs = {"pictures": zoo.codec("resnet")}
        with EngineServer(engine, codecs, f"ipc://{folder}/engine") as server:
            served, stop = started((server.address, engine), folder / "store")
            yield served
            stop()


def test_what_the_camera_sees_becomes_features(pictures: Served, visit: Callable[..., Any]) -> None:
    page = visit(pictures)
    assert page.is_checked("input[value=camera]") and page.is_disabled("input[value=microphone]")
    page.click("#start")
    wait_for_received(page, 5)
    assert page.is_visible("#preview")
    finish(page)
    images, features = packets(page, "sent"), packets(page, "received")
    assert len(features) == len(images)
    assert [packet.pts for packet in features] == [packet.pts for packet in images]
    codec = zoo.codec("resnet")
    source = made(codec.encoder.spec, format="jpeg", rate=8.0)
    for image, packet in zip(images[:3], features, strict=False):
        (chunk,) = source.push(image)
        expected = codec.encode(chunk.data).numpy()[0]
        np.testing.assert_allclose(packet.data, expected, atol=1e-5)
    assert page.is_hidden("#preview")


def test_a_file_is_sent_to_its_end(
    served: Served, visit: Callable[..., Any], tmp_path: Path
) -> None:
    samples = np.random.default_rng(1).standard_normal((1, 2 * RATE)) / 10
    page = visit(served)
    page.check("input[value=file]", force=True)
    page.set_input_files("#file", write_wav(tmp_path / "file.wav", samples, RATE))
    page.click("#start")
    wait_for_state(page, "Closed")
    codes = np.concatenate([packet.data for packet in packets(page, "received")], axis=1)
    assert codes.shape == (8, 100)
    assert "file.wav was sent." in page.inner_text("#log")


def test_what_cannot_start_says_why(served: Served, visit: Callable[..., Any]) -> None:
    page = visit(served)
    page.check("input[value=file]", force=True)
    page.click("#start")
    page.wait_for_selector("#fault:not([hidden])")
    assert page.inner_text("#fault") == "Choose a file first."
    assert page.inner_text("#start") == "Start"


def test_a_key_is_asked_for_and_kept_in_the_tab(
    serve: Callable[..., Served], visit: Callable[..., Any]
) -> None:
    keys = Keyring(keys_of(["me a-long-key-of-32-letters-and-more", ""], "the test"))
    page = visit(serve(guard=Guard(keys)), wait_for="#key:focus")
    page.keyboard.type("a-wrong-key-of-32-letters-and-more")
    page.keyboard.press("Enter")
    wait_for_state(page, "That key is not one of this server")
    page.keyboard.type("a-long-key-of-32-letters-and-more")
    page.keyboard.press("Enter")
    page.wait_for_selector("#start:enabled")
    assert page.is_hidden("#key")
    page.click("#start")
    wait_for_received(page, 2)
    finish(page)
    page.reload()
    page.wait_for_selector("#start:enabled")
    kept = "() => [document.cookie, JSON.stringify(localStorage), sessionStorage.length]"
    assert page.evaluate(kept) == ["", "{}", 1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(
    served: Served, visit: Callable[..., Any], scheme: str
) -> None:
    page = visit(served, color_scheme=scheme, reduced_motion="reduce")
    page.check("input[value=echo]", force=True)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = ("button", "combobox", "radio", "slider", "link", "image", "log", "form", "region")
    found = {}
    for node in tree:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in controls:
            name = node.get("name", {}).get("value", "")
            assert name, node
            found.setdefault(role, []).append(name)
    inputs, outputs = ["Camera", "File", "Microphone"], ["Tokens", "Tokens, and their sound"]
    assert sorted(found["radio"]) == inputs + outputs
    assert sorted(found["slider"]) == ["Codebooks", "Volume"]
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, (ratio, where)


def test_keys_reach_everything_in_order(served: Served, visit: Callable[..., Any]) -> None:
    page = visit(served)
    reached = []
    for _ in range(11):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    skip, *rest = reached
    assert skip == "Skip to what comes out"
    controls = ["model", "microphone", "encode", "books", "start"]
    assert rest == [*controls, "log", "streamenc.js", "its types", *rest[8:]]
    page.focus("input[value=microphone]")
    page.keyboard.press("ArrowRight")  # the camera is disabled
    assert page.is_checked("input[value=file]")
    page.focus("#start")
    page.keyboard.press("Enter")
    page.wait_for_selector("#fault:not([hidden])")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(
    served: Served, visit: Callable[..., Any], width: int
) -> None:
    page = visit(served, viewport={"width": width, "height": 800}, reduced_motion="reduce")
    assert page.evaluate("document.documentElement.scrollWidth") == width
