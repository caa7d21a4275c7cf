"""What a client may ask for. All of it is checked here, once, before anything is done for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echolm.conversation import MAX_MESSAGES, Conversation, Turn, read_messages
from echolm.errors import InvalidRequestError
from echolm.primitives import AUTO, DEFAULT_TENANT, Request, Sampling, check_tenant
from echolm.router.nvidia_inputs import NAMES, take_sampling
from echolm.router.openai_inputs import take_openai
from echolm.settings import Settings

CACHE_CONTROL = {
    "default": (True, True),
    "no-store": (True, False),
    "no-examples": (False, True),
    "no-cache": (False, False),
}
"""For each value of cache_control: (may use examples, may learn from the interaction)."""

MAX_COST_WEIGHT = 1_000.0
"""Largest cost weight of a request; the cheapest LLM answers long before."""
_JSON_PER_CHAR, _JSON_PER_MESSAGE = 12, 256  # most that JSON adds: two escapes of six characters


def build_request(
    settings: Settings,
    *,
    text: str | None = None,
    messages: str | None = None,
    stop_words: Sequence[str] = (),
    system_prompt: str = "",
    tenant: str = DEFAULT_TENANT,
    cache_control: str = "default",
    llm: str = AUTO,
    stream: bool = False,
    cost_weight: float | None = None,
    **sampling: Any,
) -> Request:
    """The request of one set of values, validated.

    Args:
        text, messages: one of them: a request of one turn, or a conversation as in OpenAI's chat
            API, in JSON, whose first system messages are the system prompt.
        sampling: fields of :class:`~echolm.primitives.Sampling`, except ``stop``, and the inputs
            of :mod:`echolm.router.openai_inputs` and :mod:`echolm.router.nvidia_inputs`; None
            stands for an input that the caller did not send.

    Raises:
        InvalidRequestError: a value is wrong; the message names the input.
    """
    limits = settings.limits
    at_most = f"at most {limits.max_input_chars} characters"
    asked = asked_of(settings, text, messages)
    if asked.system_prompt:
        if system_prompt:
            mend = "leave system_prompt out: the messages begin with a system message"
            raise InvalidRequestError.of("system_prompt", "nothing", "text", mend)
        system_prompt = asked.system_prompt
    if len(system_prompt) > limits.max_input_chars:
        raise InvalidRequestError.of("system_prompt", at_most, len(system_prompt))
    longest = max(model.context_length for model in settings.llms) - 1
    openai = take_openai(sampling, limits.max_conversation_chars)
    sampling |= take_sampling(sampling)
    sampling |= openai
    if sampling.get("max_tokens") is None:
        sampling["max_tokens"] = limits.default_max_tokens
    checked = Sampling.checked(
        {**sampling, "stop": tuple(stop_words)},
        NAMES,
        max_stop_words=limits.max_stop_words,
        most_tokens=min(limits.max_tokens, longest),
        max_guide_chars=limits.max_input_chars,
        padded=True,  # clients pad a batch's rows to the same length
    )
    names = [model.name for model in settings.llms]
    if llm != AUTO and llm not in names:
        raise InvalidRequestError.of("llm", f"{AUTO!r} or one of {names}", llm)
    if cache_control not in CACHE_CONTROL:
        expected = f"one of {list(CACHE_CONTROL)}"
        raise InvalidRequestError.of("cache_control", expected, cache_control)
    use_examples, store = CACHE_CONTROL[cache_control]
    check_tenant(tenant)
    # Examples are answers in text, after which LLMs call tools less.
    use_examples = use_examples and not checked.tools
    if cost_weight is not None and not 0 <= cost_weight <= MAX_COST_WEIGHT:
        expected = f"a number from 0 to {MAX_COST_WEIGHT:g}"
        raise InvalidRequestError.of("cost_weight", expected, cost_weight)
    *history, last = asked.turns
    return Request(
        last.text,
        checked,
        system_prompt,
        tenant,
        use_examples,
        store,
        llm,
        stream,
        tuple(history),
        last.tool_call_id,
        cost_weight,
    )


def asked_of(settings: Settings, text: str | None, messages: str | None) -> Conversation:
    """What a caller asks, by one of the two inputs for it.

    Raises:
        InvalidRequestError: there is none, or both, or it is no request, or too long.
    """
    if (text is None) == (messages is None):
        got = "none of them" if text is None else "both"
        raise InvalidRequestError.of("text_input, messages", "one of these inputs", got)
    limits = settings.limits
    at_most = f"at most {limits.max_input_chars} characters"
    if messages is None:
        assert text is not None
        if not text.strip():
            raise InvalidRequestError.of("text_input", "text that is not empty", text)
        if len(text) > limits.max_input_chars:
            raise InvalidRequestError.of("text_input", at_most, len(text), "shorten the text")
        return Conversation("", (Turn("user", text),))
    most = limits.max_conversation_chars
    if len(messages) > _JSON_PER_CHAR * most + _JSON_PER_MESSAGE * MAX_MESSAGES:
        # Not worth reading.
        got = f"{len(messages)} characters of JSON"
        raise InvalidRequestError.of("messages", f"at most {most} characters of text", got)
    asked = read_messages(messages)
    last = len(asked.turns[-1].text)
    if last > limits.max_input_chars:
        raise InvalidRequestError.of("messages[-1].content", at_most, last, "shorten the text")
    total = sum(len(turn.text) + len(turn.tool_calls) for turn in asked.turns)
    total += len(asked.system_prompt)
    if total > most:
        mend = "leave out the oldest messages"
        raise InvalidRequestError.of("messages", f"at most {most} characters of text", total, mend)
    return asked


def may_store(settings: Settings, request: Request, llm: str) -> bool:
    """Whether an answer of this LLM to the request may become an example."""
    return (
        settings.examples.enabled
        and request.store
        and not request.sampling.forces_text  # the answer may be cut short, or bent
        and llm in settings.example_sources
    )


def is_searched(settings: Settings, request: Request) -> bool:
    """Whether examples are searched for the request: not where nothing that is found is used."""
    if not request.use_examples or request.llm == AUTO:
        return request.use_examples
    takes = next(llm.takes_examples for llm in settings.llms if llm.name == request.llm)
    return takes or may_store(settings, request, request.llm)
