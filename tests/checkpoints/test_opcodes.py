"""The opcodes of pickles: what Python's own unpickler makes of them, within bounds."""

from __future__ import annotations

import pickle
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.checkpoints.opcodes import MAX_OPCODES, Call, Inert, Machine

KEYS = st.text(max_size=8) | st.integers(-(2**59), 2**59) | st.booleans() | st.none() | st.binary()
VALUES = st.recursive(
    KEYS | st.floats(allow_nan=False) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


class Plain(Machine):
    """Knows two names."""

    def find(self, module: str, name: str) -> Any:
        known = {"pair": Call(lambda a, b: (a, b)), "Odd": Inert}
        if name not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[name]

    def refer(self, pid: Any) -> Any:
        return ("outside", pid)


@contextmanager
def cheap(seconds: float = 2.0, mebibytes: int = 200) -> Iterator[None]:
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - begun < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mebibytes << 10


@settings(max_examples=100)
@given(VALUES, st.integers(3, 5))
def test_values_are_those_of_python(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    machine = Plain(content + b"rest")
    assert machine.load() == value
    assert machine.at == len(content)


@pytest.mark.parametrize("protocol", range(6))
def test_values_of_every_protocol(protocol: int) -> None:
    value = {"a\u00e9\n\\": [1, -5, 2**40, 1e-7, True, None, (), (2,), {"b": 70_000}, [[]]]}
    assert Plain(pickle.dumps(value, protocol)).load() == value


def test_an_object_that_is_met_twice_is_one() -> None:
    shared = [1]
    first, second = Plain(pickle.dumps((shared, shared))).load()
    assert first is second


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"cany\npair\n(K\x01K\x02tR.", (1, 2)),
        (b"cany\npair\n(K\x01K\x02tR0NQ.", ("outside", None)),
        (b"(S'a'\nK\x07d.", {"a": 7}),
        (b"(F1.5\nL7L\nI01\nl.", [1.5, 7, True]),
        (b"}\x8c\x01a]s\x8c\x01a]s.", {"a": []}),
        (b"K\x01K\x022.", 2),
        (b"(K\x011K\x03.", 3),
    ],
)
def test_opcodes_of_old_protocols_and_calls(content: bytes, wanted: Any) -> None:
    assert Plain(content).load() == wanted


@pytest.mark.parametrize(
    "content",
    [
        b"cany\nOdd\n(K\x01tR.",
        b"cany\nOdd\n)\x81}b.",
        b"(cany\nOdd\nK\x01o.",
        b"(K\x01iany\nOdd\n.",
        b"cany\nOdd\n)R(K\x01K\x02u.",
        b"cany\nOdd\n)R(K\x01e.",
        b"\x8f(K\x01\x90.",
        b"(K\x01\x91.",
    ],
)
def test_what_stands_for_other_objects_takes_all(content: bytes) -> None:
    assert isinstance(Plain(content).load(), Inert)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "ends before its last opcode"),
        (b"N", "ends before its last opcode"),
        (b".", "takes something that is not there"),
        (b"(.", "takes something that is not there"),
        (b"K\x01e.", "a mark that is not there"),
        (b"h\x05.", "refers to something"),
        (b"X\xff\xff\xff\xff.", "ends before 4294967295 bytes"),
        (b"T\xff\xff\xff\xff.", "ends before -1 bytes"),
        (b"\x96" + struct.pack("<Q", 2**62) + b".", "ends before"),
        (b"S'a\n.", "no quotes"),
        (b"I" + b"1" * 10_000, "a line in it has no end"),
        (b"\x82\x01.", "opcode 0x82"),
        (b"Pid\n.", "opcode 0x50"),
        (b"cos\nsystem\n(S'ls'\ntR.", "names os.system"),
        (b"K\x01)R.", "calls something that is no function"),
        (b"cany\npair\nK\x01R.", "without arguments"),
        (b"cany\npair\n}b.", "changes a function"),
        (b"cany\npair\n)\x81.", "calls something that is no function"),
        (b"(o.", "calls something that is no function"),
        (b"K\x01K\x01\x93.", "name in it is no text"),
        (b"K\x01(K\x02e.", "adds to something that is no list"),
        (b"](K\x02K\x03u.", "gives keys to something that is no dict"),
        (b"}(K\x02u.", "a key in it has no value"),
        (b"N0" * (MAX_OPCODES // 2) + b"N.", "more than 1048576 opcodes"),
    ],
)
def test_what_is_wrong_is_refused(content: bytes, said: str) -> None:
    with cheap(), pytest.raises(pickle.UnpicklingError, match=said):
        Plain(content).load()


def test_keys_that_would_take_years_to_hash_are_left_out() -> None:
    """A tuple of itself twice, 100 levels deep; and numbers that all have one hash."""
    tuples = b"N\x85q\x00" + b"".join(
        b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(100)
    )
    numbers = b"".join(
        b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(1, 50_000)
    )
    with cheap():
        assert Plain(tuples + b"}(hdK\x01K\x05K\x06u.").load() == {5: 6}
        assert Plain(b"}(" + numbers + b"K\x05K\x06u.").load() == {5: 6}
        assert Plain(b"}K\x01\x85K\x02s.").load() == {}


def test_what_asks_for_much_gets_little() -> None:
    with cheap():
        Plain(b"](" + b"}" * 100_000 + b"e.").load()
    with cheap():
        Plain(b"(" + b"}\x94" * 50_000 + b"l.").load()
    with cheap():
        Plain(b"]" * 100_000 + b"a" * 99_999 + b".").load()
    with cheap():
        assert Plain(b"}r\xff\xff\xff\xff.").load() == {}
