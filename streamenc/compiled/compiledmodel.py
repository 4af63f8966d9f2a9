"""CompiledModel: a model whose live steps run as programs, beside torch on the same state."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from streamenc.compiled.codebooks import Codebooks
from streamenc.compiled.program import Program
from streamenc.compiled.stepplan import Plan
from streamenc.compiled.weights import Probe, Weights
from streamenc.errors import CannotLower, UsageError
from streamenc.layers.quantize import ResidualVQ
from streamenc.layers.streamed import Span, Streamed
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Steps
from streamenc.state import State
from streamenc.threads import step_threads
from streamenc_kernels.compiled.entry import why_not_compiled

log = logging.getLogger(__name__)
Precision = Literal["int16", "float32"]
# Longer steps are bound by computing, which torch does as fast.
MOST_HOPS = 8


def check_precision(precision: str) -> Precision:
    """Raises UsageError for another name."""
    if precision not in get_args(Precision):
        raise UsageError(
            f"precision of compiled steps is one of {get_args(Precision)}; got {precision!r}"
        )
    return precision  # type: ignore[return-value]


class CompiledModel(Model):
    """`model`, whose steps of up to `MOST_HOPS` hops in mid-stream run as programs.

    First steps, ends and longer steps run in torch: the state is the same, and the two take turns.
    In int16 the model's large weights are rounded, in place, to what programs compute with: torch
    and they are one function. So the weights cannot be changed or moved any more, and a copy is the
    model itself.

    Raises CannotLower where the model has a layer without instructions, or numba is missing, and
    CannotCompile where numba fails; the model is then as it was.
    """

    runs_in: ClassVar[str] = "compiled"

    def __init__(self, model: Model, precision: Precision = "int16") -> None:
        if reason := why_not_compiled():
            raise CannotLower(reason)
        super().__init__()
        self.model, self.precision, self.spec = model, precision, model.spec
        self.uncapturable = model.uncapturable
        self._programs: dict[int, Program] = {}
        self._turn = threading.Lock()
        self._channels, self._state = _in_midstream(model)
        self._plan(Probe(precision), 1)
        from streamenc.compiled.team import cores, team  # which imports numba

        self._team, self._cores = team(), cores()
        model.fingerprint()  # of the weights before they are rounded
        self._weights = Weights(precision)
        self._programs[self.spec.hop] = Program(self._plan(self._weights, 1))
        model.prepare()  # its weights may be others now
        self._like = (model.like,)  # in a tuple, for a Module takes a parameter for one of its own
        self._use_codebooks()

    @property
    def steps(self) -> Steps:
        return self.model.steps

    def reach(self, first: int, last: int) -> Span:
        return self.model.reach(first, last)

    def warm_up(self, hops: int = 1) -> None:
        """Makes the program of steps of `hops` hops, if it is not there.

        Where there is none of so many hops, these run in torch.
        """
        length = hops * self.spec.hop
        if hops > MOST_HOPS:
            return
        with self._turn:
            if length in self._programs:
                return
            try:
                self._programs[length] = Program(self._plan(self._weights, hops))
            except CannotLower as reason:
                log.debug("%s: steps of %d hops run in torch: %s", self.spec.name, hops, reason)

    def _use_codebooks(self) -> None:
        """Has the model's residual quantisers search and look up by instructions."""
        quantizers = [m for m in self.model.modules() if isinstance(m, ResidualVQ)]
        spec, most = self.spec, self._cores
        codebooks = Codebooks(
            *(quantizers, self.precision, self._team), lambda: min(step_threads(spec, 1), most)
        )
        for quantizer in quantizers:
            quantizer.use(codebooks)
        if self.spec.output.kind == "codes":
            codebooks.prepare_search()

    def _plan(self, weights: Weights, hops: int) -> Plan:
        """Raises CannotLower."""
        plan = Plan(weights, self._state, hops)
        value = plan.input(hops * self.spec.hop, self._channels)
        plan.finish(self.model.lower(plan, value, self._state))
        return plan

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        program = None if end or state is None else self._programs.get(x.shape[2])
        if program is None or x.requires_grad:
            return self.model.step(x, state, end=end)
        threads = step_threads(self.spec, x.shape[2] // self.spec.hop)
        return program.step(x, state, self._team, min(threads, self._cores))

    def fingerprint(self) -> str:
        """That of the model in float32: its snapshots go on here, and the other way round."""
        return self.model.fingerprint()

    @property
    def like(self) -> Tensor:
        return self._like[0]

    def signal(self, x: Any) -> Signal:
        return self.model.signal(x)

    def before(self, x: Signal) -> Tensor:
        return self.model.before(x)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        return self.model.after(y, codebooks)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.model.output_shape(shape)

    def first_input(self, item: int) -> Fraction:
        return self.model.first_input(item)

    def pages(self, state: State) -> Iterator[Tensor]:
        return self.model.pages(state)

    def __getattr__(self, name: str) -> Any:
        """What is the model's own, as `chain`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_modules", {}).get("model")
            if model is None or name.startswith("_"):
                raise
            return getattr(model, name)

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        raise UsageError(f"{self._fixed}; load it in the other process too")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise UsageError(
            f"{self._fixed}; load it again, with the device or dtype that you want, or with "
            "backend='torch'"
        )

    @property
    def _fixed(self) -> str:
        return f"{self.spec.name} runs as compiled steps, whose weights are fixed"


def _in_midstream(model: Model) -> tuple[int, State]:
    """The channels of what a step takes, and the state behind the first one.

    Raises CannotLower.
    """
    spec = model.spec
    if spec.scaled:
        raise CannotLower(
            f"{spec.name} works in whole segments of {spec.hop} items, whose time goes into "
            "computing, which torch does as fast"
        )
    if spec.input.axes or spec.output.axes:
        raise CannotLower(
            f"{spec.name} computes images, whose time goes into arithmetic: torch comes near to "
            "what the processor can do"
        )
    if type(model).lower is Streamed.lower:
        raise CannotLower(f"{type(model).__name__} has no instructions yet")
    shape = (1, spec.input.channels, spec.lead)
    kind = torch.int64 if spec.input.kind == "codes" else torch.float32
    with torch.inference_mode():
        x = model.before(torch.zeros(shape, dtype=kind))
        return x.shape[1], model.step(x, None)[1]
