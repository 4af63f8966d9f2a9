"""A step on a GPU that is not there: what it launches, and where it would wait for the host.

Tensors are torch's fake ones: they have a shape and say that they lie on "cuda", but hold no
numbers. So a step runs as on a GPU, Triton's kernels included, up to their launches, which are
counted. Nothing here says how long any of it takes.

What counts as how many launches: each operator as one, but views, and memory that is only taken, as
none; a convolution with a bias as two, as cuDNN's result gets the bias by another launch; attention
of torch as one. cuDNN's LSTM is an estimate: one product for the input of each layer, two launches
for each of its positions, and five around them.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamenc import state as states
from streamenc.engine.pages import Pages, by_index
from streamenc.layers.streamed import Prepared
from streamenc.models.model import Model
from streamenc.state import State
from streamenc_kernels import dispatch

Module = TypeVar("Module", bound=nn.Module)

# Of an H200; some launches depend on it.
PROCESSORS = 132
# No launch: views, memory that is taken, and questions to a tensor.
FREE = {
    *("alias", "as_strided", "chunk", "detach", "device", "diagonal", "empty", "empty_like"),
    *("empty_strided", "expand", "imag", "is_complex", "lift_fresh", "narrow", "new_empty"),
    *("new_empty_strided", "numel", "permute", "real", "reshape", "_reshape_alias", "select"),
    *("slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold"),
    *("unsqueeze", "_unsafe_view", "view", "view_as_real"),
}
# They read numbers on the host, or have to know how many there are.
WAITING = {
    *("_local_scalar_dense", "bincount", "equal", "is_nonzero", "masked_select", "nonzero"),
    *("_unique2", "unique_consecutive", "unique_dim"),
}


class HostMetError(AssertionError):
    """The step waits for the host, or meets a tensor that lies there; the traceback says where."""


class Launches(Counter[str]):
    """How often a step launches what."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.most_common())
        return f"{self.total()} launches: {kinds}"


class FakeGpu:
    """Tensors on "cuda" that are none, and what is computed with them."""

    def __init__(self) -> None:
        _guard_devices()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(self, like: Tensor, lanes: int | None = None) -> Tensor:
        """A tensor of the shape and strides of one that may lie anywhere; of so many lanes."""
        with self._mode:
            if lanes is not None:
                return torch.empty((lanes, *like.shape[1:]), dtype=like.dtype, device="cuda")
            made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cuda")
            if isinstance(like, nn.Parameter):
                return nn.Parameter(made, requires_grad=False)
            return made

    def module(self, model: Module) -> Module:
        """A copy of a model or a layer, which may be on the meta device, as it would be after
        loading."""
        # deepcopy takes these for what it has copied already.
        there: dict[int, Any] = {}
        for tensor in tree_leaves([vars(module) for module in model.modules()]):
            if isinstance(tensor, Tensor) and tensor.is_mkldnn:
                there[id(tensor)] = None  # packed for the CPU, as `prepare` does
        for tensor in (*model.parameters(), *model.buffers()):
            there[id(tensor)] = self.empty(tensor)
        copied = copy.deepcopy(model, there)
        parts = [m for m in copied.modules() if isinstance(m, Prepared)]
        parts = [copied] if isinstance(copied, Model) else parts
        self.trace(lambda: [part.prepare() for part in parts], strict=False)
        return copied

    def step(self, model: Model, x: Tensor, state: State) -> tuple[Tensor, Launches]:
        """One step in mid-stream, committed, as the engine's graphs hold it.

        x      (lanes, ...): all of them step.
        state  Of one lane, wherever it lies.
        """
        state = states.map_state(lambda leaf: self.empty(leaf, 1), state)
        pages, _ = self.trace(lambda: Pages(model, state, len(x)), strict=False)
        places = self.empty(torch.zeros(2, len(x), dtype=torch.int64))
        return self.trace(lambda: by_index(model, x, pages, places))

    def trace(self, call: Callable[[], Any], *, strict: bool = True) -> tuple[Any, Launches]:
        """What a call gives, and what it launches.

        strict  Raises HostMetError where the call waits for the host, or meets a tensor there.
        """
        launches = Launches()
        with (
            # What a first call keeps for later ones would be of a device that is not there.
            mock.patch.object(dispatch, "_cannot_launch", lambda index: ""),
            mock.patch.object(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext()),
            mock.patch.object(torch.cuda, "get_device_properties", _properties),
            mock.patch.object(Tensor, "data_ptr", lambda tensor: 0),
            _stood_in(launches),
            self._mode,
            torch.no_grad(),
            _Recorder(launches, strict),
        ):
            return call(), launches


class _Recorder(TorchDispatchMode):
    def __init__(self, launches: Launches, strict: bool) -> None:
        super().__init__()
        self.launches, self.strict = launches, strict

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        before = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        on_gpu = any(tensor.is_cuda for tensor in before)
        if self.strict and on_gpu and _waits(name, args, kwargs or {}):
            raise HostMetError(f"{func} waits for the host")
        result = func(*args, **(kwargs or {}))
        after = [a for a in tree_leaves(result) if isinstance(a, Tensor)]
        for tensor in (*before, *after) if self.strict else ():
            # One number from the host goes along with a launch; but copying it is a copy.
            if tensor.device.type == "cpu" and (tensor.ndim or name in ("_to_copy", "copy_")):
                raise HostMetError(f"{func} meets a tensor {tuple(tensor.shape)} of the host")
        if name not in FREE:
            self.launches[name] += 1
        if name == "convolution" and args[2] is not None:
            self.launches["bias of a convolution"] += 1
        return result


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):  # by a mask: it counts what is there
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return name in WAITING


@contextlib.contextmanager
def _stood_in(launches: Launches) -> Iterator[None]:
    """What torch would launch otherwise than on fake tensors, and what Triton does."""

    def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
        launches[kernel.fn.__name__] += 1

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        launches["attention"] += 1
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    def lstm(self: nn.LSTM, x: Tensor, before: tuple[Tensor, Tensor]) -> Any:
        launches["lstm"] += self.num_layers * (1 + 2 * x.shape[0]) + 5
        return torch.empty_like(x), tuple(torch.empty_like(part) for part in before)

    with contextlib.ExitStack() as stack:
        replace = mock.patch.object
        stack.enter_context(replace(nn.functional, "scaled_dot_product_attention", attention))
        stack.enter_context(replace(nn.LSTM, "forward", lstm))
        with contextlib.suppress(ImportError):
            from triton.runtime.jit import JITFunction

            stack.enter_context(replace(JITFunction, "run", launch))
        yield


def _properties(device: object = None) -> SimpleNamespace:
    return SimpleNamespace(multi_processor_count=PROCESSORS)


def _guard_devices() -> None:
    """Before many an operator torch makes its tensor's device the current one. Where it is built
    without CUDA it knows no way to, and takes the CPU's here, which does nothing; where it is built
    with it, FakeTensorMode itself does as much."""
    if torch.backends.cuda.is_built():
        return
    c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    cpu, cuda = 0, 1
    guards = (ctypes.c_void_p * 2).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    if not guards[cuda]:
        guards[cuda] = guards[cpu]
