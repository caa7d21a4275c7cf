"""The libraries that run ``model.onnx``, behind one narrow interface.

Each is imported when it is asked for: where Triton's own backend runs the file, none is needed.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from echolm.embedding.spec import EmbedderSpec, check_built
from echolm.errors import ConfigurationError

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)

_CPU_CALL_TOKENS = 32
"""Of 8 to 64 tokens, 32 was the least with which mixed batches of 32 texts took least CPU time, in
both runtimes."""

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"
_SHAPE_STEP = 8
"""OpenVINO prepares itself anew, for milliseconds, at the first call of each shape; padding to
a multiple of this many tokens keeps the shapes few."""
_INT8_GROUP = 64
"""Inputs of a product that share a scale, in weights and activations: with 32 it is slower, with
128 recall@10 falls under 0.98."""
_INT8_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Flags of ``/proc/cpuinfo``."""


class Session(Protocol):
    """A loaded model; ``run`` may be called from several threads.

    Attributes:
        call_tokens: what one more call costs, in tokens that a batch could have padded instead.
        precision: of the matrix products, as they really are: ``fp32``, ``bf16`` or ``int8``.
    """

    call_tokens: int
    precision: str

    def run(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        """``[n, seq]`` twice to ``[n, D]``."""


def open_session(model: Path, spec: EmbedderSpec, threads: int) -> Session:
    """Load ``model`` with ``spec.runtime``.

    Raises ConfigurationError if the file or the library is missing, or the model's tensors are
    not ``input_ids``, ``attention_mask`` and ``embedding``.
    """
    check_built(model)
    try:
        if spec.runtime == "openvino":
            return OpenVinoSession(model, spec.precision, threads)
        if spec.runtime == "cuda":
            return CudaSession(model)
        return OnnxRuntimeSession(model, threads)
    except ImportError as error:
        raise ConfigurationError(
            f"embedder: runtime {spec.runtime!r} cannot be imported ({error}); install it or build "
            f"the other form: scripts/build_embedder.py --form fp32 --output {model.parent}"
        ) from error


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU, FP32."""

    precision = "fp32"
    call_tokens = _CPU_CALL_TOKENS

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # An idle thread that spins takes the core from Milvus and the LLMs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = _load(onnxruntime, model, options, ["CPUExecutionProvider"])

    def run(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        vectors: Vectors = self._session.run([OUTPUT], feed)[0]
        return vectors


class CudaSession(OnnxRuntimeSession):
    """ONNX Runtime on the first GPU that CUDA shows, FP32."""

    call_tokens = 4_096

    def __init__(self, model: Path) -> None:
        import onnxruntime

        name = "CUDAExecutionProvider"
        available = onnxruntime.get_available_providers()
        if name in available:
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # CUDA and cuDNN of the nvidia-… wheels, if any
            # TF32 would move the vectors away from those that a CPU computes.
            cuda = (name, {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})
            self._session = _load(onnxruntime, model, onnxruntime.SessionOptions(), [cuda])
            available = self._session.get_providers()
        # Without its libraries or a GPU, ONNX Runtime takes the CPU and only logs it.
        if name not in available:
            raise ConfigurationError(
                f"embedder: runtime 'cuda': expected ONNX Runtime with {name} and a GPU, got "
                f"{', '.join(available)}; install onnxruntime-gpu in place of onnxruntime, with "
                "the CUDA and cuDNN that it needs, or build the CPU's form: "
                f"scripts/build_embedder.py --form fast --output {model.parent}"
            )


def _load(onnxruntime: Any, model: Path, options: Any, providers: list[Any]) -> Any:
    """A session of ONNX Runtime, with its tensors checked."""
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # the library's exceptions have no public base
        raise ConfigurationError(f"embedder: ONNX Runtime cannot load {model}: {error}") from error
    inputs = {tensor.name for tensor in session.get_inputs()}
    _check_names(model, inputs, {tensor.name for tensor in session.get_outputs()})
    return session


class OpenVinoSession:
    """OpenVINO on the CPU; BF16 or INT8 products where the CPU has instructions for them."""

    call_tokens = _CPU_CALL_TOKENS

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        import openvino

        core = openvino.Core()
        capable = {
            "fp32": True,
            "bf16": "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            # OpenVINO does INT8 everywhere, but without such instructions slower than FP32.
            "int8": bool(_INT8_INSTRUCTIONS & cpu_flags()),
        }
        if precision == "fast":
            # With AMX, BF16 takes about half of INT8's time, which rounds activations first.
            precision = "bf16" if "amx_bf16" in cpu_flags() else "int8"
        self.precision = precision if capable[precision] else "fp32"
        self._lock = threading.Lock()
        if self.precision != "fp32":
            try:
                self._request = _compile(core, model, self.precision, threads)
                return
            except RuntimeError as error:
                # A capable CPU whose instruction set was limited by the environment.
                message = "embedder: %s does not work on this CPU, using fp32: %s"
                _log.warning(message, self.precision, error)
                self.precision = "fp32"
        try:
            self._request = _compile(core, model, "fp32", threads)
        except RuntimeError as error:
            raise ConfigurationError(f"embedder: OpenVINO cannot load {model}: {error}") from error

    def run(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        missing = -input_ids.shape[1] % _SHAPE_STEP
        if missing:
            padding = ((0, 0), (0, missing))
            input_ids, attention_mask = np.pad(input_ids, padding), np.pad(attention_mask, padding)
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        with self._lock:  # one request at a time; its threads use the cores already
            vectors: Vectors = self._request.infer(feed, share_inputs=True)[OUTPUT]
        return vectors


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them; empty where it lists none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _compile(core: Any, model: Path, precision: str, threads: int) -> Any:
    """An infer request of the model; RuntimeError if OpenVINO cannot load or run it."""
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    network = core.read_model(model)
    if precision == "int8":
        _compress_weights(network)
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _INT8_GROUP
    compiled = core.compile_model(network, "CPU", options)
    inputs = {tensor.any_name for tensor in compiled.inputs}
    _check_names(model, inputs, {tensor.any_name for tensor in compiled.outputs})
    request = compiled.create_infer_request()
    # Kernels are made at the first call, and only then does a missing instruction show.
    request.infer(dict.fromkeys(INPUTS, np.ones((1, 1), np.int64)))
    return request


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


def default_threads() -> int:
    """Threads for one embedder: the cores this process may use, at most 4."""
    return min(4, len(os.sched_getaffinity(0)))


def _check_names(model: Path, inputs: set[str], outputs: set[str]) -> None:
    if inputs != set(INPUTS) or OUTPUT not in outputs:
        raise ConfigurationError(
            f"embedder: {model}: expected inputs {sorted(INPUTS)} and output {OUTPUT!r}, got "
            f"inputs {sorted(inputs)} and outputs {sorted(outputs)}; pooling and normalisation "
            "belong inside the graph"
        )
