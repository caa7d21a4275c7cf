"""The libraries that run ``model.onnx``.

Each is imported when it is asked for: where Triton's own backend runs the file, none is needed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from echolm.embedding.openvino import open_openvino
from echolm.embedding.session import (
    CPU_CALL_TOKENS,
    OUTPUT,
    Ids,
    Session,
    Vectors,
    check_names,
    run_usual_shapes,
)
from echolm.embedding.spec import EmbedderSpec, check_built
from echolm.errors import ConfigurationError


def open_session(model: Path, spec: EmbedderSpec, threads: int) -> Session:
    """Load ``model`` with ``spec.runtime``.

    Raises ConfigurationError if the file or the library is missing, or the model's tensors are
    not ``input_ids``, ``attention_mask`` and ``embedding``.
    """
    check_built(model)
    try:
        if spec.runtime == "openvino":
            return open_openvino(model, spec, threads)
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
    call_tokens = CPU_CALL_TOKENS

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

    def warm_up(self) -> None:
        run_usual_shapes(self)


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
    check_names(model, inputs, {tensor.name for tensor in session.get_outputs()})
    return session


def default_threads() -> int:
    """Threads for one embedder: the cores this process may use, at most 4."""
    return min(4, len(os.sched_getaffinity(0)))
