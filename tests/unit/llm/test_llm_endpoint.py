"""An LLM's prompt: examples, what was said before, and what fits of them."""

from __future__ import annotations

from typing import Any

import pytest
from echolm.conversation import Turn, transcript
from echolm.errors import InvalidRequestError
from echolm.llm.chat_template import load_chat_template
from echolm.llm.endpoint import LLMEndpoint
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Request, Sampling, Selected
from echolm.settings import LLMSettings
from echolm.testing.llm import FakeLLM

HISTORY = (Turn("user", "rain in Rome?"), Turn("assistant", "no"))


def endpoint(
    context_length: int = 2_048, cannot_take: tuple[str, ...] = (), **settings: Any
) -> LLMEndpoint:
    llm = LLMSettings(
        name="small", cost=1, takes_examples=True, context_length=context_length, **settings
    )
    client = FakeLLM(cannot_take=cannot_take)
    return LLMEndpoint(llm, client, load_chat_template("echolm", None), EstimatedTokens())


def test_what_was_said_before_comes_after_the_examples_and_they_have_their_own() -> None:
    asked = transcript([Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2")])
    examples = [Selected(1, asked, "a2", 0.9, 0.9), Selected(2, "q", "a", 0.9, 0.9)]
    prompt, used = endpoint().prompt(Request("and May?", Sampling(), history=HISTORY), examples)
    assert used == examples
    assert prompt == (
        "<|user|>q1<|assistant|>a1<|end|><|user|>q2<|assistant|>a2<|end|>"
        "<|user|>q<|assistant|>a<|end|>"
        "<|user|>rain in Rome?<|assistant|>no<|end|><|user|>and May?<|assistant|>"
    )


def test_examples_give_way_and_what_was_said_before_never() -> None:
    long = Selected(1, "q " * 500, "a", 0.9, 0.9)
    request = Request("and May?", Sampling(max_tokens=8), history=HISTORY)
    prompt, used = endpoint(60).prompt(request, [long])
    assert not used
    assert "rain in Rome?" in prompt
    prompt, _ = endpoint(10).prompt(request, [long])
    assert "rain in Rome?" in prompt


def test_a_tools_result_is_refused_where_the_template_knows_no_tools() -> None:
    called = (Turn("user", "rain?"), Turn("assistant", "", tool_calls="[1]"))
    request = Request("42 mm", Sampling(), history=called, tool_call_id="c1")
    with pytest.raises(InvalidRequestError, match=r"messages: expected roles .* got tool"):
        endpoint().prompt(request, [])


def test_an_example_that_the_template_refuses_does_not_fail_the_request() -> None:
    asked = transcript([*HISTORY, Turn("tool", "42", tool_call_id="c1")])
    prompt, used = endpoint().prompt(Request("q", Sampling()), [Selected(1, asked, "a", 0.9, 0.9)])
    assert (prompt, used) == ("<|user|>q<|assistant|>", [])


RECOMMENDED = {"repetition_penalty": 1.1, "top_p": 0.8, "top_k": 20}


def test_recommended_sampling_holds_where_a_request_gives_none() -> None:
    greedy = endpoint(**RECOMMENDED).sampling(Sampling())
    assert greedy == Sampling(repetition_penalty=1.1)  # there is nothing to sample from
    sampled = endpoint(**RECOMMENDED).sampling(Sampling(temperature=0.5))
    assert (sampled.temperature, sampled.top_p, sampled.top_k) == (0.5, 0.8, 20)


def test_what_a_request_gives_holds_before_what_is_recommended() -> None:
    asked = Sampling(temperature=0.5, repetition_penalty=1.3, top_p=0.5, top_k=3)
    assert endpoint(**RECOMMENDED).sampling(asked) == asked


def test_what_an_llm_cannot_take_is_not_recommended_to_it() -> None:
    llm = endpoint(cannot_take=("repetition_penalty",), **RECOMMENDED)
    assert llm.sampling(Sampling()) == Sampling()


def test_top_k_is_not_recommended_where_a_server_refuses_it() -> None:
    server = {"url": "https://example.com/v1", "contract": "openai", "takes_top_k": False}
    sampled = endpoint(**server, **RECOMMENDED).sampling(Sampling(temperature=0.5))
    assert (sampled.top_p, sampled.top_k) == (0.8, Sampling.top_k)


def test_an_llms_stop_words_come_after_those_of_a_request() -> None:
    assert endpoint(stop=("\n",)).sampling(Sampling(stop=("END",))).stop == ("END", "\n")
