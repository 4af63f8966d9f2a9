"""StreamInfo as JSON: in the header of a recording, of a JSON-lines file, of a network stream.

    {"kind": "codes", "time_base": "1/24000", "rate": "25/2", "shape": [8, null], "dtype": "uint16",
     "model": "kyutai/mimi", "codebook_size": 2048}

A mux has "tracks", a list of such objects. Fractions are strings, so that nothing is rounded. What
comes in segments, as text does, has the rate "0/1".
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, get_args

from streamenc.errors import MediaError
from streamenc.graph.frames import Kind, StreamInfo, stream_fault

# The types of data that a file or a packet may carry; anything else is refused.
DTYPES = (
    "float16", "bfloat16", "float32", "float64",
    "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64",
)  # fmt: skip
MAX_TRACKS = 255
MAX_AXES = 8
MAX_DIGITS = 40


def info_to_json(info: StreamInfo) -> dict[str, Any]:
    """`info` as a dictionary that `json.dumps` takes."""
    made: dict[str, Any] = {
        "kind": info.kind,
        "time_base": f"{info.time_base.numerator}/{info.time_base.denominator}",
        "rate": f"{info.rate.numerator}/{info.rate.denominator}",
        "shape": list(info.shape),
        "dtype": info.dtype,
        "model": info.model,
        "codebook_size": info.codebook_size,
    }
    if info.kind == "mux":
        made["tracks"] = [info_to_json(track) for track in info.tracks]
    return made


def info_from_json(made: Any) -> StreamInfo:
    """The StreamInfo that `info_to_json` wrote. Raises MediaError where `made` is anything else."""
    info = _from_json(made, inside_mux=False)
    if fault := stream_fault(info):
        raise MediaError(f"a stream description is of no stream: {fault}")
    return info


def _from_json(made: Any, inside_mux: bool) -> StreamInfo:
    if not isinstance(made, dict):
        raise MediaError(f"a stream description must be a JSON object; got {type(made).__name__}")
    kind = _take(made, "kind", str)
    if kind not in get_args(Kind) or (inside_mux and kind == "mux"):
        raise MediaError(f"a stream description has the unknown kind {kind!r}")
    dtype = _take(made, "dtype", str)
    known = dtype == "str" if kind == "text" else dtype in DTYPES
    if not known and not (kind == "mux" and dtype == ""):
        raise MediaError(f"a stream description has the unknown dtype {dtype!r}")
    shape = _take(made, "shape", list)
    if len(shape) > MAX_AXES or not all(n is None or (type(n) is int and n >= 0) for n in shape):
        raise MediaError(f"a stream description has the shape {shape!r}")
    tracks = _take(made, "tracks", list) if kind == "mux" else []
    if len(tracks) > MAX_TRACKS:
        raise MediaError(f"a stream description has {len(tracks)} tracks; at most {MAX_TRACKS}")
    return StreamInfo(
        kind=kind,
        time_base=_fraction(made, "time_base"),
        rate=_fraction(made, "rate", least=1 if kind in ("audio", "video") else 0),
        shape=tuple(shape),
        dtype=dtype,
        model=_take(made, "model", str),
        codebook_size=_take(made, "codebook_size", int),
        tracks=tuple(_from_json(track, inside_mux=True) for track in tracks),
    )


def _take(made: dict[str, Any], key: str, kind: type) -> Any:
    value = made.get(key)
    if type(value) is not kind:
        raise MediaError(f"a stream description needs a {kind.__name__} {key!r}; got {value!r:.80}")
    return value


def _fraction(made: dict[str, Any], key: str, least: int = 1) -> Fraction:
    text = _take(made, key, str)
    numerator, _, denominator = text.partition("/")
    whole = len(text) <= MAX_DIGITS and numerator.isdecimal() and denominator.isdecimal()
    if not whole or int(numerator) < least or not int(denominator):
        raise MediaError(f"a stream description has {key} = {text!r:.80}; wanted e.g. '1/24000'")
    return Fraction(int(numerator), int(denominator))
