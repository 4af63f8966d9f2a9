"""torch.cuda's streams and graphs on the CPU, which fail as those of a device do.

A graph holds the operators of its capture, and runs them anew on the same memory; torch's own
`torch.cuda.graph` captures it. What a device would punish is noted in `harm`:

- a replay after another graph has ended, where the library's memory for the stream ended with it,
- a graph that ends before the device was waited for,
- work on a stream that did not wait for what it reads.

A pool's handle cannot be used again once its last graph has ended.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeStream:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.capturing = cuda, False
        self.waited_for: set[FakeStream] = set()
        cuda.streams.append(self)

    def wait_stream(self, other: FakeStream) -> None:
        self.waited_for.add(other)


class FakeGraph:
    """What torch.cuda.CUDAGraph is.

    fails  Where the capture fails: "begin", "end", "instantiate"; of the class, for the next ones.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.pool, self.workspace = cuda, None, -1
        self.recorded = _Operators()

    def capture_begin(self, *pool: Any, capture_error_mode: str = "global", **more: Any) -> None:
        cuda = self.cuda
        (self.pool,) = pool
        assert capture_error_mode == "thread_local"
        if self.pool in cuda.dead:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        if cuda.fails == "begin":
            raise RuntimeError("CUDA error: operation not permitted")
        if cuda.fails == "begin, capturing":
            cuda.current.capturing = True
            raise RuntimeError("CUDA error: an error half-way")
        cuda.current.capturing = True
        cuda.pools[self.pool] += 1
        self.recorded.__enter__()

    def capture_end(self) -> None:
        cuda = self.cuda
        self.recorded.__exit__(None, None, None)
        cuda.current.capturing = False
        if cuda.fails in ("end", "call and end"):
            raise RuntimeError("CUDA error: the capture was invalidated")
        if cuda.fails == "instantiate":
            raise RuntimeError("CUDA error: out of memory while the graph is instantiated")
        self.workspace = cuda.workspace
        cuda.captured_on.append(cuda.current)

    def replay(self) -> None:
        cuda = self.cuda
        if self.workspace != cuda.workspace:
            cuda.harm.append("a replay after another graph has ended")
        cuda.in_flight = True
        self.recorded.again()

    def __del__(self) -> None:
        cuda = self.cuda
        cuda.ended += 1
        cuda.workspace += 1
        if cuda.in_flight:
            cuda.harm.append("a graph that ends before the device was waited for")
        if self.pool is not None and self.pool in cuda.pools:
            cuda.pools[self.pool] -= 1
            if not cuda.pools[self.pool]:
                del cuda.pools[self.pool]
                cuda.dead.add(self.pool)


class FakeCuda:
    """A device. `with fake_cuda() as cuda:` has torch.cuda be this.

    fails    Where captures fail now: "", "begin", "begin, capturing", "call", "call and end",
             "memory", "memory and end", "end" or "instantiate".
    current  The stream that is current.
    """

    def __init__(self) -> None:
        self.fails = ""
        self.streams: list[FakeStream] = []
        self.usual = FakeStream(self)
        self.current = self.usual
        self.captured_on: list[FakeStream] = []
        self.warmed_on: list[FakeStream] = []
        self.pools: Counter[Any] = Counter()
        self.dead: set[Any] = set()
        self.harm: list[str] = []
        self.workspace = self.ended = self.handles = 0
        self.in_flight = False
        self._names = itertools.count(1)

    def work(self) -> None:
        """For a call that is captured to make: fails where captures do, notes where it is."""
        if not self.current.capturing:
            self.warmed_on.append(self.current)
            if self.current is not self.usual and self.usual not in self.current.waited_for:
                self.harm.append("work on a stream that did not wait for what it reads")
        elif self.fails in ("memory", "memory and end"):
            self.fails = self.fails.replace("memory and end", "end")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        elif self.fails in ("call", "call and end"):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def synchronize(self, device: object = None) -> None:
        self.in_flight = False

    def handle(self) -> int:
        self.handles += 1
        return (next(self._names),)  # type: ignore[return-value]

    def set_stream(self, stream: FakeStream) -> None:
        self.current = stream

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """torch.cuda is a fake one within it, as far as captures ask for it."""
    cuda = FakeCuda()
    replaced: dict[str, Callable[..., Any]] = {
        "device": lambda device: mock.MagicMock(),
        "current_stream": lambda device=None: cuda.current,
        "set_stream": cuda.set_stream,
        "stream": cuda.stream,
        "Stream": lambda: FakeStream(cuda),
        "CUDAGraph": lambda: FakeGraph(cuda),
        "graph_pool_handle": cuda.handle,
        "synchronize": cuda.synchronize,
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: cuda.current.capturing,
    }
    host = mock.patch.object(torch._C, "_host_emptyCache", lambda: None, create=True)
    with mock.patch.multiple(torch.cuda, **replaced), host:
        yield cuda


class _Operators(TorchDispatchMode):
    """Those that ran within it, to run again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in _plain((args, kwargs))}
        own = [t for t in _plain(result) if t.untyped_storage().data_ptr() not in known]
        self.ran.append((func, args, kwargs or {}, own))
        return result

    def again(self) -> None:
        with torch.inference_mode():
            for func, args, kwargs, own in self.ran:
                result = func(*args, **kwargs)
                for old, new in zip(own, _plain(result), strict=False):
                    old.copy_(new)


def _plain(tree: Any) -> list[Tensor]:
    """Tensors that have memory of the usual kind."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and not t.is_mkldnn]
