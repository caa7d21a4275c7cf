"""What every engine takes and gives.

An engine runs one LLM. It is asynchronous: :meth:`LLMEngine.submit` returns at once, and the
engine calls back with text from one thread of its own, so that hundreds of requests in flight
cost no thread each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

FINISH_STOP = "stop"
"""The model ended its answer, or a stop word was generated."""
FINISH_LENGTH = "length"
"""The answer reached ``max_tokens``."""
FINISH_CANCELLED = "cancelled"
"""The request was cancelled; the text is what there was until then."""


@dataclass(frozen=True)
class SamplingParams:
    """How to generate.

    Attributes:
        max_tokens: most tokens to generate, > 0.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; 1 is off.
        top_k: >= 0; 0 is off.
        seed: the same seed, prompt and parameters give the same text; None: a new one each time.
        stop: strings that end the answer; they are not part of it.
        frequency_penalty: taken off a token's logit for each time it was generated.
        presence_penalty: taken off a token's logit once it was generated.
        logprobs: whether the caller wants ``cumulative_logprob``, which costs a softmax per token.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: bool = False


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to complete.

    Attributes:
        request_id: unique among the requests in flight.
        prompt: the whole prompt; the engine applies no template.
        streaming: whether the text shall come in pieces as it is generated; otherwise there
            is exactly one chunk, at the end.
    """

    request_id: str
    prompt: str
    sampling: SamplingParams = SamplingParams()
    streaming: bool = False


@dataclass(frozen=True)
class GenerationChunk:
    """A piece of an answer; the pieces of one answer, joined, are its text.

    Attributes:
        text: the new text, always whole characters; may be empty.
        finish_reason: None until the last chunk, then one of ``FINISH_*``.
        num_input_tokens: tokens of the prompt.
        num_output_tokens: tokens generated so far, an end-of-text token included.
        cumulative_logprob: natural log of the probability of the tokens so far; None unless
            the request asked for it and the engine tells.
        stop_reason: the stop word that ended the answer; None if none did.
    """

    text: str
    finish_reason: str | None
    num_input_tokens: int
    num_output_tokens: int
    cumulative_logprob: float | None = None
    stop_reason: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether the answer is complete."""
        return self.finish_reason is not None


OnChunk = Callable[[GenerationChunk | Exception], None]
"""Gets the chunks of one request in order, the last with a ``finish_reason``; or an exception,
which is then the last call. It runs on the engine's thread and must not block it."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine knows about itself.

    Attributes:
        ready: whether it takes requests now.
        in_flight: requests submitted and not answered.
        restarts: how often it had to start anew after a failure.
        prefix_hit_tokens: prompt tokens found in the prefix cache since the start; None where
            the engine does not tell. OpenVINO's is an estimate, see ``PrefixCacheEstimate``.
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
