"""Export: a model's step in ONNX, with its state outside, in named inputs and outputs.

It is traced from the same `step` that torch runs, so there is no second definition. Any number
of lanes, a fixed number of hops.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from streamenc import state as states
from streamenc.errors import ExportError, UsageError
from streamenc.layers.streamed import Exportable
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.state import State

if TYPE_CHECKING:
    import onnx

# Lanes of the example that is traced: any number above one, which would be taken for a constant.
TRACED_LANES = 2
# The first with attention and rotary embeddings as single operators.
OPSET = 23
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# torch traces in one thread at a time.
_turn = threading.Lock()


@dataclass(frozen=True, slots=True)
class StateLeaf:
    """A tensor of the state.

    name      Of the input; the output that takes its place is `name.next`.
    shape     Of one lane, without the lanes' axis.
    in_place  The output may be written into the input's memory, as for a ring of keys.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    in_place: bool

    @property
    def following(self) -> str:
        return f"{self.name}.next"


@dataclass(frozen=True, slots=True)
class ExportedStep:
    """A step in ONNX.

    Inputs `x` and the leaves, outputs `y` and the leaves that follow; the first axis of all is the
    lanes'. A step that starts a stream has no leaves as inputs.
    """

    proto: onnx.ModelProto
    leaves: tuple[StateLeaf, ...]
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    y_dtype: str = "float32"


def why_not(model: Model) -> str:
    """Why a model's step cannot be exported; "" where it can."""
    spec = model.spec
    if spec.equality == "segment":
        return f"{spec.name} works in whole segments and has no step that could be exported"
    if spec.input.kind in ("video", "text") or spec.input.axes or spec.output.axes:
        items = "texts" if spec.input.kind == "text" else "images"
        return f"{spec.name} is of {items}; only steps over sound can be exported"
    return ""


def missing_packages() -> str:
    """Why nothing can be exported here; "" where it can."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} missing: pip install 'streamenc[onnx]'"
    # Rotary embeddings as one operator; see `rotate`.
    return "" if hasattr(torch.onnx, "ops") else f"torch is {torch.__version__}; 2.8 is wanted"


def export_step(
    model: Model, hops: int = 1, *, codebooks: int | None = None, start: bool = False
) -> ExportedStep:
    """Traces a step of `hops` hops.

    codebooks  Where given, it holds the quantiser too: an encoder's gives so many codes, a
               decoder's takes them. None: from what `before` gives to what `after` takes.
    start      The first step of a stream, of `lead` items, from no state.

    Raises UsageError where a package is missing or the model is not in float32 on the CPU,
    ExportError where it cannot be traced. One thread at a time exports, others wait.
    """
    if model.like.dtype != torch.float32 or model.like.device.type != "cpu":
        raise UsageError(
            f"steps are exported with float32 weights on the CPU; these are {model.like.dtype} "
            f"on {model.like.device}"
        )
    if reason := missing_packages():
        raise UsageError(f"no step can be exported here: {reason}")
    with torch.inference_mode():
        inputs = example_inputs(model, 2, hops, codebooks, lanes=TRACED_LANES)
        before = _first_state(model, inputs[0], codebooks)
        same = states.map_state(lambda leaf: leaf, before)
        y, after = Step(model, codebooks).run(inputs[1], same)
        if start:
            y, _ = Step(model, codebooks).run(inputs[0], None)
    if not isinstance(before, tuple):
        raise ExportError(
            f"{model.spec.name} in this mode has no state that a step in ONNX could carry; run "
            "it in torch"
        )
    names = list(_paths(before))
    leaves = tuple(
        StateLeaf(f"state.{name}", tuple(old.shape[1:]), str(old.dtype).split(".")[1], old is new)
        for name, old, new in zip(names, states.leaves(before), states.leaves(after), strict=True)
    )
    x = inputs[0 if start else 1]
    given = [] if start else [leaf.clone() for leaf in states.leaves(before)]
    step = Step(_twin(model), codebooks, None if start else before)
    proto = _trace(step, (x.clone(), *given), leaves, start)
    return ExportedStep(
        proto, leaves, tuple(x.shape[1:]), tuple(y.shape[1:]), str(y.dtype).split(".")[1]
    )


def example_inputs(
    model: Model, steps: int, hops: int, codebooks: int | None, *, lanes: int = 1, seed: int = 0
) -> list[Tensor]:
    """A random stream: the first input of `lead` items, then `steps - 1` of `hops` hops.

    As users push it where `codebooks` are given, else as `before` gives it.
    """
    spec, generator = model.spec, torch.Generator().manual_seed(seed)
    lengths = [spec.lead] + [hops * spec.hop] * (steps - 1)
    inputs = []
    for length in lengths:
        if spec.input.kind == "codes":
            shape = (lanes, codebooks or spec.input.channels, length)
            x = torch.randint(spec.codebook_size, shape, generator=generator)
        else:
            shape = (lanes, spec.input.channels, length)
            # Coloured and not loud: as in speech, some bands lie far below others.
            x = torch.randn(shape, generator=generator).cumsum(dim=-1)
            x = (0.1 * x / x.abs().amax(dim=-1, keepdim=True)).to(model.like.dtype)
        inputs.append(x if codebooks is not None else model.before(x))
    return inputs


class Step(nn.Module):
    """The step as a function of tensors alone."""

    def __init__(self, model: Model, codebooks: int | None, like: State = None) -> None:
        super().__init__()
        self.model = model
        self._codebooks, self._like = codebooks, like

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self._codebooks is None:
            return self.model.step(x, state)
        y, state = self.model.step(self.model.before(x), state)
        encodes = self.model.spec.output.kind == "codes"
        made: Signal = self.model.after(y, self._codebooks if encodes else None)
        assert isinstance(made, Tensor)
        return made, state

    def forward(self, x: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        given = iter(leaves)
        y, state = self.run(x, states.map_state(lambda _: next(given), self._like))
        return (y, *states.leaves(state))


def _twin(model: Model) -> Model:
    """The same model on the same weights, on its paths for export: the model's own streams go on
    in other threads, and tracing puts other weights in their place meanwhile."""
    tensors = [t for module in model.modules() for t in _tensors(vars(module))]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in twin.modules():
        if isinstance(module, Exportable):
            module.for_export()
    return twin


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _first_state(model: Model, x: Tensor, codebooks: int | None) -> State:
    _, state = Step(model, codebooks).run(x, None)
    return state


def _paths(state: State, path: str = "") -> Iterator[str]:
    """The place of each leaf in the tree: "0.3.1"."""
    if isinstance(state, Tensor):
        yield path or "0"
    elif isinstance(state, tuple):
        for index, part in enumerate(state):
            yield from _paths(part, f"{path}.{index}" if path else str(index))


def _trace(
    step: Step, inputs: tuple[Tensor, ...], leaves: tuple[StateLeaf, ...], start: bool
) -> onnx.ModelProto:
    lanes = torch.export.Dim("lanes", min=1)
    more = tuple({0: lanes} for _ in inputs[1:])
    dynamic = ({0: lanes}, more) if more else ({0: lanes},)
    names = [leaf.name for leaf in leaves]
    with _turn, _quiet(), torch.no_grad():
        try:
            traced = torch.export.export(step, inputs, strict=False, dynamic_shapes=dynamic)
            program = torch.onnx.export(
                traced,
                dynamo=True,
                # The optimiser takes adding 1e-10 for adding zero; ONNX Runtime has its own.
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                custom_translation_table=_translations(),
                input_names=["x", *(() if start else names)],
                output_names=["y", *(leaf.following for leaf in leaves)],
            )
        except Exception as error:  # of many kinds: torch's tracer and exporter raise their own
            name = step.model.spec.name
            cause: BaseException = error
            while cause.__cause__ is not None:  # the outer ones speak of the exporter's stages
                cause = cause.__cause__
            first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            first = first.partition(" For more information")[0].rstrip(".!")
            raise ExportError(
                f"the step of {name} cannot be exported: {first}. Run the model in torch"
            ) from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return _cleaned(proto)


def _cleaned(proto: Any) -> onnx.ModelProto:
    """Without what the exporter notes about the source: it names the paths of this machine."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in itertools.chain(proto.graph.value_info, proto.graph.input, proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    model: onnx.ModelProto = proto
    return model


def _translations() -> dict[Any, Any]:
    """Operators that ONNX Runtime has faster another way."""
    from onnxscript import opset23 as op

    def elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
        # Its own goes number by number; of these, exp is vectorised. exp(x) - 1 >= x for all x < 0.
        assert alpha == scale == input_scale == 1
        one, zero = op.Constant(value_float=1.0), op.Constant(value_float=0.0)
        return op.Max(x, op.Sub(op.Exp(op.Min(x, zero)), one))

    return {torch.ops.aten.elu.default: elu}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
