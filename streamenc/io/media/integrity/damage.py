"""Which decoded pictures are whole: damaged ones, and those that were predicted from them."""

from __future__ import annotations

from collections import deque
from typing import Any

from streamenc.io.media.integrity.framenumbers import FrameNumbers
from streamenc.io.media.integrity.gifblocks import ends_whole
from streamenc.io.media.integrity.tiffstrips import is_decodable

# A picture that refreshes itself bit by bit (intra refresh) never has a key picture: it is whole
# again after one full cycle, which begins at a mark and ends at the next one.
MARKS_TO_HEAL = 2
# Pictures in a row that are left out at most, where a stream has neither key pictures nor marks.
MAX_SUSPECT = 300
REMEMBERED = 64


class Damage:
    """Judges the pictures of one stream by what happened to its packets, in the decoder's order.

    A decoder goes on from what it has, and says of a picture that it is damaged, but not of those
    that are predicted from it. So all that is decoded after a damaged or missing packet is suspect
    until the next key picture, or until a whole cycle of refreshing has passed; after 300 pictures
    without either, what comes is taken as it is. That a packet is missing is known where the
    container says so, where decoding fails, and of H.264 by the numbers of its frames.

    Damage that leaves a valid stream cannot be seen: of pictures without checksums (uncompressed
    ones, and flipped bits in H.264).

    stream  Of PyAV, not decoded yet: it is told to fail at damage instead of hiding it.
    """

    def __init__(self, stream: Any) -> None:
        context = stream.codec_context
        context.copy_opaque = True
        if context.name != "tiff":  # where a tag that FFmpeg does not know would count as damage
            context.options = {**context.options, "err_detect": "explode"}
        self._numbers = FrameNumbers(context.extradata) if context.name == "h264" else None
        self._is_whole = {"gif": ends_whole, "tiff": is_decodable}.get(context.name)
        self._count = 0
        self._bad: list[int] = []  # damaged packets, by their number in the decoder's order
        self._marks: deque[int] = deque(maxlen=REMEMBERED)
        self._left_out = 0
        self._failed: deque[int] = deque(maxlen=REMEMBERED)

    def feed(self, packet: Any, follower: Any = None) -> None:
        """Before `packet` is decoded.

        follower  The packet after it, where the container says that `packet` is damaged. In front
                  of a key picture it may just be the last one before a seam, where pieces of a
                  broadcast were joined: then only the decoder is asked.
        """
        if not packet.size:
            return
        self._count += 1
        packet.opaque = self._count
        if packet.is_keyframe:
            self._marks.append(self._count)
        missing = self._numbers is not None and self._numbers.misses(packet)
        at_seam = follower is not None and bool(follower.size) and follower.is_keyframe
        cut = self._is_whole is not None and not self._is_whole(bytes(packet))
        if missing or cut or (packet.is_corrupt and not at_seam):
            self._bad.append(self._count)

    def fail(self) -> None:
        """The packet that was fed last could not be decoded."""
        self._failed.append(self._count)
        if self._count not in self._bad:
            self._bad.append(self._count)

    def has_failed(self, picture: Any) -> bool:
        """Whether the packet of `picture`, of which something came nevertheless, has failed."""
        return picture.opaque in self._failed

    def is_whole(self, picture: Any) -> bool:
        """Of each decoded picture, in the order in which they come."""
        number = self._count if picture.opaque is None else picture.opaque
        if picture.is_corrupt and number not in self._bad:
            self._bad.append(number)
        elif picture.key_frame:
            self._bad = [bad for bad in self._bad if bad >= number]
        elif self._left_out >= MAX_SUSPECT:
            self._bad = [bad for bad in self._bad if bad > number]
        else:
            self._bad = [bad for bad in self._bad if not self._healed(bad, number)]
        suspect = any(bad <= number for bad in self._bad)
        self._left_out = self._left_out + 1 if suspect else 0
        return not suspect

    def _healed(self, bad: int, number: int) -> bool:
        return sum(bad < mark <= number for mark in self._marks) >= MARKS_TO_HEAL
