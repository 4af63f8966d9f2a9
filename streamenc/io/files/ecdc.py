"""EnCodec's own files, `.ecdc`, both ways, for interchange with the `encodec` package.

Without the language model, that is: `ecdcformat` describes the bytes.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePath
from typing import BinaryIO

from streamenc import options
from streamenc.errors import FitError, InputError, MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink, BlockingSource
from streamenc.io.files.ecdcformat import (
    BITS,
    HOP,
    MAGIC,
    MAX_CODEBOOKS,
    MAX_HEADER_BYTES,
    MODELS,
    PREFIX,
    SCALE,
    VERSION,
    BitPacker,
    Header,
    Piece,
    fit_samples,
    frames_of,
    unpack,
)
from streamenc.io.files.output import open_output, output_error

log = logging.getLogger(__name__)


class EcdcSink(BlockingSink):
    """Writes the codes of EnCodec to `.ecdc`.

    24 kHz: frames of any length. 48 kHz: one frame per segment, with its scale. The number of
    codebooks is that of the first frame. The format has no gaps: where frames were lost, the clip
    is shorter. Each frame goes to the operating system at once (a segment with its successor), the
    length of the audio into the header at the end; EcdcSource reads what a crash has left, too.

    model      encodec_24khz or encodec_48khz, where the stream's model has another name.
    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(self, address: str, model: str = "", overwrite: str | bool = True) -> None:
        self.address = address
        self.model = options.choice("model", model, MODELS) if model else ""
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: BinaryIO | None = None
        self._packer = BitPacker()
        self._codebooks = 0
        self._frames = 0
        self._seconds = Fraction(0)
        # The last segment may have to be shortened, so each one waits for its successor.
        self._pending: Frame | None = None
        self._segments = 0  # written so far
        self._before: int | None = None  # code frames of the last of them

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises FitError where `info` is not EnCodec's codes, OutputError."""
        name = self.model or PurePath(info.model).name
        if info.kind != "codes" or name not in MODELS or info.codebook_size != 2**BITS:
            raise FitError(
                f"an .ecdc file holds codes of {' or '.join(MODELS)}; got {info} (for weights "
                "under another name, say model=encodec_24khz or model=encodec_48khz)"
            )
        self._model, self._time_base = MODELS[name], info.time_base
        self._file = open_output(self.address, self.overwrite)
        if not self._file.seekable():
            self._abandon()
            raise OutputError(f"{self.address!r} is a pipe; .ecdc needs a file to seek in")
        self._write(Header(self._model, 0, info.shape[0] or MAX_CODEBOOKS).to_bytes())

    def write_blocking(self, frame: Frame) -> None:
        """Raises InputError where the frame does not fit into the file, OutputError."""
        if self._file is None:
            raise OutputError(f"{self.address!r} is closed")
        codes = frame.data
        self._check(frame)
        self._seconds += frame.duration * self._time_base
        if not codes.shape[1]:
            return
        if not self._codebooks:
            self._codebooks = codes.shape[0]
            self._rewrite_header(samples=0)
        if self._model.segment:
            self._write_pending()
            self._pending = frame
        else:
            self._write(self._packer.pack(codes))
        self._frames += codes.shape[1]

    def close_blocking(self) -> None:
        if self._file is None:
            return
        try:
            if self._frames:
                self._rewrite_header(self._finish())
            self._file.close()
        except OSError as error:
            raise output_error(self.address, error) from error
        finally:
            self._abandon()

    def _check(self, frame: Frame) -> None:
        codes = frame.data
        if codes.ndim != 2 or codes.dtype.kind != "u" or not 1 <= codes.shape[0] <= MAX_CODEBOOKS:
            raise InputError(
                f"got {frame!r}; an .ecdc file takes unsigned integers (codebooks, frames), 1 to "
                f"{MAX_CODEBOOKS} codebooks"
            )
        if self._codebooks and codes.shape[0] != self._codebooks:
            raise InputError(
                f"got {codes.shape[0]} codebooks after {self._codebooks}; an .ecdc file cannot "
                "change their number: record to .arrows instead"
            )
        if codes.size and codes.max() >= 2**BITS:
            raise InputError(f"got code {codes.max()}; EnCodec has {2**BITS} entries per codebook")
        if self._model.segment and codes.size:
            self._check_segment(codes.shape[1])

    def _check_segment(self, count: int) -> None:
        whole = self._model.segment // HOP
        before = whole if self._pending is None else self._pending.data.shape[1]
        if count > whole or not (before == whole or (before == whole - 1 and count == 1)):
            raise InputError(
                f"got a segment of {count} code frames after one of {before}; only the last may "
                f"differ from {whole}: record a stream with gaps to .arrows instead"
            )

    def _write_pending(self, most: int | None = None) -> None:
        if self._pending is None:
            return
        codes = self._pending.data[:, :most]
        scale = SCALE.pack(self._pending.scale)
        self._write(scale + self._packer.pack(codes) + self._packer.flush())
        self._segments += 1
        self._before = codes.shape[1]

    def _finish(self) -> int:
        """Writes what is left. Returns the length of the audio in samples."""
        samples = round(self._seconds * self._model.rate)
        if not self._model.segment:
            self._write(self._packer.flush())
            return fit_samples(samples, self._frames, self._model)
        before, start = self._before, self._segments * self._model.stride
        # A longer one would have a successor.
        self._write_pending(most=frames_of(self._model.stride))
        assert self._before is not None
        return start + fit_samples(samples - start, self._before, self._model, before)

    def _rewrite_header(self, samples: int) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._write(Header(self._model, samples, self._codebooks).to_bytes())
        self._file.seek(0, os.SEEK_END)

    def _write(self, raw: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(raw)
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise output_error(self.address, error) from error

    def _abandon(self) -> None:
        """Lets go of the file as it stands."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                log.debug("%s: closing failed too", self.address)


class EcdcSource(BlockingSource):
    """Reads the codes of an `.ecdc` file.

    Yields codes, uint16 (codebooks, frames); time base 1 / sample rate of the model. 24 kHz: pieces
    of 160 ms. 48 kHz: one frame per segment, with its scale; its duration is the distance to the
    next one. All durations together are the length of the audio. A file that is shorter than its
    header says, or that a crash has left without a length, gives the code frames (24 kHz) or
    segments (48 kHz) that are whole.

    broken            Set where the end of the file is missing.
    duration_seconds  Length of the audio, as far as it is there.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.replayed = Path(address).is_file()
        self._file: BinaryIO | None = None
        self._frames: Iterator[Frame] = iter(())
        self._cut_short = False

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where the file is not an .ecdc that can be read."""
        try:
            self._file = open(self.address, "rb")
            size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            header = self._read_header(self._file)
        except OSError as error:
            raise MediaError(f"cannot read {self.address!r}: {error.strerror or error}") from error
        end = self._measure(header, size - self._file.tell())
        self.duration_seconds = end / header.model.rate
        if self._cut_short:
            self.broken = f"the file was cut short after {self.duration_seconds:.2f} s"
        self._frames = self._read_frames(self._file, header, end)
        return StreamInfo(
            kind="codes",
            time_base=Fraction(1, header.model.rate),
            rate=header.model.frame_rate,
            shape=(header.codebooks, None),
            dtype="uint16",
            model=f"facebook/{header.model.name}",
            codebook_size=2**BITS,
        )

    def read(self) -> Frame | None:
        return next(self._frames, None)

    def close_blocking(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read_header(self, file: BinaryIO) -> Header:
        prefix = file.read(PREFIX.size)
        if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
            raise MediaError(f"{self.address!r} is not an .ecdc file: it begins with {prefix!r}")
        _, version, length = PREFIX.unpack(prefix)
        if version != VERSION:
            raise MediaError(f"{self.address!r} is .ecdc of version {version}; known is {VERSION}")
        if length > MAX_HEADER_BYTES:
            raise MediaError(
                f"{self.address!r} has a header of {length} bytes; at most {MAX_HEADER_BYTES}"
            )
        text = file.read(length)
        if len(text) < length:
            raise MediaError(f"{self.address!r} ends in its header")
        return Header.from_json(text)

    def _measure(self, header: Header, left: int) -> int:
        """Samples for which there are codes, given the bytes after the header."""
        if not header.samples and not left:
            return 0
        end = 0
        for piece in header.pieces():
            size = header.bytes_of(piece.count)
            if size > left:
                self._cut_short = True
                if not header.model.segment:
                    end = piece.pts + left * 8 // (header.codebooks * BITS) * HOP
                return end
            left -= size
            end = piece.pts + piece.duration
        if left:
            raise MediaError(f"{self.address!r} has {left} bytes more than its header says")
        return end

    def _read_frames(self, file: BinaryIO, header: Header, end: int) -> Iterator[Frame]:
        for seq, piece in enumerate(header.pieces()):
            if piece.pts >= end:
                return
            if not header.model.segment and piece.pts + piece.duration > end:
                piece = Piece(piece.pts, end - piece.pts, frames_of(end - piece.pts))
            raw = file.read(header.bytes_of(piece.count))
            if len(raw) < header.bytes_of(piece.count):
                raise MediaError(f"{self.address!r} became shorter while it was read")
            scale = 1.0
            if header.model.segment:
                (scale,) = SCALE.unpack_from(raw)
                raw = raw[SCALE.size :]
                if not (math.isfinite(scale) and scale >= 0):
                    raise MediaError(f"{self.address!r} has a segment of scale {scale}")
            yield Frame(
                data=unpack(raw, header.codebooks, piece.count),
                pts=piece.pts,
                duration=piece.duration,
                seq=seq,
                arrived_ns=self.clock.now_ns(),
                scale=scale,
            )
