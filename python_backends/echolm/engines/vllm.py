"""The engine over vLLM 0.20: ``AsyncLLM``, with continuous batching and prefix caching."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from echolm.engines.base import GenerationChunk, GenerationRequest, LLMEngine
from echolm.engines.gpu import (
    GPUOptions,
    check_files,
    finish_reason,
    loading,
    sampling_arguments,
    start,
)
from echolm.engines.options import at_least, read_options, wrong_option
from echolm.engines.worker.asynchronous import Outputs
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError
from echolm.primitives import Sampling

_LEAST_LOGPROB = -9999.0
"""In place of minus infinity, as in vLLM's own server."""
_SIZES = ("max_model_len", "kv_cache_memory_bytes", "max_num_batched_tokens")
"""Options with which 0 leaves it to vLLM."""


@dataclass(frozen=True)
class VLLMOptions(GPUOptions):
    """Options of the engine, in addition to those of :class:`GPUOptions`; all by vLLM's names.

    Attributes:
        max_model_len: most tokens of prompt and answer together; 0: what the model can.
        gpu_memory_utilization: share of each GPU's memory for weights, activations and KV cache.
        kv_cache_memory_bytes: size of the KV cache of each copy on each GPU, whatever the share.
            Nothing is measured then, and engines on the same GPUs load at the same time. 0: what
            the share leaves.
        max_num_seqs: most requests in one step; more wait.
        max_num_batched_tokens: most tokens in one step; 0: vLLM's choice.
        quantization: how the weights are quantized, such as ``fp8`` or ``awq``; empty: as the
            checkpoint says.
        kv_cache_dtype: ``auto`` (as the model's), ``fp8`` …
        enable_prefix_caching: keep the KV cache of prompts for prompts that start alike.
        enforce_eager: no CUDA graphs and no compilation: starts faster, generates slower.
        seed: what requests without a seed are sampled with.
    """

    engine = "vllm"
    max_model_len: int = 0
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int = 0
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 0
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self.engine, self, 0, *_SIZES)
        at_least(self.engine, self, 1, "max_num_seqs")
        share = self.gpu_memory_utilization
        if not 0 < share <= 1:
            raise wrong_option("vllm", "gpu_memory_utilization", "a share in (0, 1]", share)


class VLLMBackend:
    """:class:`~echolm.engines.worker.asynchronous.AsyncBackend` over one ``AsyncLLM``."""

    name = "vllm"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.tokenizer = engine.get_tokenizer()
        self.context_length = int(engine.model_config.max_model_len)

    async def generate(self, request: GenerationRequest, prompt: list[int]) -> Outputs:
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        num_tokens = 0
        generate = self._engine.generate
        try:
            params = sampling_params(request)
            async for output in generate(tokens_input(prompt), params, request.request_id):
                answer = output.outputs[0]
                num_tokens += len(answer.token_ids)
                reason, stop = answer.finish_reason, answer.stop_reason
                chunk = GenerationChunk(
                    answer.text,
                    None if reason is None else finish_reason("vllm", reason),
                    len(prompt),
                    num_tokens,
                    answer.cumulative_logprob,
                    # A number is the id of a token that ends every answer.
                    stop if isinstance(stop, str) else None,
                    _token_logprobs(answer) if request.sampling.logprobs else (),
                    _tokens(answer, request.sampling.top_logprobs),
                )
                yield chunk, output.num_cached_tokens
        except ValueError as error:
            raise InvalidRequestError(f"request: the engine refused it: {error}") from error
        except EngineDeadError as error:
            raise UnavailableError("engine vllm failed; try again") from error
        except EngineGenerateError as error:
            problem = error.__cause__ or error
            raise UnavailableError(f"engine vllm: {type(problem).__name__}") from error

    async def abort(self, request_id: str) -> None:
        await self._engine.abort(request_id)

    def failure(self) -> str | None:
        return "vLLM's engine process has failed" if self._engine.errored else None

    async def close(self) -> None:
        self._engine.shutdown()


def sampling_params(request: GenerationRequest) -> Any:
    """vLLM's parameters for a request."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling = request.sampling
    return SamplingParams(
        **sampling_arguments(sampling),
        stop=list(sampling.stop) or None,
        bad_words=list(sampling.bad_words) or None,
        structured_outputs=structured_outputs(sampling),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        # With 0 those of the sampled tokens only.
        logprobs=sampling.top_logprobs or 0 if _wants_logprobs(sampling) else None,
        output_kind=RequestOutputKind.DELTA if request.streaming else RequestOutputKind.FINAL_ONLY,
    )


_GUIDES = {
    "json_schema": "json",
    "regex": "regex",
    "ebnf_grammar": "grammar",
    "structural_tag": "structural_tag",
}
"""vLLM's names of what an answer is to match."""


def structured_outputs(sampling: Sampling) -> Any:
    """vLLM's parameters of what the answer is to match; None if it may be anything."""
    if not sampling.guide_type:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    if sampling.guide_type == "json":
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(**{_GUIDES[sampling.guide_type]: sampling.guide})


def _wants_logprobs(sampling: Sampling) -> bool:
    return sampling.logprobs or sampling.top_logprobs is not None


def _tokens(answer: Any, most: int | None) -> tuple[dict[str, Any], ...]:
    """As OpenAI's API has them, the output's tokens, which are new in it.

    Args:
        most: how many likely ones each has beside it; None: no tokens are wanted.
    """
    if most is None:
        return ()
    pairs = zip(answer.token_ids, answer.logprobs or (), strict=False)
    return tuple(
        {
            **_token(entry[token]),
            "top_logprobs": [_token(one) for one in entry.values() if (one.rank or 0) <= most],
        }
        for token, entry in pairs
    )


def _token(logprob: Any) -> dict[str, Any]:
    text = logprob.decoded_token or ""
    # A JSON text has no infinity.
    value = max(logprob.logprob, _LEAST_LOGPROB)
    return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}


def _token_logprobs(answer: Any) -> tuple[float, ...]:
    """Those of the output's tokens, which are new in it."""
    pairs = zip(answer.token_ids, answer.logprobs or (), strict=False)
    return tuple(entry[token].logprob for token, entry in pairs)


def engine_arguments(model: str, options: VLLMOptions) -> dict[str, Any]:
    """Arguments for ``AsyncEngineArgs``."""
    shared = {field.name for field in fields(GPUOptions)}
    own = {name: value for name, value in asdict(options).items() if name not in shared}
    for name in (*_SIZES, "quantization"):
        own[name] = own[name] or None
    # Their own endpoint would not be seen, and requests hold users' text.
    logs = {"disable_log_stats": True, "enable_log_requests": False}
    return options.library_arguments(model, **own, **logs)


async def make_backend(model: str, options: Mapping[str, Any]) -> VLLMBackend:
    """The engine's part in the worker process."""
    # vLLM's default, fork, would copy this process's threads and its socket.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    checked = VLLMOptions(**options)
    more = checked.more_arguments()
    unknown = sorted(set(more) - {field.name for field in fields(AsyncEngineArgs)})
    if unknown:
        expected = "arguments that the library knows"
        raise wrong_option("vllm", "engine_args", expected, ", ".join(unknown))
    try:
        arguments = AsyncEngineArgs(**engine_arguments(model, checked), **more)
        with nullcontext() if checked.kv_cache_memory_bytes else loading(checked.gpus):
            return VLLMBackend(AsyncLLM.from_engine_args(arguments))
    except (ValueError, OSError) as error:  # pydantic's errors are ValueErrors
        raise ConfigurationError(f"engine vllm: {model}: vLLM refused it: {error}") from error


_INSTALL = (
    "`pip install vllm==0.20.0`, best into an environment of its own, whose interpreter the option "
    "python names"
)


def check(model_dir: Path, options: Mapping[str, Any]) -> VLLMOptions:
    """See :func:`echolm.engines.check_engine`."""
    checked = read_options(VLLMOptions, options, "vllm")
    check_files(model_dir, checked, _INSTALL)
    return checked


def create(model_dir: Path, options: Mapping[str, Any]) -> LLMEngine:
    """Check what can be checked here, then start the workers."""
    return start(model_dir, check(model_dir, options), "gpu_memory_utilization")
