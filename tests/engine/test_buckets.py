"""Buckets of lanes: which there are, and what idle lanes they cost at most."""

from __future__ import annotations

import pytest

from streamenc.engine.buckets import bucket, buckets


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        *((1, 1), (2, 2), (3, 4), (5, 8), (64, 64), (65, 128), (129, 256), (256, 256)),
        *((257, 320), (320, 320), (321, 384), (385, 448), (449, 512), (512, 512), (513, 640)),
        *((1024, 1024), (1025, 1280), (1793, 2048), (2048, 2048), (2049, 2560)),
    ],
)
def test_octaves_to_256_and_quarters_beyond(count, wanted):
    assert bucket(count) == wanted


def test_a_bucket_holds_its_count_and_is_its_own_bucket():
    for count in range(1, 5000):
        size = bucket(count)
        assert size >= count and bucket(size) == size
        assert size < 1.25 * count if count > 256 else size < 2 * count


@pytest.mark.parametrize("capacity", [1, 2, 3, 64, 100, 256, 257, 1000, 2048])
def test_all_buckets_of_a_capacity_are_those_that_its_counts_step_in(capacity):
    wanted = sorted({min(bucket(count), capacity) for count in range(1, capacity + 1)})
    assert buckets(capacity) == wanted
