from __future__ import annotations

from typing import Any

import pytest
from echolm.conversation import Turn, transcript
from echolm.errors import InvalidRequestError
from echolm.examples.pairs import REQUEST_NAMES, RESPONSE_NAMES, Pair, read_pair
from hypothesis import given
from hypothesis import strategies as st

USER = {"role": "user", "content": "q"}
SYSTEM = {"role": "system", "content": "Be kind."}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("request_name", REQUEST_NAMES)
@pytest.mark.parametrize("response_name", RESPONSE_NAMES)
def test_request_and_response_have_the_names_that_people_use(
    request_name: str, response_name: str
) -> None:
    record = {request_name: "q", response_name: "a", "id": 7, "source": "x"}
    assert read_pair(record) == Pair("q", "a", "public", "", 1.0)


def test_an_input_that_is_empty_is_no_second_request() -> None:
    record = {"instruction": "q", "input": "", "output": "a"}
    assert read_pair(record) == Pair("q", "a")


def test_a_record_s_own_values_count() -> None:
    record = {"request": "q", "response": "a", "tenant": "t", "system_prompt": "s", "quality": 0.5}
    assert read_pair(record) == Pair("q", "a", "t", "s", 0.5)
    assert read_pair(record, "t", "other") == Pair("q", "a", "t", "s", 0.5)
    assert read_pair({"request": "q", "response": "a"}, "t", "s") == Pair("q", "a", "t", "s", 1.0)
    nothing = {"request": "q", "response": "a", "tenant": None, "quality": None}
    assert read_pair(nothing) == Pair("q", "a")


def test_messages_are_one_turn_or_a_conversation() -> None:
    assert read_pair({"messages": [USER, ANSWER]}) == Pair("q", "a")
    assert read_pair({"messages": [SYSTEM, USER, ANSWER]}) == Pair("q", "a", "public", "Be kind.")
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    assert read_pair({"messages": [USER, parts]}) == Pair("q", "a")
    dialogue = {"messages": [USER, ANSWER, {"role": "user", "content": "more"}, ANSWER]}
    turns = [Turn("user", "q"), Turn("assistant", "a"), Turn("user", "more")]
    assert read_pair(dialogue, system_prompt="s") == Pair(transcript(turns), "a", "public", "s")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "record: expected a request .*got the keys"),
        ({"conversations": []}, "got the keys .*conversations"),
        ({"request": "q"}, "expected a request"),
        ({"instruction": "q", "input": "x", "output": "a"}, "instruction and input; join them"),
        ({"request": None, "response": "a"}, "request: expected text, got NoneType"),
        ({"request": " ", "response": "a"}, "request: expected text that is not empty"),
        ({"request": "q", "response": ""}, "response: expected text that is not empty"),
        ({"request": ["q"], "response": "a"}, "request: expected text, got list"),
        ({"request": "q", "response": "\udc00"}, "response: expected text that UTF-8"),
        ({"request": "q", "response": "x" * 70_000}, "response: expected at most 65535 bytes"),
        ({"request": "q", "response": "a", "quality": 9}, "quality: expected a number from 0 to 1"),
        ({"request": "q", "response": "a", "quality": float("nan")}, "quality: "),
        ({"request": "q", "response": "a", "quality": True}, "quality: "),
        ({"request": "q", "response": "a", "tenant": "other"}, "tenant: expected 't', got other"),
        ({"request": "q", "response": "a", "tenant": 7}, "tenant: expected text"),
        ({"request": "q", "response": "a", "system_prompt": {}}, "system_prompt: expected text"),
        ({"request": "q", "response": "a", "scope": 1, "source_llm": "l"}, "the first line is"),
        ({"messages": []}, "messages: expected an array"),
        ({"messages": "text"}, "messages: expected an array"),
        ({"messages": ["text"]}, "messages: expected objects, got str"),
        ({"messages": [ANSWER]}, "messages: expected an array of 1"),
        ({"messages": [USER]}, "expected an assistant's answer as the last message, got user"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "content: expected text"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "weight 0"),
        ({"messages": [USER, CALL]}, "tools or calls"),
        ({"messages": [USER, CALL, {"role": "tool", "content": "x"}, ANSWER]}, "tools or calls"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "tools or calls"),
        ({"messages": [{"role": "user", "content": "\ud800"}, ANSWER]}, "UTF-8"),
        ({"messages": [{"role": "robot", "content": "q"}, ANSWER]}, "role: expected one of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "part of"),
    ],
)
def test_why_a_record_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_pair(record, "t" if record.get("tenant") == "other" else "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "tool_calls", "type", "text", "weight", "user"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["messages", "request", "prompt", "response", "answer", "tenant", "quality", "system_prompt"]
)


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_record_is_a_pair_or_refused(record: dict[str, Any]) -> None:
    try:
        pair = read_pair(record)
    except InvalidRequestError:
        return
    for text in (pair.request, pair.response, pair.tenant, pair.system_prompt):
        text.encode()
    assert 0 <= pair.quality <= 1 and pair.request.strip() and pair.response.strip()
