"""Reads a token stream from ZeroMQ without streamenc: pyzmq, a msgpack library and docs/io/wire.md.

    streamenc encode mic: zmq+tcp://127.0.0.1:5555      # publishes, in another terminal
    python examples/read_wire.py tcp://127.0.0.1:5555

Prints seq, time in seconds, shape and codes of each frame. A reader in another language needs no
more than the forty lines below, either.
"""

import math
import struct
import sys

import msgspec
import zmq

ITEM = {"u1": "B", "u2": "H", "u4": "I", "f2": "e", "f4": "f"}  # as the struct module calls them


def fields(packet: bytes) -> tuple[str, list]:
    """Kind and fields of a packet: 5 bytes of header, then one msgpack array."""
    magic, major, minor, kind = struct.unpack_from("2sBBc", packet)
    if magic != b"SE" or major != 1:
        raise ValueError(f"this reads packets of version 1.x; got {magic!r} {major}.{minor}")
    return kind.decode("ascii"), msgspec.msgpack.decode(packet[5:])


def main(address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.connect(address)
        subscriber.subscribe(b"")
        stream = None
        seconds_per_tick: list[float] = []
        while True:
            kind, packet = fields(subscriber.recv())
            if kind == "I" and packet[0] != stream:
                stream, _, described, tracks = packet[:4]
                streams = tracks or [described]
                seconds_per_tick = [
                    numerator / denominator for _, numerator, denominator, *_ in streams
                ]
                print("stream of", ", ".join(f"{s[0]} {s[7]}" for s in streams), flush=True)
            elif kind == "D" and packet[0] == stream:
                _, track, seq, pts, _, flags, _, _, dtype, shape, payload = packet[:11]
                items = struct.unpack(f"<{math.prod(shape)}{ITEM[dtype]}", payload)
                gap = " after a discontinuity" if flags & 1 else ""
                print(
                    f"seq {seq}  {pts * seconds_per_tick[track]:.3f} s  "
                    f"{'x'.join(map(str, shape))}  {' '.join(map(str, items))}{gap}",
                    flush=True,
                )
            elif kind == "E" and packet[0] == stream:
                broken = f", broken off: {packet[3]}" if packet[3:] and packet[3] else ""
                print(f"end after {packet[1]} frames{broken}", flush=True)
                return


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
