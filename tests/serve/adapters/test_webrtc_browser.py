"""A real browser's microphone and camera by WebRTC."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiortc", reason="needs the extra webrtc")
pytest.importorskip("playwright", reason="needs playwright")
from playwright import sync_api

from streamenc.io.network import wire
from tests.serve.conftest import Served

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium"),
    pytest.mark.timeout(90),
]

# As docs/server has it, but for what it does with messages.
SCRIPT = """async ({model, constraints, count}) => {
  const media = await navigator.mediaDevices.getUserMedia(constraints);
  const peer = new RTCPeerConnection();
  const channel = peer.createDataChannel("streamenc.v1");
  channel.binaryType = "arraybuffer";
  const texts = [], packets = [];
  const enough = new Promise((resolve, reject) => {
    channel.onmessage = ({data}) => {
      if (typeof data === "string") texts.push(data);
      else packets.push(btoa(String.fromCharCode(...new Uint8Array(data))));
      if (packets.length === count) channel.send('{"type": "close"}');
      if (texts.at(-1)?.includes('"closed"')) resolve();
    };
    channel.onclose = () => reject(new Error("closed: " + texts.at(-1)));
  });
  media.getTracks().forEach((track) => peer.addTrack(track, media));
  await peer.setLocalDescription(await peer.createOffer());
  await new Promise((resolve) => {
    if (peer.iceGatheringState === "complete") resolve();
    peer.onicegatheringstatechange = () => peer.iceGatheringState === "complete" && resolve();
  });
  const answer = await fetch("/v1/offer", {
    method: "POST",
    body: JSON.stringify({model, sdp: peer.localDescription.sdp}),
  });
  if (!answer.ok) throw new Error(await answer.text());
  const {type, sdp} = await answer.json();
  await peer.setRemoteDescription({type, sdp});
  await enough;
  peer.close();
  return {texts, packets};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = [
        "--no-sandbox",
        "--disable-background-networking",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
    ]
    with sync_api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


def test_a_microphone(served: Served, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{served.http}/v1/nothing")  # any page of the server's own origin
    asked = {"model": "nano", "constraints": {"audio": True}, "count": 50}
    got = page.evaluate(SCRIPT, asked)
    page.close()
    info, *data = [wire.decode(base64.b64decode(packet)) for packet in got["packets"]]
    assert isinstance(info, wire.Info) and info.info.model == "nano"
    assert all(isinstance(packet, wire.Data) for packet in data) and len(data) >= 49
    # The fake microphone beeps once a second, so codes differ.
    assert len({packet.data.tobytes() for packet in data}) > 5
    assert [packet.seq for packet in data] == list(range(len(data)))
