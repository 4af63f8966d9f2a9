"""Album: files of pictures that FFmpeg does not read, or not as they are meant."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import av
import numpy as np
from PIL import Image, features

from streamenc.errors import MediaError, UsageError
from streamenc.io.media.pictures import peculiar
from streamenc.io.media.pictures.orientation import UPRIGHT, of_pillow
from streamenc.io.media.pictures.pixels import Form

MAX_PIXELS = 2**26
# Major brands of ISO 14496-12 files. What calls itself MIF1 or MSF1 says in others what it holds.
HEIC = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"mif2"}
HEIC_SEQUENCES = {b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"}
AVIF = {b"avif", b"avis"}
# A single picture counts as one of 25 images a second, as FFmpeg has it.
STILL_RATE = Fraction(25)
MS = Fraction(1, 1000)
# Of an animation that does not say how long an image lasts.
DEFAULT_MS = 100
# Where files say what they are, and that a picture is to be cropped.
HEAD_BYTES = 1 << 16
CROP = struct.pack(">I4s", 40, b"clap")
# What Pillow and pillow-heif raise on damaged files; warnings where the user wants them raised.
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, OverflowError,
    Image.DecompressionBombError, Warning,
)  # fmt: skip
ENDINGS = (".heic", ".heif", ".hif", ".heics", ".avif", ".avifs")
FROM_FILES = (
    "pictures in HEIC or AVIF are assembled of tiles, from files only: save it and name that"
)

Kind = Literal["HEIC", "HEIC sequence", "AVIF", "animated WebP", ""]


def recognises(path: Path) -> bool:
    """Whether an Album reads it: HEIC, AVIF, or a WebP that moves."""
    return _kind(_head(path)) != ""


def refuse_here(brand: str) -> None:
    """Raises MediaError where FFmpeg opened a container that an Album has to read."""
    if brand.encode() in HEIC | HEIC_SEQUENCES | AVIF:
        raise MediaError(f"{FROM_FILES} ({brand})")


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raises MediaError where an image has more pixels than are taken."""
    if width * height > most:
        side = math.isqrt(most)
        raise MediaError(
            f"images of {width} x {height}; at most {most} pixels are taken, as {side} x {side}: "
            "scale them down first"
        )


class Album:
    """The pictures of one file, as a viewer shows them: assembled of tiles, and cut.

    HEIC is read by pillow-heif, the extra `heif`, AVIF and WebP by Pillow, in the colours that the
    container states. Of HEIC pictures that stand side by side, the primary one is taken; of an
    animation, all.

    form             How all of them are stored, and to be shown.
    time_base, rate  What their pts and durations count in; nominal images a second.
    remarks          As of a node.

    Raises MediaError where the file is damaged, too large, or holds what cannot be read; UsageError
    where what reads it is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.remarks: list[str] = []
        head = _head(path)
        self._kind = _kind(head)
        if self._kind == "animated WebP":
            # Its decoder makes room for the whole at once.
            low, high = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
            check_size(low + 1, high + 1)
        self._picture = self._opened()
        try:
            check_size(*self._picture.size)
            orientation = UPRIGHT
            if self._kind != "HEIC":
                orientation = of_pillow(self._picture) or UPRIGHT
            width, height = self._picture.size
            self.form = Form(width, height, orientation)
            self._moves = self._kind != "HEIC" and getattr(self._picture, "n_frames", 1) > 1
            self.time_base = MS if self._moves else 1 / STILL_RATE
            self.rate = 1000 / Fraction(self._loaded(0)[1]) if self._moves else STILL_RATE
        except BaseException:  # closed, and passed on
            self._picture.close()
            raise
        self._remark_on(head)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._picture.close()

    def __iter__(self) -> Iterator[Any]:
        """The pictures as frames of PyAV. Raises MediaError where one is damaged."""
        for number in range(self._picture.n_frames if self._moves else 1):
            pts, lasts = self._loaded(number)
            picture = self._picture
            clear = "A" in picture.getbands() or "transparency" in picture.info
            pixels = np.asarray(picture.convert("RGBA" if clear else "RGB"))
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if clear else "rgb24")
            frame.time_base, frame.pts, frame.duration = self.time_base, pts, lasts
            yield frame

    def _opened(self) -> Any:
        if self._kind == "HEIC sequence":
            raise MediaError(
                f"{self._path} is a sequence of images in HEIC, which nothing here reads: save it "
                "as a film, or as single pictures"
            )
        if self._kind == "HEIC":
            return self._primary()
        feature = "avif" if self._kind == "AVIF" else "webp"
        if not features.check(feature):
            raise UsageError(
                f"{self._path} is in {self._kind}, and this Pillow was built without it: "
                "pip install --upgrade pillow (11.3 or newer)"
            )
        try:
            return Image.open(self._path, formats=[feature.upper()])
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _primary(self) -> Any:
        try:
            import pillow_heif
        except ImportError as error:
            raise UsageError(
                f"{self._path} is in HEIC; that needs pillow-heif: pip install 'streamenc[heif]'"
            ) from error
        try:
            file = pillow_heif.open_heif(self._path)
            if len(file) > 1:
                self.remarks.append(
                    f"the file holds {len(file)} pictures; the primary one is taken"
                )
            primary = file[file.primary_index]
            check_size(*primary.size)
            return primary.to_pillow()
        except DAMAGE as error:
            raise self._damaged(error) from error

    def _loaded(self, number: int) -> tuple[int, int]:
        """Makes it the current picture: its pts and how long it lasts."""
        try:
            if self._moves:
                self._picture.seek(number)
            self._picture.load()
        except DAMAGE as error:
            raise self._damaged(error, number if self._moves else None) from error
        if not self._moves:
            return 0, 1
        said = self._picture.info
        return round(said["timestamp"]), round(said["duration"]) or DEFAULT_MS

    def _damaged(self, error: Exception, number: int | None = None) -> MediaError:
        which = "" if number is None else f", picture {number}"
        reason = " ".join(str(error).split())  # libheif's has several lines
        return MediaError(f"cannot read {str(self._path)!r} as {self._kind}{which}: {reason}")

    def _remark_on(self, head: bytes) -> None:
        if self._kind == "animated WebP":
            return
        if self._kind == "AVIF" and CROP in head:
            self.remarks.append(
                "the file states how it is to be cropped (clap), which Pillow does not do: the "
                "whole picture was taken"
            )
        colours = head.find(b"colrnclx")
        if colours < 0:
            return
        (curve,) = struct.unpack_from(">H", head.ljust(HEAD_BYTES + 12), colours + 10)
        if curve in peculiar.HDR:
            self.remarks.append(peculiar.hdr(peculiar.HDR[curve]))


def _head(path: Path) -> bytes:
    """Where a file says what it is; b"" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _kind(head: bytes) -> Kind:
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return "animated WebP" if head[20:21] and head[20] & 2 else ""
    if head[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(head[:4], "big"), 1024)
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
    if head[8:12] in HEIC | HEIC_SEQUENCES | AVIF and brands & AVIF:
        return "AVIF"
    if head[8:12] in HEIC_SEQUENCES:
        return "HEIC sequence"
    return "HEIC" if head[8:12] in HEIC else ""
