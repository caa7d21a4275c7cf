from __future__ import annotations

import json
from typing import Any

import pytest
from echolm.conversation import Turn, transcript
from echolm.errors import InvalidRequestError
from echolm.primitives import Request
from echolm.router.validation import CACHE_CONTROL, build_request
from echolm.settings import Limits, LLMSettings, Settings
from hypothesis import given
from hypothesis import strategies as st

SETTINGS = Settings(limits=Limits(max_input_chars=50, max_stop_words=2))


def build(**values: Any) -> Request:
    return build_request(SETTINGS, **{"text": "hello", **values})


def test_defaults() -> None:
    request = build()
    assert (request.text, request.system_prompt, request.tenant) == ("hello", "", "public")
    assert (request.llm, request.use_examples, request.store) == ("auto", True, True)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (128, 0.0, 1.0)
    assert (sampling.top_k, sampling.seed, sampling.stop) == (0, None, ())
    assert request.stream is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": ""}, "text_input: expected text that is not empty"),
        ({"text": " \n\t"}, "text_input: expected text that is not empty"),
        ({"text": "x" * 51}, "text_input: expected at most 50 characters, got 51; shorten"),
        ({"system_prompt": "x" * 51}, "system_prompt: expected at most 50 characters, got 51"),
        ({"max_tokens": 0}, "max_tokens: expected 1 to 2047, got 0"),
        ({"max_tokens": -5}, "max_tokens: expected 1 to 2047, got -5"),
        ({"max_tokens": 4097}, "max_tokens: expected 1 to 2047, got 4097"),
        ({"temperature": -0.1}, "temperature: expected a finite number of at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature: expected a finite .*, got nan"),
        ({"temperature": float("inf")}, "temperature: expected a finite .*, got inf"),
        ({"top_p": 0.0}, "top_p: expected a number above 0 and at most 1, got 0"),
        ({"top_p": 1.01}, "top_p: .* got 1.01"),
        ({"top_p": float("nan")}, "top_p: .* got nan"),
        ({"top_k": -1}, r"top_k: expected 0 \(off\) or more, got -1"),
        ({"stop_words": ["a", "b", "c"]}, "stop_words: expected at most 2, got 3"),
        ({"llm": "gpt"}, r"llm: expected 'auto' or one of \['small_llm', 'large_llm'\], got gpt"),
        ({"llm": ""}, "llm: expected 'auto' or one of"),
        ({"cache_control": "maybe"}, "cache_control: expected one of .*'no-store'.*, got maybe"),
        ({"cache_control": ""}, "cache_control: expected one of"),
        ({"tenant": ""}, "tenant: expected a name of 1 to 256 bytes, got 0 bytes"),
        ({"tenant": "é" * 129}, "tenant: expected a name of 1 to 256 bytes, got 258 bytes"),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_expected(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        build(**values)


def chat(*turns: tuple[str, str], **values: Any) -> Request:
    messages = [{"role": role, "content": content} for role, content in turns]
    limits = Limits(max_input_chars=50, max_conversation_chars=90)
    return build_request(Settings(limits=limits), messages=json.dumps(messages), **values)


def test_the_last_message_is_asked_and_the_others_are_its_history() -> None:
    request = chat(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert (request.text, request.system_prompt) == ("c", "S")
    assert request.history == (Turn("user", "a"), Turn("assistant", "b"))
    assert request.transcript == transcript([*request.history, Turn("user", "c")])
    assert chat(("user", "hello")) == build()


def test_a_tools_result_may_wait_for_an_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    request = build_request(SETTINGS, messages=json.dumps(messages))
    assert request.turns[-1] == Turn("tool", "42", tool_call_id="c1")
    assert [turn.role for turn in request.turns] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("turns", "values", "message"),
    [
        ([("user", "a")], {"text": "b"}, "text_input, messages: expected one of .*, got both"),
        ([("system", "S"), ("user", "a")], {"system_prompt": "T"}, "leave system_prompt out"),
        (
            [("user", "x" * 51)],
            {},
            r"messages\[-1\].content: expected at most 50 .* got 51",
        ),
        (
            [("user", "x" * 50), ("assistant", "y" * 50), ("user", "z")],
            {},
            "messages: expected at most 90 characters of text, got 101; leave out the oldest",
        ),
        ([("system", "x" * 51), ("user", "a")], {}, "system_prompt: expected at most 50"),
        ([("user", "x" * 300_000)], {}, "got 300033 characters of JSON"),
        ([("user", "a"), ("bot", "b")], {}, r"messages\[1\].role: expected one of"),
    ],
)
def test_a_conversation_that_is_wrong_is_refused_by_name(
    turns: list[tuple[str, str]], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        chat(*turns, **values)


def test_a_request_without_text_and_messages_is_refused() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"text_input, messages: expected one .* got none"
    ):
        build(text=None)


def test_an_error_does_not_repeat_a_whole_prompt() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build(llm="x" * 100_000)
    assert len(str(caught.value)) < 250
    assert "100000 characters" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 1},
        {"max_tokens": 2047},
        {"temperature": 0.0},
        {"temperature": 5.0},
        {"top_p": 1.0},
        {"top_p": 1e-6},
        {"top_k": 0},
        {"seed": 2**64 - 1},
        {"llm": "small_llm"},
        {"text": "x" * 50},
        {"text": "\U0001f600" * 50},
        {"tenant": "é" * 128},
    ],
)
def test_the_edges_are_allowed(values: dict[str, Any]) -> None:
    build(**values)


def test_max_tokens_follows_the_longest_context_of_the_llms() -> None:
    llms = tuple(
        LLMSettings(name=f"m{n}", cost=1, takes_examples=False, context_length=n)
        for n in (256, 512)
    )
    settings = Settings(llms=llms)
    assert build_request(settings, text="x", max_tokens=511).sampling.max_tokens == 511
    with pytest.raises(InvalidRequestError, match="1 to 511, got 512"):
        build_request(settings, text="x", max_tokens=512)


@pytest.mark.parametrize(("control", "expected"), list(CACHE_CONTROL.items()))
def test_cache_control(control: str, expected: tuple[bool, bool]) -> None:
    request = build(cache_control=control)
    assert (request.use_examples, request.store) == expected
    assert request.use_examples is (control in ("default", "no-store"))
    assert request.store is (control in ("default", "no-examples"))


def test_empty_stop_words_are_padding() -> None:
    assert build(stop_words=["", "END"]).sampling.stop == ("END",)


@given(
    text=st.text(max_size=60),
    max_tokens=st.none() | st.integers(-10, 5_000),
    temperature=st.none() | st.floats(),
    top_p=st.none() | st.floats(),
    top_k=st.none() | st.integers(-5, 10),
    tenant=st.text(max_size=5),
)
def test_any_values_give_a_valid_request_or_an_invalid_request_error(**values: Any) -> None:
    try:
        request = build(**values)
    except InvalidRequestError as error:
        assert "expected" in str(error)
        return
    assert request.text.strip()
    assert 1 <= request.sampling.max_tokens <= 2047
    assert 0 <= request.sampling.temperature < float("inf")
    assert 0 < request.sampling.top_p <= 1
    assert request.tenant
