"""Fit: images at a model's size, as the published preparations make them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame
from streamenc.nodes.fit import FILTERS, Fit
from tests.support.drive import audio_info, images, through, video_info


def fitted(size: tuple[int, int], node: Fit, count: int = 1) -> np.ndarray[Any, Any]:
    """(3, count, height, width) of moving stripes that are `size` (height, width)."""
    frames = images(count, *size)
    info, out = through(video_info(*size), frames, node)
    made = np.concatenate([frame.data for frame in out], axis=1)
    assert info.shape == (3, None, *made.shape[2:]) and made.dtype == np.uint8
    assert [(f.pts, f.duration, f.seq) for f in out] == [(f.pts, f.duration, f.seq) for f in frames]
    return made


def source(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The image that `fitted` begins with, (height, width, 3)."""
    return images(1, *size)[0].data[:, 0].transpose(1, 2, 0)


@pytest.mark.reference
@pytest.mark.parametrize("size", [(240, 320), (321, 243), (97, 501), (224, 224), (30, 17)])
def test_the_preparation_of_vit_to_the_bit(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    published = transformers.ViTImageProcessorPil(do_normalize=False, do_rescale=False)
    wanted = published(Image.fromarray(source(size)), return_tensors="np")["pixel_values"][0]
    got = fitted(size, Fit(size=(224, 224), how="stretch", filter="bilinear"))
    assert np.array_equal(got[:, 0], wanted)


@pytest.mark.reference
@pytest.mark.parametrize("size", [(240, 320), (321, 243), (97, 501), (256, 256), (30, 17)])
def test_the_preparation_of_dinov2_to_the_bit(size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    published = transformers.BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        do_normalize=False,
        do_rescale=False,
    )
    wanted = published(Image.fromarray(source(size)), return_tensors="np")["pixel_values"][0]
    got = fitted(size, Fit(14, (224, 224), shortest=256, filter="bicubic"))
    assert np.array_equal(got[:, 0], wanted)


@pytest.mark.reference
@pytest.mark.parametrize("size", [(37, 53), (53, 37), (9, 101), (120, 91), (33, 32), (301, 225)])
@pytest.mark.parametrize("shortest, cut", [(40, (32, 32)), (41, (28, 33)), (35, (35, 28))])
@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "area"])
def test_odd_sizes_and_offsets_are_as_published(
    size: tuple[int, int], shortest: int, cut: tuple[int, int], filter: str
) -> None:
    """On noise, where one pixel's offset or another rounding shows everywhere."""
    transformers = pytest.importorskip("transformers")
    published = transformers.BitImageProcessorPil(
        size={"shortest_edge": shortest},
        crop_size={"height": cut[0], "width": cut[1]},
        resample=FILTERS[filter],
        do_normalize=False,
        do_rescale=False,
    )
    noise = np.random.default_rng(size[0]).integers(0, 256, (3, 2, *size), np.uint8)
    images = [Image.fromarray(image) for image in noise.transpose(1, 2, 3, 0)]
    wanted = published(images, return_tensors="np")["pixel_values"]
    packed = np.ascontiguousarray(noise.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    mirrored = np.ascontiguousarray(noise[..., ::-1])[..., ::-1]
    for data in (noise, packed, mirrored):
        node = Fit(size=cut, shortest=shortest, filter=filter)
        _, (out,) = through(video_info(*size), [Frame(data, 0, 80, 0)], node)
        assert np.array_equal(out.data.swapaxes(0, 1), wanted)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    wanted=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    unit=st.sampled_from([1, 4, 8]),
    how=st.sampled_from(["crop", "pad", "stretch"]),
    filter=st.sampled_from(sorted(FILTERS)),
)
def test_any_size_comes_out_as_asked(
    size: tuple[int, int], wanted: tuple[int, int] | None, unit: int, how: str, filter: str
) -> None:
    target = None if wanted is None else (wanted[0] * unit, wanted[1] * unit)
    node = Fit(unit, target, how=how, filter=filter)
    if target is None and how == "crop" and min(size) < unit:
        with pytest.raises(FitError, match="smaller than"):
            fitted(size, node)
        return
    made = fitted(size, node, count=2)
    assert made.shape[:2] == (3, 2)
    assert made.shape[2:] == target or (
        target is None and not any(n % unit for n in made.shape[2:])
    )


def test_crop_cuts_the_centre_and_pad_repeats_the_edge() -> None:
    image = source((10, 21))
    cut = fitted((10, 21), Fit(8))[:, 0].transpose(1, 2, 0)
    assert np.array_equal(cut, image[1:9, 2:18])
    filled = fitted((10, 21), Fit(8, how="pad"))[:, 0].transpose(1, 2, 0)
    assert filled.shape == (16, 24, 3)
    assert np.array_equal(filled[3:13, 1:22], image)
    assert np.array_equal(filled[0, 1:22], image[0])
    assert np.array_equal(filled[3:13, 23], image[:, -1])


def test_proportions_stay_unless_told() -> None:
    """Of 40 x 20 into a square: the middle half; all of it between bands; or squeezed."""
    image = Image.fromarray(source((20, 40)))
    cubic = Image.Resampling.BICUBIC
    crop = np.asarray(image.resize((80, 40), cubic))[:, 20:60]
    assert np.array_equal(fitted((20, 40), Fit(size=(40, 40)))[:, 0].transpose(1, 2, 0), crop)
    pad = fitted((20, 40), Fit(size=(40, 40), how="pad"))[:, 0].transpose(1, 2, 0)
    assert np.array_equal(pad[10:30], np.asarray(image))
    stretch = fitted((20, 40), Fit(size=(40, 40), how="stretch"))[:, 0].transpose(1, 2, 0)
    assert np.array_equal(stretch, np.asarray(image.resize((40, 40), cubic)))


def test_images_that_fit_pass_untouched() -> None:
    frames = images(2, 16, 24)
    node = Fit(8)
    _, out = through(video_info(16, 24), frames, node)
    assert all(a is b for a, b in zip(out, frames, strict=True))
    assert node.remarks == ("images of 24 x 16, as they are",)


def test_shortest_without_a_size_cuts_to_the_unit() -> None:
    node = Fit(8, shortest=30)
    assert fitted((37, 50), node).shape[2:] == (24, 40)
    assert node.remarks == ("images of 50 x 37, scaled to 40 x 30 (bicubic), cut to 40 x 24",)


def test_it_says_what_it_does() -> None:
    node = Fit(16, (256, 256))
    node.open(video_info(720, 1280))
    assert node.remarks == (
        "images of 1280 x 720, scaled to 455 x 256 (bicubic), cut to 256 x 256",
    )
    node = Fit(16, (256, 256), how="pad", filter="area")
    node.open(video_info(720, 1280))
    assert node.remarks == (
        "images of 1280 x 720, scaled to 256 x 144 (area), filled up to 256 x 256",
    )


def test_what_cannot_be() -> None:
    for options, words in (
        ({"unit": 0}, "unit=0"),
        ({"how": "squeeze"}, "crop, pad, stretch"),
        ({"filter": "sinc"}, "'filter' must be one of nearest, .*; got 'sinc'"),
        ({"size": (0, 8)}, "wanted 1 to"),
        ({"unit": 16, "size": (100, 100)}, "multiples of 16, such as 96 x 96"),
        ({"size": (224, 224), "shortest": 200}, "less than the size of 224 x 224"),
    ):
        with pytest.raises(UsageError, match=words):
            Fit(**options)
    with pytest.raises(FitError, match="takes video; got audio"):
        Fit().open(audio_info(8000))
    with pytest.raises(FitError, match="takes video"):
        Fit().open(replace(video_info(8, 8), shape=(3, None, None, 8)))
    with pytest.raises(FitError, match="4000000 x 1000, sides of more than"):
        Fit(shortest=1000).open(video_info(1, 4000))
    node = Fit()
    node.open(video_info(8, 8))
    with pytest.raises(FitError, match="float32"):
        node.push(Frame(np.zeros((3, 1, 8, 8), np.float32), 0, 1, 0))
    with pytest.raises(FitError, match="in a stream of images of 8 x 8"):
        node.push(images(1, 8, 9)[0])
