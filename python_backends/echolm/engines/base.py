"""The interface of every engine, which runs one LLM.

It is asynchronous: :meth:`LLMEngine.submit` returns at once, and the engine calls back with text
from its thread, so that hundreds of requests in flight cost no thread each.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from echolm.engines.gathering import Gatherer
from echolm.errors import ContextLengthError, InvalidRequestError
from echolm.primitives import Sampling

FINISH_STOP = "stop"  # The model ended its answer, or a stop word was generated.
FINISH_LENGTH = "length"  # The answer reached ``max_tokens``.
FINISH_CANCELLED = "cancelled"  # The text is what there was until then.


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to complete.

    Attributes:
        request_id: unique among the requests in flight.
        prompt: the whole prompt; the engine applies no template.
        streaming: whether the text comes in pieces; otherwise there is one chunk, at the end.
        add_special_tokens: whether the tokenizer puts those around the prompt that it puts around
            any text. A chat template has written them already.
    """

    request_id: str
    prompt: str
    sampling: Sampling = field(default_factory=Sampling)
    streaming: bool = False
    add_special_tokens: bool = True


@dataclass(frozen=True)
class GenerationChunk:
    """A piece of an answer; the pieces of one answer, joined, are its text.

    Attributes:
        text: the new text, always whole characters; may be empty.
        finish_reason: None until the last chunk, then one of ``FINISH_*``.
        num_output_tokens: tokens generated so far, an end-of-text token included.
        cumulative_logprob: natural log of the probability of the tokens so far; None unless
            the request asked for it and the engine gives it.
        stop_reason: the stop word that ended the answer; None if none did.
        token_logprobs: natural log of the probability of each token since the chunk before; empty
            as ``cumulative_logprob`` is None.
        logprobs: for ``Sampling.top_logprobs``, an object as in OpenAI's ``logprobs.content`` for
            each token since the chunk before.
    """

    text: str
    finish_reason: str | None
    num_input_tokens: int
    num_output_tokens: int
    cumulative_logprob: float | None = None
    stop_reason: str | None = None
    token_logprobs: tuple[float, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason is not None


OnChunk = Callable[[GenerationChunk | Exception], None]
"""Gets the chunks of one request in order, the last with a ``finish_reason``; or an exception,
which is then the last call. It runs on the engine's thread and must not block it."""


def gathered(
    on_chunk: OnChunk,
    interval_s: float,
    call_later: Callable[[float, Callable[[], None]], object],
) -> OnChunk:
    """What gathers a request's chunks for ``on_chunk``; see :mod:`echolm.engines.gathering`.

    The first chunk, the last and an exception go on at once, after what has gathered.
    """
    chunks = Gatherer[GenerationChunk](on_chunk, joined, interval_s, call_later)

    def take(event: GenerationChunk | Exception) -> None:
        if isinstance(event, Exception):
            chunks.flush()
            on_chunk(event)
            return
        chunks(event)
        if event.is_last:
            chunks.flush()

    return take if interval_s > 0 else on_chunk


def joined(chunks: Sequence[GenerationChunk]) -> GenerationChunk:
    """One chunk of several, in order.

    Counts and reasons are of the whole answer so far, so the newest chunk's hold.
    """
    text = "".join(chunk.text for chunk in chunks)
    values = tuple(logprob for chunk in chunks for logprob in chunk.token_logprobs)
    tokens = tuple(token for chunk in chunks for token in chunk.logprobs)
    return replace(chunks[-1], text=text, token_logprobs=values, logprobs=tokens)


@dataclass(frozen=True)
class EngineStats:
    """The state of an engine and its counts since the start.

    Attributes:
        ready: whether it takes requests now.
        in_flight: number of requests submitted and not answered.
        restarts: how often the engine had to start anew after a failure.
        prefix_hit_tokens: prompt tokens found in the prefix cache; None where the engine does not
            report it. OpenVINO's is an estimate, see ``PrefixCacheEstimate``.
    """

    ready: bool
    in_flight: int
    restarts: int = 0
    prefix_hit_tokens: int | None = None


class LLMEngine(Protocol):
    """One LLM, loaded and running. All methods may be called from any thread."""

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        """Start a generation; returns at once.

        Raises:
            UnavailableError: the engine is closed or starting anew; ``on_chunk`` is not called.
            InvalidRequestError: the request can be seen to be wrong at once. What takes the
                tokenizer to see (:class:`~echolm.errors.ContextLengthError`) goes to ``on_chunk``.
        """

    def cancel(self, request_id: str) -> None:
        """Stop a generation; its last chunk says ``cancelled``. Unknown ids are ignored."""

    def stats(self) -> EngineStats:
        """A snapshot; cheap."""

    def close(self) -> None:
        """Fail what is in flight, stop, release everything; may be repeated."""


def check_request_id(request_id: str, in_flight: Container[str]) -> None:
    """InvalidRequestError if a request with this id is in flight."""
    if request_id in in_flight:
        raise InvalidRequestError.of("request_id", "an id that is not in flight", request_id)


def check_context_length(limit: int, max_tokens: int, prompt_tokens: int | None = None) -> None:
    """Check that a prompt and its answer fit into the LLM's context of ``limit`` tokens.

    Without ``prompt_tokens``, which is then not known yet, the prompt counts as one token.

    Raises:
        ContextLengthError: they do not fit.
        InvalidRequestError: the prompt has no token.
    """
    if prompt_tokens == 0:
        raise InvalidRequestError.of("text_input", "at least one token", "none")
    if max_tokens + (prompt_tokens or 1) > limit:
        raise ContextLengthError(
            f"text_input and sampling_param_max_tokens: expected at most {limit} tokens together "
            f"(the LLM's context), got {prompt_tokens or 'at least 1'} of prompt and {max_tokens} "
            "max_tokens; shorten the prompt or ask for fewer tokens"
        )
