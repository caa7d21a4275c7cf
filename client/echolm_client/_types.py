"""What the clients take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from typing_extensions import Required


class Message(TypedDict, total=False):
    """One message of a conversation, as in OpenAI's chat API; the server says what is wrong.

    Attributes:
        role: ``system`` (or ``developer``), ``user``, ``assistant`` or ``tool``.
        content: text, or parts of the type ``text``; None for an assistant that calls tools.
        tool_calls: of an assistant.
        tool_call_id: of a tool: which call its content answers.
    """

    role: Required[str]
    content: str | Sequence[Mapping[str, Any]] | None
    tool_calls: Sequence[Mapping[str, Any]]
    tool_call_id: str


class GenerateOptions(TypedDict, total=False):
    """What a request may say besides its text. What is absent, or None, is not sent.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy.
        top_p: nucleus sampling, 0 to 1.
        top_k: sample among this many tokens.
        seed: makes sampling repeatable; 0 to 2**64 - 1.
        stop_words: generation ends before the first of them.
        bad_words: words that the answer must not hold.
        repetition_penalty: more than 1 makes repetitions less likely.
        presence_penalty, frequency_penalty: as OpenAI's API has them, -2 to 2.
        min_tokens: fewest tokens to generate.
        system_prompt: goes to the LLM, and scopes which examples may be used; not beside messages
            that begin with a system message.
        tenant: examples never cross tenants.
        cache_control: ``default``; ``no-store``: learn nothing from this request;
            ``no-examples``: use none; ``no-cache``: both.
        llm: ``auto``, or the name of a configured LLM.
        cost_weight: quality that one unit of cost is worth; without it as configured.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop_words: Sequence[str] | None
    bad_words: Sequence[str] | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    min_tokens: int | None
    system_prompt: str | None
    tenant: str | None
    cache_control: str | None
    llm: str | None
    cost_weight: float | None


@dataclass(frozen=True)
class Answer:
    """A complete answer and what was decided on the way to it.

    Attributes:
        text: the answer.
        llm: name of the LLM that answered.
        example_ids: examples that stood in the prompt, in that order.
        predicted_quality: the router's estimate, 0 to 1, for the LLM that it chose; NaN if
            it made none.
        solicit_feedback: the router was unsure: a rating of this answer is worth most.
        feedback_token: what :meth:`Client.rate` takes; expires.
        degraded: empty, or what was skipped and why.
        finish_reason: why generation ended, for instance ``stop`` or ``length``.
        num_input_tokens: tokens of the prompt, examples included.
        num_output_tokens: tokens generated.
        latency_s: seconds from sending the request to the end of the answer, seen from here.
    """

    text: str
    llm: str
    example_ids: tuple[int, ...]
    predicted_quality: float
    solicit_feedback: bool
    feedback_token: str
    degraded: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    latency_s: float


@dataclass(frozen=True)
class Sample:
    """One line of the metrics page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Stats:
    """What the server counts.

    Attributes:
        inferences: inferences per Triton model since the server started.
        samples: EchoLM's own metrics, in the server's order.
    """

    inferences: Mapping[str, int]
    samples: tuple[Sample, ...]

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name which carry these labels; 0 if there is none."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= dict(sample.labels).items()
        )
