"""What is told to Ray is what was counted, once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from streamenc.serve.cluster.publisher import Publisher
from streamenc.serve.meter import Meter


class Metrics:
    """Those of Ray, as far as they are used."""

    def __init__(self) -> None:
        self.values: Counter[tuple[Any, ...]] = Counter()

    def make(self, kind: str, name: str, words: str, labels: tuple[str, ...]) -> Any:
        assert words and name.startswith("streamenc_")
        values = self.values

        class Metric:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert kind == "counter" and value > 0 and tuple(tags) == labels
                values[name, *tags.values()] += value

            def set(self, value: float, tags: dict[str, str]) -> None:
                assert kind == "gauge" and tuple(tags) == labels
                values[name, *tags.values()] = value

        return Metric()


def test_counts_are_told_once() -> None:
    meter, metrics = Meter(), Metrics()
    publisher = Publisher(meter, metrics.make)
    meter.opened("nano", "encode")
    meter.opened("nano", "encode")
    meter.stepped("nano", 0.015, late=True)
    publisher.publish()
    publisher.publish()
    meter.ended("nano", "encode", "closed")
    meter.stepped("nano", 100.0, late=True)
    publisher.publish()
    told = metrics.values
    assert told["streamenc_sessions_opened", "nano", "encode"] == 2
    assert told["streamenc_sessions", "nano", "encode"] == 1
    assert told["streamenc_sessions_ended", "nano", "encode", "closed"] == 1
    assert told["streamenc_steps_late", "nano"] == 2
    bucket = "streamenc_step_seconds_bucket"
    assert told[bucket, "nano", "0.01"] == 0
    assert told[bucket, "nano", "0.02"] == told[bucket, "nano", "5.0"] == 1
    assert told[bucket, "nano", "+Inf"] == 2
    assert told["streamenc_step_seconds_sum", "nano"] == 100.015
