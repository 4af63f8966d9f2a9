"""What a server counts: by each process, and together, also of those that are gone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")
from prometheus_client.parser import text_string_to_metric_families

from streamenc.serve.http.exposition import exposition
from streamenc.serve.meter import SILENT_SECONDS, STEP_SECONDS, Meter


def told(meter: Meter) -> dict[tuple[str, ...], float]:
    """What Prometheus reads: by name and the values of labels."""
    text = exposition(meter.gathered(), []).decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_counts(tmp_path: Path) -> None:
    meter = Meter()
    meter.opened("nano", "encode")
    meter.opened("nano", "encode")
    meter.ended("nano", "encode", "closed")
    meter.refused("full")
    meter.resumed("memory")
    meter.dropped("input", 3)
    meter.moved("in", 100)
    meter.moved("in", 20)
    meter.waited(0.015)
    meter.stepped("nano", 0.0015, False)
    meter.stepped("nano", 99.0, True)
    meter.answered("GET", "/health", 200)
    found = told(meter)
    assert found["streamenc_sessions", "encode", "nano"] == 1
    assert found["streamenc_sessions_opened_total", "encode", "nano"] == 2
    assert found["streamenc_sessions_ended_total", "closed", "encode", "nano"] == 1
    assert found["streamenc_refusals_total", "full"] == 1
    assert found["streamenc_resumes_total", "memory"] == 1
    assert found["streamenc_dropped_packets_total", "input"] == 3
    assert found["streamenc_bytes_total", "in"] == 120
    assert found["streamenc_queue_seconds_count",] == 1
    assert found["streamenc_queue_seconds_bucket", "0.01"] == 0
    assert found["streamenc_queue_seconds_bucket", "0.02"] == 1
    assert found["streamenc_step_seconds_count", "nano"] == 2
    assert found["streamenc_step_seconds_sum", "nano"] == 99.0015
    assert found["streamenc_step_seconds_bucket", str(STEP_SECONDS[-1]), "nano"] == 1
    assert found["streamenc_step_seconds_bucket", "+Inf", "nano"] == 2
    assert found["streamenc_steps_late_total", "nano"] == 1
    assert found["streamenc_http_requests_total", "/health", "200", "GET"] == 1


def test_counts_of_all_processes(tmp_path: Path) -> None:
    folder = str(tmp_path)
    meters = [Meter(folder, f"worker{number}") for number in range(3)]
    for number, meter in enumerate(meters):
        meter.opened("nano", "encode")
        meter.moved("out", 10**number)
        meter.stepped("nano", 0.003, False)
        meter.write()
    for meter in meters:
        found = told(meter)
        assert found["streamenc_sessions", "encode", "nano"] == 3
        assert found["streamenc_bytes_total", "out"] == 111
        assert found["streamenc_step_seconds_count", "nano"] == 3
    # One was killed, and another process came after it.
    path = next(tmp_path.glob("worker0-*"))
    long_ago = time.time() - SILENT_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    meters[0] = Meter(folder, "worker0")
    meters[0].moved("out", 1000)
    meters[0].write()
    found = told(meters[1])
    assert found["streamenc_sessions", "encode", "nano"] == 2
    assert found["streamenc_bytes_total", "out"] == 1111
    meters[2].leave()
    found = told(meters[1])
    assert found["streamenc_sessions", "encode", "nano"] == 1
    assert found["streamenc_sessions_opened_total", "encode", "nano"] == 3
    # What cannot be read is not counted, and harms nothing.
    (tmp_path / "other.counts").write_bytes(b"\xc1")
    assert told(meters[1])["streamenc_bytes_total", "out"] == 1111
