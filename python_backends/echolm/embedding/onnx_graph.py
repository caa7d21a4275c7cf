"""Writes a BERT sentence encoder as an ONNX graph, without torch.

The graph takes ``input_ids`` and ``attention_mask`` (INT64 ``[batch, seq]``, both axes dynamic)
and gives ``embedding`` (FP32 ``[batch, hidden]``): the encoder, the mean of the token vectors
under the mask, and L2 normalisation. Token types are zero. The mask may number parts of a row, from
1 on and in order: each is embedded by itself, and what comes out is the mean of their vectors, of
length 1. Our own models run parts as rows; Triton's ONNX Runtime backend has the graph alone.

The sum of the embeddings is the tensor ``token_embeddings``, what hides tokens in attention is
``attention_bias``, and what is pooled ``token_vectors``: between them a runtime may lay out the
tokens in another way (:mod:`echolm.embedding.openvino`).

All operators are standard ones of opset 17, which ONNX Runtime (alone and in Triton, CPU and GPU)
and OpenVINO fuse in their own ways. Its fused operators, written by hand, were slower on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from echolm.embedding.spec import MAX_PARTS

Weights = Mapping[str, npt.NDArray[Any]]

_OPSET = 17
_IR_VERSION = 8
_MASKED = -10000.0
"""Added to the attention score of a padded token; its exponential is 0 in FP32 and BF16."""


@dataclass(frozen=True)
class BertShape:
    """As in the checkpoint's ``config.json``."""

    layers: int
    hidden: int
    heads: int
    layer_norm_eps: float


class _Graph:
    """Collects nodes and constants; each method returns the name of the value that it added."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self.constants:
            # Not ascontiguousarray: it would turn a scalar into a vector.
            array = np.asarray(value, order="C")
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant("_".join(map(str, ("ints", *values))), np.asarray(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar_{value!r}", np.asarray(value, np.float32))

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def unit(self, x: str, output: str = "") -> str:
        """Rows of [b, h] at length 1; zeros stay."""
        length = self.op("ReduceL2", x, axes=[1], keepdims=1)
        return self.op("Div", x, self.op("Max", length, self.scalar(1e-12)), name=output)

    def split(self, x: str, parts: int) -> list[str]:
        """Equal parts of the last axis."""
        name = f"Split_{len(self.nodes)}"
        names = [f"{name}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], names, name=name, axis=-1))
        return names


class _Bert:
    """The encoder's layers over one graph. Comments give shapes: b batch, s tokens, h hidden."""

    def __init__(self, graph: _Graph, weights: Weights, shape: BertShape) -> None:
        self.graph, self.weights, self.shape = graph, weights, shape

    def linear(self, x: str, *names: str) -> str:
        """``x @ weight.T + bias``; several layers with the same input become one product."""
        g, key = self.graph, names[0]
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in names])
        bias = np.concatenate([self.weights[f"{name}.bias"] for name in names])
        product = g.op("MatMul", x, g.constant(f"{key}.weight", weight.T))
        return g.op("Add", product, g.constant(f"{key}.bias", bias))

    def norm(self, x: str, name: str, output: str = "") -> str:
        g = self.graph
        gamma = g.constant(f"{name}.gamma", self.weights[f"{name}.weight"])
        beta = g.constant(f"{name}.beta", self.weights[f"{name}.bias"])
        eps = self.shape.layer_norm_eps
        return g.op("LayerNormalization", x, gamma, beta, name=output, axis=-1, epsilon=eps)

    def gelu(self, x: str) -> str:
        g = self.graph
        erf = g.op("Erf", g.op("Mul", x, g.scalar(float(np.sqrt(0.5)))))
        return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.scalar(1.0))), g.scalar(0.5))

    def embeddings(self, mask: str, earlier: str) -> str:
        """Word, position and first token-type vectors of ``input_ids``: [b, s, h].

        Args:
            mask: 1 for a token, FP32 [b, s].
            earlier: for each token, which tokens are of earlier parts of its row: FP32 [b, s, s].
        """
        g = self.graph
        word = g.constant("word_embeddings", self.weights["embeddings.word_embeddings.weight"])
        positions = self.weights["embeddings.position_embeddings.weight"]
        first_type = self.weights["embeddings.token_type_embeddings.weight"][0]
        table = g.constant("position_embeddings", positions + first_type)
        place = g.op("CumSum", g.op("Max", mask, g.scalar(1.0)), g.ints(1))  # [b, s], from 1 on
        place = g.op("Sub", place, g.op("ReduceSum", earlier, g.ints(2), keepdims=0))
        place = g.op("Max", g.op("Sub", place, g.scalar(1.0)), g.scalar(0.0))
        place = g.op(
            "Mul", place, mask
        )  # that of padding does not matter, but must be in the table
        position = g.op("Gather", table, g.op("Cast", place, to=TensorProto.INT64))  # [b, s, h]
        word = g.op("Gather", word, "input_ids")
        tokens = g.op("Add", word, position, name="token_embeddings")
        return self.norm(tokens, "embeddings.LayerNorm")

    def attention(self, x: str, bias: str, name: str) -> str:
        """Self-attention of [b, s, h]; ``bias`` [b, 1, s, s] hides other parts and padding."""
        g, heads = self.graph, self.shape.heads
        head_size = self.shape.hidden // heads
        qkv = self.linear(x, f"{name}.query", f"{name}.key", f"{name}.value")
        split = g.ints(0, 0, heads, head_size)
        query, key, value = (g.op("Reshape", part, split) for part in g.split(qkv, 3))
        query = g.op("Transpose", query, perm=[0, 2, 1, 3])  # [b, heads, s, head]
        key = g.op("Transpose", key, perm=[0, 2, 3, 1])  # [b, heads, head, s]
        value = g.op("Transpose", value, perm=[0, 2, 1, 3])
        scale = g.scalar(float(1 / np.sqrt(head_size)))
        scores = g.op("Add", g.op("Mul", g.op("MatMul", query, key), scale), bias)
        context = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        context = g.op("Transpose", context, perm=[0, 2, 1, 3])
        return g.op("Reshape", context, g.ints(0, 0, self.shape.hidden))

    def layer(self, x: str, bias: str, name: str, output: str = "") -> str:
        g = self.graph
        context = self.attention(x, bias, f"{name}.attention.self")
        attended = self.linear(context, f"{name}.attention.output.dense")
        x = self.norm(g.op("Add", attended, x), f"{name}.attention.output.LayerNorm")
        wide = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        x = g.op("Add", self.linear(wide, f"{name}.output.dense"), x)
        return self.norm(x, f"{name}.output.LayerNorm", output)


def sentence_encoder(weights: Weights, shape: BertShape) -> onnx.ModelProto:
    """Build the graph, a checked model. A row whose mask is all zero gives a zero vector.

    Args:
        weights: FP32 arrays under the names of Hugging Face's ``BertModel``; matrices
            are ``[outputs, inputs]``. KeyError if a tensor that ``shape`` asks for is not there.
    """
    g = _Graph()
    bert = _Bert(g, weights, shape)

    def number(condition: str) -> str:
        return g.op("Cast", condition, to=TensorProto.FLOAT)

    part = number("attention_mask")  # [b, s]
    rows, columns = (g.op("Unsqueeze", part, g.ints(axis)) for axis in (2, 1))
    mask = g.op("Min", part, g.scalar(1.0))
    same = number(g.op("Equal", rows, columns))  # [b, s, s]
    earlier = number(g.op("Less", columns, rows))
    earlier = g.op("Mul", earlier, g.op("Unsqueeze", mask, g.ints(1)))
    hidden = g.op("Mul", g.op("Sub", g.scalar(1.0), same), g.scalar(_MASKED))
    bias = g.op("Unsqueeze", hidden, g.ints(1), name="attention_bias")  # [b, 1, s, s]

    x = bert.embeddings(mask, earlier)
    for index in range(shape.layers):
        last = index == shape.layers - 1
        x = bert.layer(x, bias, f"encoder.layer.{index}", "token_vectors" if last else "")

    total = ""
    for number_of_part in range(1, MAX_PARTS + 1):
        of_part = number(g.op("Equal", part, g.scalar(float(number_of_part))))  # [b, s]
        kept = g.op("Mul", x, g.op("Unsqueeze", of_part, g.ints(2)))
        mean = g.unit(g.op("ReduceSum", kept, g.ints(1), keepdims=0))  # that of the sum, [b, h]
        total = g.op("Add", total, mean) if total else mean
    g.unit(total, "embedding")

    info = helper.make_tensor_value_info
    inputs = [
        info(name, TensorProto.INT64, ["batch", "seq"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [info("embedding", TensorProto.FLOAT, ["batch", shape.hidden])]
    constants = list(g.constants.values())
    graph = helper.make_graph(g.nodes, "sentence_encoder", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="echolm"
    )
    onnx.checker.check_model(model)
    return model
