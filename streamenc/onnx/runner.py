"""Runner: an exported step in ONNX Runtime, on states that are torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.onnx.export import ExportedStep
from streamenc.state import State

_NUMPY_TYPES = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}


class Runner:
    """An exported step in ONNX Runtime, on states of torch tensors.

    Rings are written in place. The other leaves go back and forth between two sets of buffers that
    the returned state carries with it: so each stream's memory is bound to it once, and
    nothing is kept of a stream that has gone.
    """

    def __init__(self, exported: ExportedStep, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that wait for the next step leave the cores to others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(
            exported.proto.SerializeToString(), options, providers=providers
        )
        # Not the exported step itself, which is a second copy of the weights.
        self.leaves = exported.leaves
        self.y_shape, self.y_dtype = exported.y_shape, exported.y_dtype

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As Model.step in the middle of a stream. The given state is used up."""
        if not isinstance(state, _Bound) or not state.link.fits(self, x):
            state = _Bound.of(_Link(self, x, state), 0)
        assert state.number == state.link.steps, "this state was used up: clone it before a step"
        return state.link.step(x, state.side)

    def start(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The first step, where that is what was exported: its output, and the state's leaves."""
        y, *leaves = self.session.run(None, {"x": x.numpy()})
        return torch.from_numpy(y), [torch.from_numpy(leaf) for leaf in leaves]


class _Bound(tuple[State, ...]):
    """A state whose tensors are one side of a link, as they are after so many steps of it."""

    link: _Link
    side: int
    number: int

    @classmethod
    def of(cls, link: _Link, side: int) -> _Bound:
        state = cls(link.trees[side])
        state.link, state.side, state.number = link, side, link.steps
        return state


class _Link:
    """Two sets of the state's buffers, bound to a runner from each to the other."""

    def __init__(self, runner: Runner, x: Tensor, state: State) -> None:
        self._runner, self.steps = runner, 0
        self._x = torch.empty_like(x, memory_format=torch.contiguous_format)
        y_type = getattr(torch, runner.y_dtype)
        self._y = torch.empty(len(x), *runner.y_shape, dtype=y_type)
        here = states.map_state(Tensor.contiguous, state)
        in_place = iter([leaf.in_place for leaf in runner.leaves])
        there = states.map_state(lambda t: t if next(in_place) else torch.empty_like(t), here)
        assert isinstance(here, tuple) and isinstance(there, tuple)
        self.trees = (here, there)
        self._bindings: list[Any] = [None, None]

    def fits(self, runner: Runner, x: Tensor) -> bool:
        return self._runner is runner and self._x.shape == x.shape

    def step(self, x: Tensor, side: int) -> tuple[Tensor, State]:
        if self._bindings[side] is None:
            self._bindings[side] = self._bind(side)
        self._x.copy_(x)
        self.steps += 1
        self._runner.session.run_with_iobinding(self._bindings[side])
        return self._y.clone(), _Bound.of(self, 1 - side)

    def _bind(self, side: int) -> Any:
        binding = self._runner.session.io_binding()
        leaves = self._runner.leaves
        before, after = (states.leaves(self.trees[i]) for i in (side, 1 - side))
        inputs = zip(["x", *(leaf.name for leaf in leaves)], [self._x, *before], strict=True)
        outputs = zip(["y", *(leaf.following for leaf in leaves)], [self._y, *after], strict=True)
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors:
                kind = _NUMPY_TYPES[tensor.dtype]
                bind(name, "cpu", 0, kind, list(tensor.shape), tensor.data_ptr())
        return binding
