"""What a request may ask for that not every LLM can take, by the names of ``echolm``'s inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echolm.errors import InvalidRequestError
from echolm.primitives import Sampling

_DEFAULT = Sampling()


def optional_inputs(sampling: Sampling) -> dict[str, Sequence[Any]]:
    """The elements of each input that the sampling needs beside the usual ones."""
    asked: dict[str, Sequence[Any]] = {}
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"):
        if (value := getattr(sampling, name)) != getattr(_DEFAULT, name):
            asked[name] = [value]
    if sampling.bad_words:
        asked["bad_words"] = sampling.bad_words
    if sampling.embedding_bias:
        asked["embedding_bias_words"] = [word for word, _ in sampling.embedding_bias]
        asked["embedding_bias_weights"] = [weight for _, weight in sampling.embedding_bias]
    if sampling.guide_type:
        asked["guided_decoding_guide_type"] = [sampling.guide_type]
    if sampling.guide:
        asked["guided_decoding_guide"] = [sampling.guide]
    if sampling.logprobs:
        asked["return_log_probs"] = [True]
    if sampling.top_logprobs is not None:
        asked["logprobs"] = [sampling.top_logprobs]
    if sampling.tools:
        asked["tools"] = [sampling.tools]
    if sampling.tool_choice:
        asked["tool_choice"] = [sampling.tool_choice]
    return asked


def refusal(sampling: Sampling, lacking: Sequence[str], whose: str) -> InvalidRequestError:
    """The error of a request that asks for inputs which cannot be taken.

    Args:
        lacking: names of the inputs, at least one.
        whose: what cannot take them: ``no LLM here`` or ``LLM …``, with its verb.
    """
    name = lacking[0]
    values = optional_inputs(sampling)[name]
    got = values[0] if len(values) == 1 else list(values)
    if sampling.response_format and name.startswith("guided_decoding"):
        name, got = "response_format", sampling.response_format  # the caller's name of it
    return InvalidRequestError.of(name, f"nothing, since {whose} take it", got, f"leave out {name}")
