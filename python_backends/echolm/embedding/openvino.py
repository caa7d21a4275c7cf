"""OpenVINO on the CPU; BF16 or INT8 products where the CPU has instructions for them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echolm.embedding.packing import CAPACITY, Packed, bins, call_size
from echolm.embedding.session import (
    CPU_CALL_TOKENS,
    INPUTS,
    OUTPUT,
    Ids,
    Session,
    Vectors,
    check_names,
    run_usual_shapes,
)
from echolm.embedding.spec import EmbedderSpec
from echolm.errors import ConfigurationError

_log = logging.getLogger(__name__)

_SHAPE_STEP = 8
"""OpenVINO prepares itself anew, for milliseconds, at the first call of each shape; padding to
a multiple of this many tokens keeps the shapes few."""
_INT8_GROUP = 64
"""Inputs of a product that share a scale, in weights and activations: with 32 it is slower, with
128 recall@10 falls under 0.98."""
_INT8_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Flags of ``/proc/cpuinfo``."""
_WORDS, _POSITIONS = "word_embeddings", "position_embeddings"
_TOKENS, _BIAS, _VECTORS = "token_embeddings", "attention_bias", "token_vectors"
"""Tensors of a graph of :mod:`echolm.embedding.onnx_graph` between which texts can be packed; what
follows in such a graph is the mean of a text's vectors and its normalisation."""


def open_openvino(model: Path, spec: EmbedderSpec, threads: int) -> Session:
    """Load ``model``, with its texts packed if its graph allows that; errors as `open_session`."""
    import openvino

    core = openvino.Core()
    precision = _precision(core, spec.precision)
    if precision != "fp32":
        try:
            return _open(_Compiler(core, precision, threads), model, spec)
        except RuntimeError as error:
            # A capable CPU whose instruction set was limited by the environment.
            message = "embedder: %s does not work on this CPU, using fp32: %s"
            _log.warning(message, precision, error)
    try:
        return _open(_Compiler(core, "fp32", threads), model, spec)
    except RuntimeError as error:
        raise ConfigurationError(f"embedder: OpenVINO cannot load {model}: {error}") from error


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them; empty where it lists none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _precision(core: Any, wanted: str) -> str:
    """The wanted precision if this CPU has instructions for it, else FP32."""
    capable = {
        "fp32": True,
        "bf16": "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        # OpenVINO does INT8 everywhere, but without such instructions slower than FP32.
        "int8": bool(_INT8_INSTRUCTIONS & cpu_flags()),
    }
    if wanted == "fast":
        # With AMX, BF16 takes about half of INT8's time, which rounds activations first.
        wanted = "bf16" if "amx_bf16" in cpu_flags() else "int8"
    return wanted if capable[wanted] else "fp32"


@dataclass(frozen=True)
class _Compiler:
    """How networks are compiled."""

    core: Any
    precision: str
    threads: int

    def __call__(self, network: Any) -> Any:
        """An infer request; RuntimeError if OpenVINO cannot make one."""
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
        }
        if self.precision == "int8":
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _INT8_GROUP
        return self.core.compile_model(network, "CPU", options).create_infer_request()


def _open(compiler: _Compiler, model: Path, spec: EmbedderSpec) -> Session:
    network = compiler.core.read_model(model)
    inputs = {tensor.any_name for tensor in network.inputs}
    check_names(model, inputs, {tensor.any_name for tensor in network.outputs})
    if compiler.precision == "int8":
        _compress_weights(network)
    packable = _Packable.find(network)
    if packable is None:
        return OpenVinoSession(compiler(network), compiler.precision)
    return PackedSession(packable, compiler, spec.max_tokens)


class OpenVinoSession:
    """Rows padded to the longest: for any graph."""

    call_tokens = CPU_CALL_TOKENS

    def __init__(self, request: Any, precision: str) -> None:
        self.precision = precision
        self._lock = threading.Lock()
        self._request = request
        # Kernels are made at the first call, and only then does a missing instruction show.
        request.infer(dict.fromkeys(INPUTS, np.ones((1, 1), np.int64)))

    def run(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        missing = -input_ids.shape[1] % _SHAPE_STEP
        if missing:
            padding = ((0, 0), (0, missing))
            input_ids, attention_mask = np.pad(input_ids, padding), np.pad(attention_mask, padding)
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        with self._lock:  # one request at a time; its threads use the cores already
            vectors: Vectors = self._request.infer(feed, share_inputs=True)[OUTPUT]
        return vectors

    def warm_up(self) -> None:
        run_usual_shapes(self)


@dataclass(frozen=True)
class _Packable:
    """The encoder of a graph, between the embeddings of its tokens and their last vectors.

    Attributes:
        words, positions: FP32 [ids, h] and [positions, h].
        encoder: a network from ``token_embeddings`` and ``attention_bias`` to token vectors.
    """

    words: Vectors
    positions: Vectors
    encoder: Any

    @classmethod
    def find(cls, network: Any) -> _Packable | None:
        """Take them out of a network, which is of no use afterwards; None if it lacks them."""
        from openvino import Model
        from openvino import opset13 as ops

        tensors = {
            name: out for op in network.get_ops() for out in op.outputs() for name in out.names
        }
        if not {_WORDS, _POSITIONS, _TOKENS, _BIAS, _VECTORS} <= tensors.keys():
            return None
        words, positions = (np.array(tensors[n].get_node().data) for n in (_WORDS, _POSITIONS))
        inputs = []
        for name, shape in ((_TOKENS, [1, -1, words.shape[1]]), (_BIAS, [1, 1, -1, -1])):
            parameter = ops.parameter(shape, np.float32, name)
            for reader in tensors[name].get_target_inputs():
                reader.replace_source_output(parameter.output(0))
            parameter.output(0).set_names({name})
            inputs.append(parameter)
        return cls(words, positions, Model([ops.result(tensors[_VECTORS])], inputs, "encoder"))


class PackedSession:
    """Texts one after another, without padding between them, in calls of a few fixed sizes.

    What a token meets outside of attention does not depend on its neighbours, and other texts'
    tokens are hidden from it in attention. A network compiled for each size need not prepare
    itself for another shape at each call, which takes OpenVINO a third of a short text's time.
    """

    call_tokens = 1 << 40
    """Rows never need calls of their own for their length."""

    def __init__(self, packable: _Packable, compiler: _Compiler, max_tokens: int) -> None:
        self.precision = compiler.precision
        self._packable, self._compiler, self._max_tokens = packable, compiler, max_tokens
        self._requests: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._request(call_size(1))  # shows whether this CPU can do it

    def run(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        vectors = np.empty((len(input_ids), self._packable.words.shape[1]), np.float32)
        for rows in bins(attention_mask.sum(axis=1)):
            vectors[rows] = self._call(Packed.of(input_ids[rows], attention_mask[rows]))
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def warm_up(self) -> None:
        for tokens in range(1, max(CAPACITY, self._max_tokens) + 1, call_size(1)):
            with self._lock:
                self._request(call_size(tokens))

    def _call(self, packed: Packed) -> Vectors:
        tokens = np.zeros((1, packed.size, self._packable.words.shape[1]), np.float32)
        embedded = tokens[0, : len(packed.ids)]
        np.take(self._packable.words, packed.ids, axis=0, out=embedded)
        embedded += self._packable.positions[packed.positions]
        feed = {_TOKENS: tokens, _BIAS: packed.attention_bias}
        with self._lock:  # one request at a time; its threads use the cores already
            request = self._request(packed.size)
            found = request.infer(feed, share_inputs=True, share_outputs=True)
            return packed.means(found[0][0])

    def _request(self, size: int) -> Any:
        """The infer request of a size, compiled and tried when first asked for."""
        if size not in self._requests:
            encoder = self._packable.encoder.clone()
            shapes = {_TOKENS: [1, size, self._packable.words.shape[1]], _BIAS: [1, 1, size, size]}
            encoder.reshape(shapes)
            request = self._compiler(encoder)
            request.infer({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
            self._requests[size] = request
        return self._requests[size]


def _compress_weights(network: Any) -> None:
    """Make the constant matrices of products INT8, symmetric, a scale per output and group.

    OpenVINO then multiplies in INT8, with activations that it rounds as it goes
    (``DYNAMIC_QUANTIZATION_GROUP_SIZE``), on CPUs that have instructions for it.
    """
    from openvino import opset13 as ops

    products = [op for op in network.get_ops() if op.get_type_name() == "MatMul"]
    for op in products:
        constant = op.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or len(constant.get_output_shape(0)) != 2:
            continue
        weight = constant.data  # [outputs, inputs] from here on
        if not op.get_attributes()["transpose_b"]:
            weight = weight.T
        group = weight.shape[1] if weight.shape[1] % _INT8_GROUP else _INT8_GROUP
        grouped = weight.reshape(weight.shape[0], -1, group)
        scales = np.maximum(np.abs(grouped).max(axis=2, keepdims=True), 1e-12) / 127
        rounded = ops.constant(np.rint(grouped / scales).astype(np.int8))
        scaled = ops.multiply(ops.convert(rounded, "f32"), ops.constant(scales))
        shape = ops.constant(np.array(weight.shape, np.int64))
        weights = ops.reshape(scaled, shape, False)
        product = ops.matmul(op.input_value(0), weights, False, transpose_b=True)
        for reader in op.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))
