"""Prompts that start with a word below make it fail, as the library can.

``refuse``: the request is invalid; ``break``: generation fails; ``kill``: the executor ends;
``vanish``: this process dies.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from standin_lm import WordModel, WordTokenizer


@dataclass(kw_only=True)
class KvCacheConfig:
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float | None = 0.9
    max_gpu_total_bytes: int = 0
    dtype: str = "auto"


@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    max_tokens: int = 32
    stop: str | list[str] | None = None
    n: int = 1
    best_of: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    bad: str | list[str] | None = None
    logprobs: int | None = None
    exclude_input_from_output: bool = True
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    @property
    def _greedy_decoding(self) -> bool:
        return (self.top_k is None or self.top_k == 1) and not self.top_p


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestOutput:
    """Itself the iterator: each step puts more into it."""

    def __init__(
        self, llm: LLM, prompt: list[int], params: SamplingParams, streaming: bool
    ) -> None:
        self._llm, self._params, self._streaming = llm, params, streaming
        self._model = llm._model
        seed = 0 if params._greedy_decoding else params.seed or 0  # the default is no random one
        self._left = self._model.answer(prompt, 0 if params._greedy_decoding else 1, seed)
        self._word = self._model.tokenizer.first_word(prompt)
        self._aborted = False
        self.prompt_token_ids = prompt
        self.cached_tokens = self._model.cached(prompt) if llm.cache.enable_block_reuse else 0
        self.outputs = [CompletionOutput(0)]
        self.finished = False

    def abort(self) -> None:
        self._aborted = True

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        while True:
            await asyncio.sleep(self._model.step_time(self.prompt_token_ids))
            self._step()
            if self.finished or self._streaming:
                return self

    def _step(self) -> None:
        answer = self.outputs[0]
        if self._aborted:
            self._end("cancelled")
            return
        if self._llm._executor.shut:
            raise RuntimeError("the executor was shut down")
        if len(answer.token_ids) == 3:
            self._fail()
        token, logprob = self._left.pop(0)
        if self._left:
            answer.token_ids.append(token)
            answer.logprobs += [{token: Logprob(logprob)}] if self._params.logprobs else []
            text = self._model.tokenizer.decode([token])
            answer.text += (" " if answer.text else "") + text
            if len(answer.token_ids) == self._params.max_tokens:
                self._end("length")
        else:
            self._end("stop")

    def _end(self, reason: str) -> None:
        self.outputs[0].finish_reason = reason
        self.finished = True

    def _fail(self) -> None:
        if self._word == "break":
            raise RuntimeError("out of luck")
        if self._word == "kill":
            self._llm._executor.shut = True
            raise RuntimeError("the executor died")
        if self._word == "vanish":
            os._exit(9)


@dataclass
class Executor:
    shut: bool = False

    def is_shutdown(self) -> bool:
        return self.shut


class LLM:
    """The PyTorch backend's.

    What it was made with is written to ``arguments.json`` in the model's folder.
    """

    known = frozenset({"load_format", "enable_chunked_prefill"})

    def __init__(
        self,
        model: str | Path,
        tokenizer: str | Path | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        *,
        kv_cache_config: KvCacheConfig | None = None,
        pipeline_parallel_size: int = 1,
        max_batch_size: int | None = None,
        max_seq_len: int | None = None,
        max_num_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := set(kwargs) - self.known:
            raise ValueError(f"{type(self).__name__} got invalid argument: {sorted(unknown)}")
        if Path(model, "too-big").exists():
            raise RuntimeError("Executor worker died during initialization.")
        self.cache = kv_cache_config or KvCacheConfig()
        self._model = WordModel()
        self._executor = Executor()
        given = {
            "backend": type(self).__name__,
            "max_seq_len": max_seq_len,
            "max_batch_size": max_batch_size,
            "kv_cache_config": asdict(self.cache),
            "mpi": sorted(name for name in os.environ if name.startswith(("OMPI_", "PMIX_"))),
            **kwargs,
        }
        Path(model, "arguments.json").write_text(json.dumps(given))

    @property
    def tokenizer(self) -> WordTokenizer:
        return self._model.tokenizer

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        if self._executor is None or self._executor.is_shutdown():
            raise RuntimeError("LLM is shutting down")
        if self._model.tokenizer.first_word(inputs) == "refuse":
            raise ValueError("told to refuse")
        return RequestOutput(self, inputs, sampling_params or SamplingParams(), streaming)

    def shutdown(self) -> None:
        self._executor.shut = True


class TrtLLM(LLM):
    """The TensorRT backend's, for engines that were built."""

    known = frozenset({"enable_chunked_prefill"})
