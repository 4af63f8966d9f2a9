"""What is peculiar about images, in sentences for people: what was made of it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

# FFmpeg's numbers of the curves of HDR (AVColorTransferCharacteristic).
HDR = {16: "PQ", 18: "HLG"}


def of_image(image: Any) -> Iterator[tuple[str, str]]:
    """(what it is, the sentence) for each peculiarity that an image as PyAV decodes it has."""
    if image.interlaced_frame:
        yield "interlaced", INTERLACED
    if (curve := HDR.get(int(image.color_trc))) is not None:
        yield "hdr", hdr(curve)


def hdr(curve: str) -> str:
    return (
        f"images are HDR ({curve}) and were not tone-mapped: they look pale and dark to a model of "
        "ordinary images; convert them to BT.709 first"
    )


def oblong(aspect: Fraction, stored: tuple[int, int], square: tuple[int, int]) -> str:
    if stored == square:
        return (
            f"pixels are {aspect.numerator}:{aspect.denominator}, not square, and were left so: "
            "things look wider or narrower than they are"
        )
    return (
        f"pixels are {aspect.numerator}:{aspect.denominator}, not square: images were scaled from "
        f"{_size(stored)} to {_size(square)}; square=no leaves them as they are stored"
    )


def changed(
    seconds: float, shown: tuple[int, int], first: tuple[int, int], within: tuple[int, int]
) -> str:
    beside = "" if within == first else f", as {_size(within)} with black beside it"
    return (
        f"from {seconds:.2f} s on, images are {_size(shown)}; they were scaled to the "
        f"{_size(first)} of the beginning{beside}"
    )


def dated_as_encoded(format: str, codec: str) -> str:
    return (
        f"{format} dates images of {codec} in the order in which they were encoded, not shown: "
        "they were counted, at the nominal rate"
    )


INTERLACED = (
    "images are interlaced, two moments woven into each, and were left so: what moves has combs "
    "for edges; deinterlace them first (ffmpeg -i IN -vf bwdif OUT)"
)
TURNED = (
    "images turn in mid-stream; each is shown upright, and the first one that turned is flagged"
)
TRANSPARENT = (
    "transparent pixels were taken in the colour that stands below their transparency (in a GIF, "
    "white); put them on a background first if that is not what you mean"
)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
