"""What a client may ask for. All of it is checked here, once, before anything is done for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from echolm.errors import InvalidRequestError
from echolm.primitives import AUTO, DEFAULT_TENANT, Request, Sampling
from echolm.settings import Settings

CACHE_CONTROL = {
    "default": (True, True),
    "no-store": (True, False),
    "no-examples": (False, True),
    "no-cache": (False, False),
}
"""For each value of cache_control: (may use examples, may learn from the interaction)."""

_MAX_TENANT_BYTES = 256


def check_text(text: str, max_chars: int) -> str:
    """The text_input, if it is usable; InvalidRequestError if it is empty or too long."""
    if not text.strip():
        raise InvalidRequestError.of("text_input", "text that is not empty", text)
    if len(text) > max_chars:
        raise InvalidRequestError.of(
            "text_input", f"at most {max_chars} characters", f"{len(text)}", "shorten the text"
        )
    return text


def check_tenant(tenant: str) -> str:
    """The tenant's name, if it is usable; InvalidRequestError otherwise."""
    size = len(tenant.encode("utf-8"))
    if not tenant or size > _MAX_TENANT_BYTES:
        raise InvalidRequestError.of(
            "tenant", f"a name of 1 to {_MAX_TENANT_BYTES} bytes", f"{size} bytes"
        )
    return tenant


def check_cache_control(value: str) -> tuple[bool, bool]:
    """The entry of ``CACHE_CONTROL``; InvalidRequestError if there is none."""
    try:
        return CACHE_CONTROL[value]
    except KeyError:
        raise InvalidRequestError.of(
            "cache_control", f"one of {list(CACHE_CONTROL)}", value
        ) from None


def build_request(
    settings: Settings,
    *,
    text: str,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop_words: Sequence[str] = (),
    system_prompt: str = "",
    tenant: str = DEFAULT_TENANT,
    cache_control: str = "default",
    llm: str = AUTO,
    stream: bool = False,
) -> Request:
    """The request of one set of values; None stands for an input that is absent.

    Raises:
        InvalidRequestError: a value is wrong; the message names the input.
    """
    limits = settings.limits
    check_text(text, limits.max_input_chars)
    if len(system_prompt) > limits.max_input_chars:
        raise InvalidRequestError.of(
            "system_prompt", f"at most {limits.max_input_chars} characters", f"{len(system_prompt)}"
        )
    if max_tokens is None:
        max_tokens = limits.default_max_tokens
    longest = max(model.context_length for model in settings.llms) - 1
    most_tokens = min(limits.max_tokens, longest)
    if not 0 < max_tokens <= most_tokens:
        raise InvalidRequestError.of("max_tokens", f"1 to {most_tokens}", max_tokens)
    temperature = 0.0 if temperature is None else temperature
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InvalidRequestError.of("temperature", "a finite number of at least 0", temperature)
    top_p = 1.0 if top_p is None else top_p
    if not 0 < top_p <= 1:
        raise InvalidRequestError.of("top_p", "a number above 0 and at most 1", top_p)
    top_k = 0 if top_k is None else top_k
    if top_k < 0:
        raise InvalidRequestError.of("top_k", "0 (off) or more", top_k)
    if len(stop_words) > limits.max_stop_words:
        raise InvalidRequestError.of(
            "stop_words", f"at most {limits.max_stop_words}", len(stop_words)
        )
    names = [model.name for model in settings.llms]
    if llm != AUTO and llm not in names:
        raise InvalidRequestError.of("llm", f"{AUTO!r} or one of {names}", llm)
    use_examples, store = check_cache_control(cache_control)
    return Request(
        text=text,
        sampling=Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            # An empty stop word would end every answer at once; clients pad with them.
            stop=tuple(word for word in stop_words if word),
        ),
        system_prompt=system_prompt,
        tenant=check_tenant(tenant),
        use_examples=use_examples,
        store=store,
        llm=llm,
        stream=stream,
    )
