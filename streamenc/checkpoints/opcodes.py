"""The opcodes of pickles, run by a machine of our own, whose every step is counted.

Python's own unpickler calls whatever it is given and believes the sizes that a pickle states: 60
bytes ask for gigabytes, tuples of tuples for years where they are hashed. Here containers are plain
ones, keys are text and numbers, what has a length is as long as the bytes that are there, and calls
go to what may be called.
"""

from __future__ import annotations

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Step: TypeAlias = "Callable[[Machine], None]"

# Each leaves an object of some 100 bytes at most, beside text that is in the file. A tensor is 40.
MAX_OPCODES = 1 << 20
MAX_LINE_BYTES = 4096
# Whole numbers below differ in their hashes: of larger ones, thousands could be made that do not.
MAX_KEY = 1 << 60

_MARK = object()
_STOP = pickle.STOP[0]


class Stand:
    """Stands for an object of a class that is never imported; made without arguments."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Takes the attributes that the pickle gives it."""


class Inert(Stand):
    """Of a class or a function that no tensor needs: takes anything, and does nothing."""

    __slots__ = ()


class Call:
    """A function that a pickle may call and not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class Machine(ABC):
    """One pickle after the other in `content`. A subclass says what names and references mean.

    Attributes:
        at: Where the next one begins.
    """

    def __init__(self, content: bytes, at: int = 0) -> None:
        self._content, self.at = content, at
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    @abstractmethod
    def find(self, module: str, name: str) -> Any:
        """What stands for a name. Raises pickle.UnpicklingError."""

    @abstractmethod
    def refer(self, pid: Any) -> Any:
        """What stands for something that is kept outside. Raises pickle.UnpicklingError."""

    def load(self) -> Any:
        """Raises pickle.UnpicklingError, and what functions raise that are called wrongly."""
        self.stack, self.memo = [], {}
        content = self._content
        for _ in range(MAX_OPCODES):
            if self.at >= len(content):
                raise pickle.UnpicklingError("it ends before its last opcode")
            code = content[self.at]
            self.at += 1
            if code == _STOP:
                return self.pop()
            step = _STEPS.get(code)
            if step is None:
                raise pickle.UnpicklingError(f"it has the opcode {code:#04x}, which none needs")
            step(self)
        raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES} opcodes")

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._content) - self.at:
            raise pickle.UnpicklingError(f"it ends before {count} bytes that it announces")
        self.at += count
        return self._content[self.at - count : self.at]

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size))[0]

    def line(self, encoding: str = "utf-8") -> str:
        end = self._content.find(b"\n", self.at, self.at + MAX_LINE_BYTES)
        if end < 0:
            raise pickle.UnpicklingError("a line in it has no end")
        start, self.at = self.at, end + 1
        return self._content[start:end].decode(encoding, "replace")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise pickle.UnpicklingError("it takes something that is not there")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                items = stack[at + 1 :]
                del stack[at:]
                return items
        raise pickle.UnpicklingError("it goes back to a mark that is not there")

    def remembered(self, index: int) -> Any:
        if index not in self.memo:
            raise pickle.UnpicklingError("it refers to something that it has not made")
        return self.memo[index]


def fill(made: dict[Any, Any], keys: Iterable[Any], values: Iterable[Any]) -> None:
    """Puts them in; what has a key that is neither text nor a small number is left out."""
    for key, value in zip(keys, values, strict=True):
        if isinstance(key, str | bytes | None) or (isinstance(key, int) and abs(key) < MAX_KEY):
            made[key] = value


def _text(content: bytes) -> str:
    return content.decode(errors="replace")  # as torch reads what Python 2 wrote


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("it calls something without arguments")
    if isinstance(function, Call):
        return function(*arguments)
    return function if isinstance(function, Stand) else _made(function)


def _made(kind: Any) -> Any:
    """An object of a class."""
    if not isinstance(kind, type) or not issubclass(kind, Stand):
        raise pickle.UnpicklingError("it calls something that is no function")
    return kind()


def _extend(made: Any, items: list[Any]) -> None:
    if isinstance(made, list):
        made += items
    elif not isinstance(made, Stand):
        raise pickle.UnpicklingError("it adds to something that is no list")


def _set(made: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise pickle.UnpicklingError("a key in it has no value")
    if isinstance(made, dict):
        fill(made, items[::2], items[1::2])
    elif not isinstance(made, Stand):
        raise pickle.UnpicklingError("it gives keys to something that is no dict")


def _build(m: Machine) -> None:
    state = m.pop()
    made = m.pop()
    if isinstance(made, Call):
        raise pickle.UnpicklingError("it changes a function")
    if isinstance(made, Stand):
        made.build(state)
    m.stack.append(made)  # attributes of a dict, such as a state dict's metadata, are not looked at


def _reduce(m: Machine) -> None:
    arguments = m.pop()
    m.stack.append(_call(m.pop(), arguments))


def _new(m: Machine, arguments: int) -> None:
    for _ in range(arguments):
        m.pop()
    m.stack.append(_made(m.pop()))


def _from_mark(m: Machine) -> None:
    """A class and its arguments."""
    items = m.since_mark()
    m.stack.append(_made(items[0] if items else None))


def _instance(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.since_mark()
    m.stack.append(_made(m.find(module, name)))


def _named(m: Machine) -> None:
    name = m.pop()
    module = m.pop()
    if not isinstance(module, str) or not isinstance(name, str):
        raise pickle.UnpicklingError("a name in it is no text")
    m.stack.append(m.find(module, name))


def _append(m: Machine) -> None:
    item = m.pop()
    _onto(m, _extend, [item])


def _append_all(m: Machine) -> None:
    _onto(m, _extend, m.since_mark())


def _set_item(m: Machine) -> None:
    value = m.pop()
    key = m.pop()
    _onto(m, _set, [key, value])


def _set_items(m: Machine) -> None:
    _onto(m, _set, m.since_mark())


def _onto(m: Machine, add: Callable[[Any, list[Any]], None], items: list[Any]) -> None:
    """Adds to what lies below them, which stays."""
    made = m.pop()
    add(made, items)
    m.stack.append(made)


def _dict(m: Machine) -> None:
    made: dict[Any, Any] = {}
    _set(made, m.since_mark())
    m.stack.append(made)


def _inert(m: Machine) -> None:
    """For a set: no tensor is in one, and its items would have to be hashed."""
    m.since_mark()
    m.stack.append(Inert())


def _tuple_of(m: Machine, count: int) -> None:
    items = [m.pop() for _ in range(count)]
    m.stack.append(tuple(reversed(items)))


def _put(m: Machine, index: int) -> None:
    value = m.pop()
    m.memo[index] = value
    m.stack.append(value)


def _duplicate(m: Machine) -> None:
    value = m.pop()
    m.stack += (value, value)


def _drop(m: Machine) -> None:
    if not m.stack:
        raise pickle.UnpicklingError("it takes something that is not there")
    m.stack.pop()


def _ignore(value: Any) -> None:
    pass


def _pushing(make: Callable[[Machine], Any]) -> Step:
    def step(m: Machine) -> None:
        value = make(m)  # which may take from the stack
        m.stack.append(value)

    return step


def _whole(text: str) -> int | bool:
    if text in ("00", "01"):  # bools of the first protocol
        return text == "01"
    return int(text.removesuffix("L"))


def _quoted(text: str) -> str:
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        raise pickle.UnpicklingError("a text in it has no quotes")
    return text[1:-1]


_BYTE, _SHORT, _INT, _UINT, _LONG, _DOUBLE = map(
    struct.Struct, ("<B", "<H", "<i", "<I", "<Q", ">d")
)
_PUSHED: dict[bytes, Callable[[Machine], Any]] = {
    pickle.MARK: lambda m: _MARK,
    pickle.NONE: lambda m: None,
    pickle.NEWTRUE: lambda m: True,
    pickle.NEWFALSE: lambda m: False,
    pickle.INT: lambda m: _whole(m.line()),
    pickle.LONG: lambda m: _whole(m.line()),
    pickle.FLOAT: lambda m: float(m.line()),
    pickle.BININT: lambda m: m.number(_INT),
    pickle.BININT1: lambda m: m.number(_BYTE),
    pickle.BININT2: lambda m: m.number(_SHORT),
    pickle.LONG1: lambda m: int.from_bytes(m.take(m.number(_BYTE)), "little", signed=True),
    pickle.LONG4: lambda m: int.from_bytes(m.take(m.number(_INT)), "little", signed=True),
    pickle.BINFLOAT: lambda m: m.number(_DOUBLE),
    pickle.STRING: lambda m: _quoted(m.line()),
    pickle.UNICODE: lambda m: m.line("raw-unicode-escape"),
    pickle.SHORT_BINSTRING: lambda m: _text(m.take(m.number(_BYTE))),
    pickle.BINSTRING: lambda m: _text(m.take(m.number(_INT))),
    pickle.SHORT_BINUNICODE: lambda m: _text(m.take(m.number(_BYTE))),
    pickle.BINUNICODE: lambda m: _text(m.take(m.number(_UINT))),
    pickle.BINUNICODE8: lambda m: _text(m.take(m.number(_LONG))),
    pickle.SHORT_BINBYTES: lambda m: m.take(m.number(_BYTE)),
    pickle.BINBYTES: lambda m: m.take(m.number(_UINT)),
    pickle.BINBYTES8: lambda m: m.take(m.number(_LONG)),
    pickle.BYTEARRAY8: lambda m: m.take(m.number(_LONG)),
    pickle.EMPTY_LIST: lambda m: [],
    pickle.EMPTY_DICT: lambda m: {},
    pickle.EMPTY_TUPLE: lambda m: (),
    pickle.EMPTY_SET: lambda m: Inert(),
    pickle.LIST: lambda m: m.since_mark(),
    pickle.TUPLE: lambda m: tuple(m.since_mark()),
    pickle.GET: lambda m: m.remembered(int(m.line())),
    pickle.BINGET: lambda m: m.remembered(m.number(_BYTE)),
    pickle.LONG_BINGET: lambda m: m.remembered(m.number(_UINT)),
    pickle.GLOBAL: lambda m: m.find(m.line(), m.line()),
    pickle.BINPERSID: lambda m: m.refer(m.pop()),
}
_DONE: dict[bytes, Step] = {
    pickle.PROTO: lambda m: _ignore(m.take(1)),
    pickle.FRAME: lambda m: _ignore(m.take(8)),
    pickle.POP: _drop,
    pickle.POP_MARK: lambda m: _ignore(m.since_mark()),
    pickle.DUP: _duplicate,
    pickle.TUPLE1: lambda m: _tuple_of(m, 1),
    pickle.TUPLE2: lambda m: _tuple_of(m, 2),
    pickle.TUPLE3: lambda m: _tuple_of(m, 3),
    pickle.DICT: _dict,
    pickle.APPEND: _append,
    pickle.APPENDS: _append_all,
    pickle.ADDITEMS: _append_all,
    pickle.FROZENSET: _inert,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.PUT: lambda m: _put(m, int(m.line())),
    pickle.BINPUT: lambda m: _put(m, m.number(_BYTE)),
    pickle.LONG_BINPUT: lambda m: _put(m, m.number(_UINT)),
    pickle.MEMOIZE: lambda m: _put(m, len(m.memo)),
    pickle.STACK_GLOBAL: _named,
    pickle.REDUCE: _reduce,
    pickle.BUILD: _build,
    pickle.NEWOBJ: lambda m: _new(m, 1),
    pickle.NEWOBJ_EX: lambda m: _new(m, 2),
    pickle.OBJ: _from_mark,
    pickle.INST: _instance,
}
_STEPS: dict[int, Step] = {code[0]: _pushing(make) for code, make in _PUSHED.items()}
_STEPS |= {code[0]: step for code, step in _DONE.items()}
