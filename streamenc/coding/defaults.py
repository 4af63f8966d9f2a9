"""What a graph does where nobody says it: steps, edges, waits, and the sizes of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from streamenc import options
from streamenc.errors import UsageError
from streamenc.graph.node import Source

if TYPE_CHECKING:
    from streamenc.spec import StreamSpec

# Where nobody waits for a frame, a step covers about so much: larger products are cheaper per
# frame.
FILE_STEP_SECONDS = 1.0
# Texts of about one length go through a model together.
FILE_STEP_TEXTS = 32
# Over so short a gap in a video, an encoder with a memory runs on.
BRIDGED_MS = 1000.0
# Containers interleave by up to some seconds, and a hop of images is many of sound.
MERGED_FRAMES, MERGED_IMAGES = 8192, 32
LIVE_WAIT_MS, FILE_WAIT_MS = 500.0, 60_000.0


def in_time(source: Source, realtime: bool) -> bool:
    """Whether a source gives its frames when they are due: a device, or a file that is paced."""
    return realtime or bool(source.live)


def is_live(source: Source, realtime: bool) -> bool:
    """Whether somebody waits for each frame: for all but what is replayed as fast as can be."""
    return in_time(source, realtime) or not source.replayed


def hops_in_step(spec: StreamSpec, live: bool) -> int:
    """1 where frames are waited for, and of images, whose hop is large by itself; else a second, or
    some texts."""
    if live or "video" in (spec.input.kind, spec.output.kind):
        return 1
    if spec.input.kind == "text":
        return FILE_STEP_TEXTS
    return max(1, math.floor(FILE_STEP_SECONDS * spec.input.rate / spec.hop))


def conceal_ms(spec: StreamSpec) -> float:
    """Which gaps do not start the encoder anew."""
    return BRIDGED_MS if spec.input.kind == "video" and spec.hop > 1 else 0.0


def live_edge(spec: StreamSpec) -> dict[str, Any]:
    """What happens to live images that the encoder has no time for: the newest ones count."""
    if spec.hop == 1:
        return {"policy": "latest"}
    # A step takes several images at once: those of the next one gather meanwhile.
    return {"policy": "drop_oldest", "capacity": 2 * spec.hop}


def merge_wait_ms(in_time: bool) -> float:
    """How long a merge waits for its slowest input."""
    return LIVE_WAIT_MS if in_time else FILE_WAIT_MS


def wanted_images(
    spec: StreamSpec, size: str | None, fit: str | None, filter: str | None
) -> dict[str, Any]:
    """The arguments of Fit: what the user says, before what the model was published with.

    Raises UsageError where the model was loaded for another size.
    """
    image = spec.input.image
    assert image is not None
    wanted: dict[str, Any] = {"unit": image.unit, "filter": filter or image.filter}
    if size is not None:
        given = options.size("size", size)
        if image.size is not None and given != image.size:
            height, width = image.nearest(given)
            raise UsageError(
                f"size={size}; {spec.name} was loaded for images of "
                f"{image.size[1]}x{image.size[0]}, and they are brought to that without it: load "
                f"it with size={width}x{height} (--set size={width}x{height}, and no --size)"
            )
        wanted |= {"size": given, "how": fit or "crop"}
    elif image.size is None:
        wanted["how"] = fit or "crop"
    elif fit is None:
        how = "crop" if image.shortest else "stretch"
        wanted |= {"size": image.size, "shortest": image.shortest, "how": how}
    else:
        wanted |= {"size": image.size, "how": fit}
    return wanted
