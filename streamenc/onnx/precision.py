"""Products of an exported step in fewer bits: at a live step, reading the weights takes the time.

int8   Weights and inputs of linear layers as int8 with a scale for each block of 32, a quarter of
       the bytes; convolutions as int16.
int16  Weights and inputs as 16-bit fixed point, each row with a scale of its own: two int8 numbers,
       the second 254 times finer, so that processors multiply them as int8. Half the bytes; the
       result is within about 3e-5 of float32.

Both quantise each row of the input alone: no lane's output depends on another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from streamenc.errors import UsageError

if TYPE_CHECKING:
    import onnx

Precision = Literal["float32", "int16", "int8"]
BLOCK = 32
FINER = 254  # rounding leaves +-1/2 of a step, which is +-127 of these
# Products with fewer weights are not bound by reading them.
LEAST_WEIGHTS = 1 << 14
MICROSOFT = "com.microsoft"
# What a layer does to its weight before it multiplies by it.
FOLDED = {"Constant", "Reshape", "Transpose", "Concat", "Cast", "Squeeze", "Unsqueeze"}
Array = np.ndarray[Any, Any]


def check_precision(precision: str) -> Precision:
    """Raises UsageError for another name."""
    if precision not in get_args(Precision):
        raise UsageError(f"precision is one of {get_args(Precision)}; got {precision!r}")
    return precision  # type: ignore[return-value]


def reduce_precision(proto: onnx.ModelProto, precision: Precision, exact: set[str]) -> int:
    """Rewrites, in place, the products with a constant matrix; gives how many.

    exact  Initializers that stay as they are: codebooks and what projects into their space.
    """
    from onnx import helper, numpy_helper

    if precision == "float32":
        return 0
    graph = proto.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        if node.op_type != "MatMul":
            nodes.append(node)
            continue
        x, y, rank = node.input[0], node.output[0], ranks.get(node.input[0], 0)
        weight = _constant(node.input[1], initializers, producers, exact)
        if weight is None or weight.ndim != 2 or weight.size < LEAST_WEIGHTS or rank not in (2, 3):
            nodes.append(node)
            continue
        name = f"product{count}"
        if precision == "int8" and not _is_convolution(node.input[1], initializers, producers):
            constants, made = _int8(x, y, name, weight)
        else:
            constants, made = _int16(x, y, name, weight, rank)
        graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in constants.items()
        )
        nodes.extend(made)
        count += 1
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    if count and all(opset.domain != MICROSOFT for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return count


def _constant(
    name: str, initializers: dict[str, Any], producers: dict[str, Any], exact: set[str]
) -> Array | None:
    """The value of a tensor that is made of initializers and constants alone; else None."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    if name in initializers:
        return None if name in exact else numpy_helper.to_array(initializers[name])
    node = producers.get(name)
    if node is None or node.op_type not in FOLDED:
        return None
    inputs: dict[str, Array] = {}
    for given in node.input:
        value = _constant(given, initializers, producers, exact)
        if value is None:
            return None
        inputs[given] = value
    made: Array = ReferenceEvaluator(node).run(None, inputs)[0]  # type: ignore[index]
    return made


def _is_convolution(name: str, initializers: dict[str, Any], producers: dict[str, Any]) -> bool:
    while name in producers and producers[name].input:
        name = producers[name].input[0]
    return name in initializers and len(initializers[name].dims) == 3


def _drop_unused(graph: Any) -> None:
    """Drops nodes and initializers that nothing reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {output.name for output in graph.output}
        kept = [node for node in graph.node if read & set(node.output)]
        if len(kept) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(kept)
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)


Made = tuple[dict[str, Array], list[Any]]


def _int8(x: str, y: str, name: str, weight: Array) -> Made:
    """weight (in, out) in blocks along `in`, as MatMulNBits has them: unsigned, 128 for zero."""
    from onnx import helper

    rows, columns = weight.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((columns, blocks * BLOCK), np.float32)
    padded[:, :rows] = weight.T
    padded = padded.reshape(columns, blocks, BLOCK)
    scale = np.maximum(np.abs(padded).max(axis=-1), 1e-30).astype(np.float32) / 127
    quantised = (np.rint(padded / scale[..., None]) + 128).astype(np.uint8)
    constants = {f"{name}.weight": quantised, f"{name}.scale": scale}
    node = helper.make_node(
        "MatMulNBits",
        [x, *constants],
        [y],
        domain=MICROSOFT,
        K=rows,
        N=columns,
        bits=8,
        block_size=BLOCK,
        accuracy_level=4,  # inputs as int8 too
    )
    return constants, [node]


def _int16(x: str, y: str, name: str, weight: Array, rank: int) -> Made:
    """weight (in, out) as [coarse | fine], (in, 2 * out), int8, with a scale for each column.

    The input's rows become coarse and fine ones too, (lanes, 2 * rows, in). Of the four products,
    each has its weight in the sum: 1 for coarse by coarse, 1 / 254 for the mixed ones.
    """
    from onnx import TensorProto, helper

    scale = np.maximum(np.abs(weight).max(axis=0), 1e-30).astype(np.float32) / 127
    whole = weight / scale
    coarse = np.rint(whole)
    fine = np.rint((whole - coarse) * FINER)
    columns = weight.shape[1]
    mixing = np.array([[1, 1 / FINER], [1 / FINER, 0]], np.float32)[:, None, :, None]
    constants: dict[str, Array] = {
        f"{name}.weight": np.concatenate((coarse, fine), axis=1).astype(np.int8),
        f"{name}.mixing": mixing * scale,
        f"{name}.step": np.array(1 / 127, np.float32),
        f"{name}.least": np.array(1e-30, np.float32),
        f"{name}.finer": np.array(FINER, np.float32),
        f"{name}.shift": np.array(128, np.float32),
        f"{name}.zero": np.array(128, np.uint8),
        f"{name}.last": np.array([-1], np.int64),
        f"{name}.middle": np.array([1], np.int64),
        f"{name}.parts": np.array([0, 2, -1, 2, columns], np.int64),
        f"{name}.both": np.array([1, 3], np.int64),
    }
    nodes: list[Any] = []

    def op(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{name}.{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(what: str) -> str:
        return f"{name}.{what}"

    if rank == 2:
        x = op("Unsqueeze", x, constant("middle"))
    largest = op("ReduceMax", op("Abs", x), constant("last"), keepdims=1)
    unit = op("Max", op("Mul", largest, constant("step")), constant("least"))
    scaled = op("Div", x, unit)
    high = op("Round", scaled)
    low = op("Round", op("Mul", op("Sub", scaled, high), constant("finer")))
    # Unsigned: ONNX Runtime has fast products of uint8 by int8 only.
    shifted = op("Add", op("Concat", high, low, axis=1), constant("shift"))
    rows = op("Cast", shifted, to=TensorProto.UINT8)
    whole_products = op("MatMulInteger", rows, constant("weight"), constant("zero"))
    products = op("Cast", whole_products, to=TensorProto.FLOAT)
    parts = op("Reshape", products, constant("parts"))
    mixed = op("Mul", parts, constant("mixing"))
    total = op("ReduceSum", mixed, constant("both"), keepdims=0)
    if rank == 2:
        op("Squeeze", op("Mul", total, unit), constant("middle"), output=y)
    else:
        op("Mul", total, unit, output=y)
    return constants, nodes
