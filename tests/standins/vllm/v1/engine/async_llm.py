"""Prompts that start with a word below make it fail, as the library can.

``refuse``: the request is invalid; ``break``: generation fails; ``kill``: the engine dies;
``vanish``: this process dies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standin_lm import WordModel, WordTokenizer

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


@dataclass
class ModelConfig:
    max_model_len: int


@dataclass
class _State:
    """A request as vLLM's output processor keeps it."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    cached: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    told_text: int = 0
    told_tokens: int = 0
    aborted: bool = False

    def _likeliest(self, token: int, logprob: float) -> dict[int, Logprob]:
        """The token, which is the likeliest, and the next ones."""
        entry = {token: Logprob(logprob, 1, f"t{token}")}
        for rank in range(2, (self.params.logprobs or 0) + 1):
            entry[-rank] = Logprob(float("-inf"), rank, f"other {rank}")
        return entry

    def output(self, finish: str | None, stop: str | None = None) -> RequestOutput | None:
        kind = self.params.output_kind
        if finish is None and kind is RequestOutputKind.FINAL_ONLY:
            return None
        # What may become a stop word is held back.
        hold = 0 if finish else max([len(word) - 1 for word in self.params.stop], default=0)
        text, tokens = self.text[: len(self.text) - hold], self.tokens
        pairs = zip(tokens, self.logprobs, strict=True)
        logprobs = [self._likeliest(token, logprob) for token, logprob in pairs]
        if kind is RequestOutputKind.DELTA:
            given, self.told_text = self.told_text, max(self.told_text, len(text))
            text, tokens = text[given:], tokens[self.told_tokens :]
            logprobs = logprobs[self.told_tokens :]
            self.told_tokens = len(self.tokens)
        answer = CompletionOutput(0, text, list(tokens), None, finish, stop)
        if self.params.logprobs is not None:
            answer.cumulative_logprob, answer.logprobs = sum(self.logprobs), logprobs
        return RequestOutput(
            self.request_id, self.prompt, [answer], finish is not None, self.cached
        )


class AsyncLLM:
    def __init__(self, engine_args: AsyncEngineArgs) -> None:
        if not Path(engine_args.model, "config.json").is_file():
            raise OSError(f"{engine_args.model} does not appear to have a file named config.json.")
        if Path(engine_args.model, "too-big").exists():
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        self.model_config = ModelConfig(engine_args.max_model_len or 512)
        self._model = WordModel()
        self._states: dict[str, _State] = {}
        self._dead = False
        asyncio.get_running_loop()

    @classmethod
    def from_engine_args(
        cls,
        engine_args: AsyncEngineArgs,
        start_engine_loop: bool = True,
        usage_context: Any = None,
        stat_loggers: list[Any] | None = None,
    ) -> AsyncLLM:
        return cls(engine_args)

    @property
    def errored(self) -> bool:
        return self._dead

    def get_tokenizer(self) -> WordTokenizer:
        return self._model.tokenizer

    def shutdown(self, timeout: float | None = None) -> None:
        self._dead = True

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        ids = [request_id] if isinstance(request_id, str) else list(request_id)
        for state in filter(None, map(self._states.get, ids)):
            state.aborted = True

    async def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        lora_request: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        reasoning_ended: bool | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        if self._dead:
            raise EngineDeadError
        ids = prompt["prompt_token_ids"]
        if len(ids) >= self.model_config.max_model_len:
            raise ValueError(f"The decoder prompt (length {len(ids)}) is longer than the model's")
        word = self._model.tokenizer.first_word(ids)
        if word == "refuse":
            raise ValueError("told to refuse")
        state = _State(request_id, ids, sampling_params, self._model.cached(ids))
        self._states[request_id] = state
        try:
            async for output in self._run(state, word):
                yield output
        finally:
            del self._states[request_id]

    async def _run(self, state: _State, word: str) -> AsyncGenerator[RequestOutput, None]:
        params = state.params
        answer = self._model.answer(state.prompt, params.temperature, params.seed)
        for token, logprob in answer:
            await asyncio.sleep(self._model.step_time(state.prompt))
            if state.aborted:
                yield state.output("abort")
                return
            if self._dead:
                raise EngineDeadError
            if len(state.tokens) == 3:
                self._fail(word)
            state.tokens.append(token)
            state.logprobs.append(logprob)
            text = self._model.tokenizer.decode([token])
            state.text += (" " if state.text and text else "") + text
            finish, stop = "stop" if token == answer[-1][0] else None, None
            found = [word for word in params.stop if word in state.text]
            if found:
                finish, stop = "stop", found[0]
                state.text = state.text[: state.text.index(stop)]
            elif finish is None and len(state.tokens) == params.max_tokens:
                finish = "length"
            output = state.output(finish, stop)
            if output is not None:
                yield output
            if finish:
                return

    def _fail(self, word: str) -> None:
        if word == "break":
            try:
                raise RuntimeError("out of luck")
            except RuntimeError as error:
                raise EngineGenerateError from error
        if word == "kill":
            self._dead = True
            raise EngineDeadError
        if word == "vanish":
            os._exit(9)
