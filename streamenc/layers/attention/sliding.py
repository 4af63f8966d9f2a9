"""A causal transformer over a sliding window, on rings of keys, held rotated, and values.

A step of up to `max_step` positions goes through `ring_attention`, which rotates, writes into the
ring in place and attends to it in one op; longer ones attend in blocks and return new rings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.attention.ring import Ring
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Exportable, Prepared, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import Paged, State, leaves
from streamenc_kernels import (
    Activation,
    RowNorm,
    attend_rotated,
    fused_linear,
    fuses_linear,
    plan_ring,
    ring_attention,
    rotary,
    rotate,
)

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

Norm = Literal["layer", "rms"]
_NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class Transformer(Streamed, Exportable):
    """Pre-norm transformer layers between convolutions: takes and gives (batch, width, time).

    Rotary positions, in pairs (i, i + head_dim / 2). Position t sees the positions t - window + 1
    to t.

    head_dim  Of each head, even; width / heads where None.
    norm      "layer", or "rms": without a mean and a bias.
    gated     The feed-forward is linear2(silu(gate) * up), with `gate` over `up` in the rows of
              linear1 (SwiGLU); else linear2(gelu(linear1)).
    scaled    A learnt scale per channel on each residual branch.
    final     Another norm behind the last layer.
    biases    The projections with a bias: "in_proj", "out_proj", "linear1", "linear2".

    State: position (batch,) int64, and per layer keys and values, (batch, heads, capacity,
    head_dim).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        layers: int,
        window: int,
        *,
        max_step: int = 2,
        rope_theta: float = 10_000.0,
        norm_eps: float = 1e-5,
        head_dim: int | None = None,
        norm: Norm = "layer",
        gated: bool = False,
        scaled: bool = True,
        final: bool = False,
        biases: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim or width // heads
        self.ring = Ring(window, window + max_step - 1, block=max(window, 64))
        self.rope_theta = rope_theta
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                heads,
                self.head_dim,
                feed_forward,
                norm=norm,
                norm_eps=norm_eps,
                gated=gated,
                scaled=scaled,
                biases=biases,
                rows=max_step,
            )
            for _ in range(layers)
        )
        self.norm = _NORMS[norm](width, eps=norm_eps) if final else nn.Identity()

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return max(0, first - len(self.layers) * (self.ring.window - 1)), last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, _, time = x.shape
        x = x.transpose(1, 2)
        rings: Sequence[Any]
        if isinstance(state, tuple):
            position, rings = state[0], state[1:]
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            like = x.new_empty(batch, self.heads, 0, self.head_dim)
            rings = [self.ring.empty(like) for _ in self.layers]
        assert isinstance(position, Tensor)
        # A product that adds to its output needs that to be this step's own, and no gradient.
        in_place = not (self._exported or torch.is_grad_enabled())
        in_place = in_place and all(layer.folded for layer in self.layers)
        fused = in_place and all(cast(TransformerLayer, part).fuses(x) for part in self.layers)
        if fused:
            x = x.contiguous()
        elif in_place:
            x = x.clone(memory_format=torch.contiguous_format)

        short = time <= self.ring.max_step
        if short:
            first, _ = cast(tuple[State, State], rings[0])
            lanes = first.lanes if isinstance(first, Paged) else None
            ring = self._held(first, short)
            plan = plan_ring(position, time, ring, self.ring.window, self.rope_theta, lanes=lanes)
        else:
            positions = position[:, None] + torch.arange(time, device=x.device)
            turn = rotary(positions, self.head_dim, self.rope_theta, x.dtype)
            blocks = None
            # Where nothing lies before and all is within the window, the mask is plainly causal.
            if isinstance(state, tuple) or time > self.ring.window:
                blocks = self.ring.in_blocks(position, time, time, x.dtype)

        following: list[State] = []
        for layer, held in zip(self.layers, rings, strict=True):
            assert isinstance(layer, TransformerLayer)
            keys, values = (self._held(part, short) for part in held)
            q, k, v = layer.project(x, fused=fused)
            if short and self._exported:
                q, k = _onnx_rotate(q, plan.cos, plan.sin), _onnx_rotate(k, plan.cos, plan.sin)
                y = attend_rotated(q, k, v, keys, values, plan)
            elif short:
                y = ring_attention(q, k, v, keys, values, plan)
            else:
                turned = _onnx_rotate if self._exported else rotate
                q, k = turned(q, *turn), turned(k, *turn)
                if blocks is None:
                    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    keys, values = self.ring.begun(k), self.ring.begun(v)
                else:
                    y, keys, values = blocks.attend(q, k, v, keys, values)
            if fused:
                x = layer.fused(x, y)
            elif in_place:
                layer.add(x, y)
            else:
                x = layer.combine(x, y)
            following.append(held if short else (keys, values))
        return self.norm(x).transpose(1, 2), (position + time, *following)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, tuple)
        position, rings = state[0], cast(Sequence[tuple[Tensor, Tensor]], state[1:])
        assert isinstance(position, Tensor)
        for layer, (keys, values) in zip(self.layers, rings, strict=True):
            assert isinstance(layer, TransformerLayer)
            qkv = plan.linear(plan.norm(x, layer.norm1), layer.in_proj)
            y = plan.ring_attention(
                *(qkv, position, keys, values),
                window=self.ring.window,
                theta=self.rope_theta,
            )
            x = plan.linear(y, layer.out_proj, scale=layer.scale1, residual=x)
            y = plan.norm(x, layer.norm2)
            if layer.gated:
                y = plan.gated(plan.linear(y, layer.linear1))
            else:
                y = plan.linear(y, layer.linear1, activation="gelu")
            x = plan.linear(y, layer.linear2, scale=layer.scale2, residual=x)
        plan.advance(position, x.rows)
        return plan.through(self.norm, x, None)

    def pages(self, state: State) -> Iterator[Tensor]:
        assert isinstance(state, tuple)
        return leaves(state[1:])

    @staticmethod
    def _held(part: State, short: bool) -> Tensor:
        """Keys or values that a step reads: of all lanes where it writes to those of its own."""
        if isinstance(part, Paged):
            return part.pool if short else part.taken()
        assert isinstance(part, Tensor)
        return part


class TransformerLayer(Prepared):
    """The part of a layer that looks at each position alone."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        feed_forward: int,
        *,
        norm: Norm,
        norm_eps: float,
        gated: bool,
        scaled: bool,
        biases: Collection[str],
        rows: int,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.gated = heads, head_dim, gated
        kind, inside, wide = _NORMS[norm], heads * head_dim, feed_forward * (1 + gated)

        def linear(name: str, features: int, out: int) -> Linear:
            return Linear(features, out, bias=name in biases, rows=rows)

        self.norm1 = kind(width, eps=norm_eps)
        self.in_proj = linear("in_proj", width, 3 * inside)
        self.out_proj = linear("out_proj", inside, width)
        self.scale1 = nn.Parameter(torch.empty(width)) if scaled else None
        self.norm2 = kind(width, eps=norm_eps)
        self.linear1 = linear("linear1", width, wide)
        self.linear2 = linear("linear2", feed_forward, width)
        self.scale2 = nn.Parameter(torch.empty(width)) if scaled else None
        self._folded: tuple[_Folded, _Folded] | None = None

    @property
    def folded(self) -> bool:
        """Whether `add` can take the place of `combine`."""
        return self._folded is not None

    def prepare(self) -> None:
        # On a CPU a launch costs nothing, and the order of the operations is the published one's.
        self._folded = None
        if self.linear1.weight.device.type != "cpu":
            self.fold()

    def fold(self) -> None:
        """Puts the scales into copies of the weights behind which they stand."""
        self._folded = (
            _Folded.of(self.out_proj, self.scale1),
            _Folded.of(self.linear2, self.scale2),
        )

    def fuses(self, x: Tensor) -> bool:
        """Whether `fused` can take the place of `combine`, and that of `add`."""
        return self.folded and fuses_linear(x, self.in_proj.weight)

    def project(self, x: Tensor, *, fused: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, time, width) -> queries, keys, values, each (batch, heads, time, head_dim).

        fused  The norm goes into the product.
        """
        batch, time, _ = x.shape
        if fused:
            qkv = _normed(self.in_proj, self.norm1, x)
        else:
            qkv = self.in_proj(self.norm1(x))
        q, k, v = qkv.view(batch, time, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return q, k, v

    def combine(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds what the heads attended to, (batch, heads, time, head_dim), and the feed-forward."""
        y: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        x = x + (y if self.scale1 is None else self.scale1 * y)
        y = self.linear2(self._inside(x))
        return x + (y if self.scale2 is None else self.scale2 * y)

    def add(self, x: Tensor, attended: Tensor) -> None:
        """`combine` in place, by products that add to `x`, (batch, time, width) in this order in
        memory."""
        assert self._folded is not None
        attention, feed_forward = self._folded
        attention.add(x, attended.transpose(1, 2).flatten(2))
        feed_forward.add(x, self._inside(x))

    def fused(self, x: Tensor, attended: Tensor) -> Tensor:
        """`combine` in three products, and nothing beside them."""
        assert self._folded is not None
        attention, feed_forward = self._folded
        x = attention.added(x, attended.transpose(1, 2).flatten(2))
        inside = _normed(self.linear1, self.norm2, x, "swiglu" if self.gated else "gelu")
        return feed_forward.added(x, inside)

    def _inside(self, x: Tensor) -> Tensor:
        """The feed-forward up to its last product."""
        y: Tensor = self.linear1(self.norm2(x))
        if not self.gated:
            return F.gelu(y)
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up


class _Folded(NamedTuple):
    """The last product of a residual branch: weight (in, out), and a bias where it has one."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, linear: Linear, scale: Tensor | None) -> _Folded:
        weight = linear.weight.detach()
        bias = None if linear.bias is None else linear.bias.detach()
        if scale is not None:
            scale = scale.detach()
            weight = scale[:, None] * weight
            bias = None if bias is None else scale * bias
        return cls(weight.t(), bias)

    def add(self, x: Tensor, y: Tensor) -> None:
        rows = x.view(-1, x.shape[-1])
        rows.addmm_(y.reshape(-1, y.shape[-1]), self.weight)
        if self.bias is not None:
            rows.add_(self.bias)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """Another tensor, of one product."""
        return fused_linear(y, self.weight.t(), self.bias, residual=x)


def _normed(
    linear: Linear, norm: nn.Module, x: Tensor, activation: Activation | None = None
) -> Tensor:
    """activation(linear(norm(x))) in one product."""
    assert isinstance(norm, nn.LayerNorm | nn.RMSNorm) and norm.eps is not None
    kind: Norm = "layer" if isinstance(norm, nn.LayerNorm) else "rms"
    shift = norm.bias if isinstance(norm, nn.LayerNorm) else None
    return fused_linear(
        x,
        linear.weight,
        linear.bias,
        norm=RowNorm(kind, norm.weight, shift, norm.eps),
        activation=activation,
    )


def _onnx_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` as the one operator that ONNX has for it."""
    rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos[:, 0], sin[:, 0])
    return rotated
