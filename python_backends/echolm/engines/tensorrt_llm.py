"""The engine over TensorRT-LLM 1.x: its ``LLM``, with in-flight batching and block reuse.

Takes a Hugging Face checkpoint (PyTorch backend) or an engine that ``trtllm-build`` made (TensorRT
backend).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echolm.engines.base import FINISH_STOP, GenerationChunk, GenerationRequest, LLMEngine
from echolm.engines.gpu import (
    GPUOptions,
    check_files,
    finish_reason,
    loading,
    sampling_arguments,
    start,
)
from echolm.engines.options import at_least, read_options, wrong_option
from echolm.engines.text import StopWords
from echolm.engines.worker.asynchronous import Outputs
from echolm.errors import ConfigurationError, InvalidRequestError

_WEIGHTS = ("*.safetensors", "*.bin", "*.engine")
_ACTIVATIONS = 0.1
"""Part of a share of memory that is left for activations, CUDA graphs and libraries."""
_MPI_JOB = re.compile(
    r"OMPI_(COMM_WORLD|UNIVERSE_SIZE|FIRST_RANKS|APP_CTX)|OMPI_MCA_orte_|ORTE_|PMIX_(?!MCA_)|PMI_"
)
"""Variables of the MPI job that Triton may run in. Our processes start another job."""


@dataclass(frozen=True)
class TensorRTLLMOptions(GPUOptions):
    """Options of the engine, in addition to those of :class:`GPUOptions`; by TensorRT-LLM's names.

    Attributes:
        max_seq_len: most tokens of prompt and answer together; 0: what the model can.
        max_batch_size: most requests in one step; more wait.
        max_num_tokens: most tokens in one step; 0: the library's choice.
        gpu_memory_share: share of each GPU's memory for weights, activations and KV cache; 0: the
            library's choice, 90% of what is free for the KV cache.
        kv_cache_dtype: ``auto`` (as the model's), ``fp8`` …
        enable_block_reuse: keep the KV cache of prompts for prompts that start alike.
    """

    engine = "tensorrt_llm"
    max_seq_len: int = 0
    max_batch_size: int = 256
    max_num_tokens: int = 0
    gpu_memory_share: float = 0.0
    kv_cache_dtype: str = "auto"
    enable_block_reuse: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.engine, self, 0, "max_seq_len", "max_num_tokens")
        at_least(self.engine, self, 1, "max_batch_size")
        share = self.gpu_memory_share
        if not 0 <= share <= 1:
            raise _wrong_share("a share in [0, 1]", share)
        if self.copies > 1 and not share:
            got = "0, with which each would take 90% of what is free"
            raise _wrong_share("a share for the copies to divide", got)


def _wrong_share(expected: str, got: object) -> ConfigurationError:
    return wrong_option("tensorrt_llm", "gpu_memory_share", expected, got)


class TensorRTLLMBackend:
    """:class:`~echolm.engines.worker.asynchronous.AsyncBackend` over one ``LLM``."""

    name = "tensorrt_llm"

    def __init__(self, llm: Any, context_length: int) -> None:
        self._llm = llm
        self._results: dict[str, Any] = {}
        self.tokenizer = llm.tokenizer
        self.context_length = context_length

    async def generate(self, request: GenerationRequest, prompt: list[int]) -> Outputs:
        # The library matches stop words by tokens, and so misses those that begin or end inside
        # of a token; and it does not hold back text that may become a stop word.
        stop = StopWords(request.sampling.stop)
        streaming = request.streaming or bool(request.sampling.stop)
        try:
            result = self._llm.generate_async(prompt, sampling_params(request), streaming=streaming)
        except ValueError as error:
            raise InvalidRequestError(f"request: the engine refused it: {error}") from error
        self._results[request.request_id] = result
        num_chars = num_logprobs = 0  # how much of the answer has been sent
        try:
            async for _ in result:  # The same object, with more in it.
                answer, ended = result.outputs[0], result.finished
                if not (ended or streaming):
                    continue
                text = stop.push(answer.text[num_chars:])
                num_chars = len(answer.text)
                if ended and stop.matched is None:
                    text += stop.flush()
                reason = finish_reason("tensorrt_llm", answer.finish_reason) if ended else None
                logprobs = _token_logprobs(answer) if request.sampling.logprobs else ()
                chunk = GenerationChunk(
                    text,
                    FINISH_STOP if stop.matched is not None else reason,
                    len(prompt),
                    len(answer.token_ids),
                    _logprob(answer, logprobs) if request.sampling.logprobs else None,
                    stop.matched,
                    logprobs[num_logprobs:],
                )
                num_logprobs = len(logprobs)
                yield chunk, getattr(result, "cached_tokens", None)
                if stop.matched is not None:
                    return
        finally:
            del self._results[request.request_id]
            if not result.finished:
                result.abort()

    async def abort(self, request_id: str) -> None:
        if (result := self._results.get(request_id)) is not None:
            result.abort()

    def failure(self) -> str | None:
        executor = self._llm._executor  # What the library's own server looks at.
        gone = executor is None or executor.is_shutdown()
        return "TensorRT-LLM's executor has ended" if gone else None

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._llm.shutdown)


def sampling_params(request: GenerationRequest) -> Any:
    """TensorRT-LLM's parameters for a request."""
    from tensorrt_llm import SamplingParams

    sampling = request.sampling
    arguments = sampling_arguments(sampling)
    if sampling.temperature == 0:
        arguments["top_k"] = 1  # greedy in both backends; one of them refuses a temperature of 0
    else:
        arguments.update(
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or None
        )
        if sampling.seed is None:  # The library's default is a fixed seed.
            arguments["seed"] = secrets.randbits(63)
    bad = list(sampling.bad_words) or None
    return SamplingParams(**arguments, bad=bad, logprobs=1 if sampling.logprobs else None)


def _token_logprobs(answer: Any) -> tuple[float, ...]:
    """Those of all of the answer's tokens so far."""
    return tuple(
        entry[token].logprob if isinstance(entry, Mapping) else float(entry)
        for token, entry in zip(answer.token_ids, answer.logprobs or (), strict=False)
    )


def _logprob(answer: Any, tokens: Sequence[float]) -> float | None:
    """Log probability of the answer; the PyTorch backend gives only that of each token."""
    if answer.cumulative_logprob is not None:
        return float(answer.cumulative_logprob)
    return sum(tokens) if tokens else None


def llm_arguments(
    model: str, options: TensorRTLLMOptions, built: bool, cache_bytes: int
) -> dict[str, Any]:
    """Arguments for ``LLM``; the KV cache's configuration is a dictionary in them.

    ``built`` says whether the model is an engine that was built.
    """
    cache: dict[str, Any] = {"enable_block_reuse": options.enable_block_reuse}
    if cache_bytes:
        cache["max_gpu_total_bytes"] = cache_bytes
    if options.kv_cache_dtype != "auto":
        cache["dtype"] = options.kv_cache_dtype
    arguments = options.library_arguments(
        model,
        max_batch_size=options.max_batch_size,
        max_seq_len=options.max_seq_len or None,
        max_num_tokens=options.max_num_tokens or None,
        kv_cache_config=cache,
    )
    if built:  # It has its weights and their type.
        del arguments["dtype"], arguments["load_format"]
    return arguments


def cache_bytes(model: str, options: TensorRTLLMOptions) -> int:
    """Most memory of each GPU for the KV cache, so that all stays within the share; 0: no limit.

    Raises ConfigurationError if the weights leave none, or the GPUs' memory is unknown.
    """
    if not options.gpu_memory_share:
        return 0
    files = [file for pattern in _WEIGHTS for file in Path(model).glob(pattern)]
    weights = sum(file.stat().st_size for file in files) // options.gpus_each
    total = gpu_memory(options.gpus)
    room = int(total * options.gpu_memory_share * (1 - _ACTIVATIONS)) - weights
    if room <= 0:
        got = f"{options.gpu_memory_share:g} of {total >> 20} MiB; give more, or more GPUs"
        raise _wrong_share(f"room for the weights of {weights >> 20} MiB on each GPU", got)
    return room


def gpu_memory(gpus: str) -> int:
    """Bytes of the smallest of these GPUs (empty: of all); ConfigurationError if it is unknown.

    Asked of ``nvidia-smi``: CUDA, once used in this process, would be inherited by the library's.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={gpus}"] if gpus else []
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        return min(int(line) for line in run.stdout.split()) << 20
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "engine tensorrt_llm: option gpu_memory_share: expected nvidia-smi to tell the memory "
            f"of the GPUs {gpus or '(all)'}, got: {error}"
        ) from error


async def make_backend(model: str, options: Mapping[str, Any]) -> TensorRTLLMBackend:
    """The engine's part in the worker process."""
    for name in filter(_MPI_JOB.match, list(os.environ)):
        del os.environ[name]
    checked = TensorRTLLMOptions(**options)
    config = _read_config(model)
    built = "build_config" in config
    context_length = checked.max_seq_len or _context_length(model, config)
    if built:
        from tensorrt_llm._tensorrt_engine import LLM
    else:
        from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    def load() -> Any:
        with loading(checked.gpus):
            arguments = llm_arguments(model, checked, built, cache_bytes(model, checked))
            arguments["kv_cache_config"] = KvCacheConfig(**arguments["kv_cache_config"])
            return LLM(**arguments, **checked.more_arguments())

    try:
        # In a thread, as the library's own Triton model does it.
        llm = await asyncio.get_running_loop().run_in_executor(None, load)
    except (ValueError, OSError) as error:  # pydantic's errors are ValueErrors
        message = f"engine tensorrt_llm: {model}: TensorRT-LLM refused it: {error}"
        raise ConfigurationError(message) from error
    return TensorRTLLMBackend(llm, context_length)


def _read_config(model: str) -> dict[str, Any]:
    """The ``config.json`` of a folder; an empty one for a name on the hub."""
    file = Path(model) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(config, dict):
        raise ConfigurationError(f"{file}: expected a JSON object, got {type(config).__name__}")
    return config


def _context_length(model: str, config: Mapping[str, Any]) -> int:
    """What a built engine or a checkpoint can."""
    described = config.get("build_config") or config.get("text_config") or config
    length = described.get("max_seq_len") or described.get("max_position_embeddings")
    if not isinstance(length, int) or length <= 0:
        raise ConfigurationError(
            f"engine tensorrt_llm: {model}: expected max_position_embeddings in its config.json, "
            f"got {length!r}; set the option max_seq_len"
        )
    return length


_INSTALL = (
    "run in NVIDIA's image nvcr.io/nvidia/tritonserver:<release>-trtllm-python-py3, or name the "
    "interpreter of an environment that has it with the option python"
)


def check(model_dir: Path, options: Mapping[str, Any]) -> TensorRTLLMOptions:
    """See :func:`echolm.engines.check_engine`."""
    checked = read_options(TensorRTLLMOptions, options, "tensorrt_llm")
    check_files(model_dir, checked, _INSTALL)
    return checked


def create(model_dir: Path, options: Mapping[str, Any]) -> LLMEngine:
    """Check what can be checked here, then start the workers."""
    return start(model_dir, check(model_dir, options), "gpu_memory_share")
