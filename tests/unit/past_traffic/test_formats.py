from __future__ import annotations

import json
from typing import Any

import pytest
from echolm.past_traffic.columns import Columns
from echolm.past_traffic.langfuse import Langfuse
from echolm.past_traffic.litellm import LiteLLM
from echolm.past_traffic.log import FORMATS
from echolm.past_traffic.openai import OpenAI
from echolm.past_traffic.openai_batch import OpenAIBatch
from echolm.past_traffic.record import Format, Logged, Skipped
from log_lines import (
    ANSWER,
    BATCH_INPUT,
    BATCH_OUTPUT,
    COMPLETION,
    LANGFUSE,
    LITELLM_PAYLOAD,
    LITELLM_SPEND,
    MESSAGES,
    OPENAI,
    STORED,
    TRAINING,
)

REQUEST, SYSTEM = MESSAGES[1]["content"], MESSAGES[0]["content"]
BATCH = {**BATCH_INPUT, **BATCH_OUTPUT}

CHUNK: dict[str, Any] = {"object": "chat.completion.chunk", "model": "gpt-4o-2024-08-06"}
CHUNKS = [
    {**CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {"content": "Par"}, "finish_reason": None}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {"content": "is."}, "finish_reason": None}]},
    {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {**CHUNK, "choices": [], "usage": {"total_tokens": 22}},
]
SENT = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS) + "data: [DONE]\n\n"


def column_names(record: dict[str, Any]) -> dict[str, str]:
    """The record as a row of CSV has it."""
    return {
        key: "" if value is None else value if isinstance(value, str) else json.dumps(value)
        for key, value in record.items()
    }


@pytest.mark.parametrize(
    ("format", "record"),
    [
        (OpenAI(), OPENAI),
        (OpenAI(), {"request": {"body": OPENAI["request"]}, "response": BATCH["response"]}),
        (OpenAI(), {**OPENAI, "response": json.dumps(COMPLETION)}),
        (OpenAI(), {**OPENAI, "response": CHUNKS}),
        (OpenAI(), {**OPENAI, "response": SENT}),
        (OpenAI(), STORED),
        (OpenAI(), TRAINING),
        (OpenAIBatch(), BATCH),
        (LiteLLM(), LITELLM_PAYLOAD),
        (LiteLLM(), {"standard_logging_object": LITELLM_PAYLOAD}),
        (LiteLLM(), {**LITELLM_PAYLOAD, "response": ANSWER}),
        (LiteLLM(), LITELLM_SPEND),
        (LiteLLM(), {**LITELLM_SPEND, "messages": MESSAGES, "proxy_server_request": {}}),
        (LiteLLM(), column_names(LITELLM_SPEND)),
        (Langfuse(), LANGFUSE),
        (Langfuse(), {**LANGFUSE, "input": {"messages": MESSAGES}, "output": ANSWER}),
        (Langfuse(), {**LANGFUSE, "output": COMPLETION}),
        (Langfuse(), column_names(LANGFUSE)),
    ],
)
def test_the_interaction_is_read(format: Format, record: dict[str, Any]) -> None:
    assert format.matches(record)
    logged = format.read(record)
    assert (logged.request, logged.response, logged.system_prompt) == (REQUEST, ANSWER, SYSTEM)


def test_logs_of_blob_storage_name_their_fields_in_snake_case() -> None:
    record = {
        "id": "obs",
        "trace_id": "t",
        "type": "GENERATION",
        "level": "DEFAULT",
        "provided_model_name": "gpt-4o",
        "model_parameters": '{"temperature":0.2}',
        "tool_calls": [],
        "input": json.dumps({"messages": MESSAGES}),
        "output": json.dumps({"role": "assistant", "content": ANSWER}),
    }
    assert Langfuse().matches(record)
    logged = Langfuse().read(record)
    assert logged.models == ("gpt-4o",) and logged.sampling == {"temperature": 0.2}
    assert (logged.request, logged.response) == (REQUEST, ANSWER)


def test_what_answered_is_known_by_all_its_names() -> None:
    assert OpenAI().read(OPENAI).models == ("gpt-4o", "gpt-4o-2024-08-06")
    assert LiteLLM().read(LITELLM_SPEND).models[:2] == ("gpt-4o", "openai/gpt-4o-2024-08-06")
    assert OpenAI().read(TRAINING).models == ()


def test_sampling_is_the_request_s() -> None:
    assert OpenAI().read(OPENAI).sampling == {"temperature": 0.2, "max_tokens": 300}
    assert LiteLLM().read(LITELLM_PAYLOAD).sampling == {"temperature": 0.2, "max_tokens": 300}
    odd = {**OPENAI, "request": {**OPENAI["request"], "temperature": None, "max_tokens": "many"}}
    assert OpenAI().read(odd).sampling == {"max_tokens": 300}


def test_texts_stand_for_requests_and_answers() -> None:
    assert OpenAI().read({"request": "q", "response": "a"}) == Logged("q", "a")
    looks_like_json = {"request": '{"a": 1}', "response": "[1, 2]"}
    logged = OpenAI().read(looks_like_json)
    assert (logged.request, logged.response) == ('{"a": 1}', "[1, 2]")


def test_messages_of_anthropic_s_shape_are_read() -> None:
    record = {
        **LITELLM_PAYLOAD,
        "call_type": "anthropic_messages",
        "messages": {
            "model": "claude",
            "system": [{"type": "text", "text": SYSTEM}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": REQUEST}]}],
        },
        "response": {
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": ANSWER},
            ],
            "stop_reason": "end_turn",
        },
    }
    logged = LiteLLM().read(record)
    assert (logged.request, logged.response, logged.system_prompt) == (REQUEST, ANSWER, SYSTEM)


def test_the_api_responses_is_read() -> None:
    record = {
        "request": {"model": "gpt-4o", "instructions": SYSTEM, "input": REQUEST},
        "response": {
            "object": "response",
            "status": "completed",
            "error": None,
            "model": "gpt-4o-2024-08-06",
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "message", "content": [{"type": "output_text", "text": ANSWER}]},
            ],
        },
    }
    logged = OpenAI().read(record)
    assert (logged.request, logged.response, logged.system_prompt) == (REQUEST, ANSWER, SYSTEM)


def with_request(**changes: Any) -> dict[str, Any]:
    return {**OPENAI, "request": {**OPENAI["request"], **changes}}


def with_choice(**changes: Any) -> dict[str, Any]:
    choice = {**COMPLETION["choices"][0], **changes}
    return {**OPENAI, "response": {**COMPLETION, "choices": [choice]}}


def with_message(**changes: Any) -> dict[str, Any]:
    return with_choice(message={**COMPLETION["choices"][0]["message"], **changes})


TURNS = [*MESSAGES, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "Why?"}]
CALL = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
PICTURE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
]


@pytest.mark.parametrize(
    ("format", "record", "reason"),
    [
        (OpenAI(), with_request(messages=TURNS), "conversation"),
        (OpenAI(), with_request(messages=[MESSAGES[1], MESSAGES[1]]), "conversation"),
        (OpenAI(), with_request(messages=[MESSAGES[0]]), "no request"),
        (OpenAI(), with_request(messages=[]), "no request"),
        (OpenAI(), with_request(messages=[{"role": "user", "content": " "}]), "no request"),
        (OpenAI(), with_request(messages=[{"role": "user", "content": PICTURE}]), "not only text"),
        (OpenAI(), with_request(messages=[*MESSAGES, {"role": "tool", "content": "1"}]), "tools"),
        (OpenAI(), with_request(tools=[{"type": "function"}]), "tools"),
        (OpenAI(), with_request(stop=["\n"]), "stop words"),
        (OpenAI(), with_request(response_format={"type": "json_object"}), "response format"),
        (OpenAI(), with_choice(finish_reason="length"), "cut short"),
        (OpenAI(), with_choice(finish_reason="content_filter"), "refusal"),
        (OpenAI(), with_message(content=None, tool_calls=CALL), "tools"),
        (OpenAI(), with_message(content=None, refusal="I cannot."), "refusal"),
        (OpenAI(), with_message(content=None), "no answer"),
        (OpenAI(), with_message(content="\n"), "no answer"),
        (OpenAI(), {**OPENAI, "response": {**COMPLETION, "choices": []}}, "no answer"),
        (OpenAI(), {**OPENAI, "response": None}, "no answer"),
        (OpenAI(), {**OPENAI, "response": {"error": {"message": "no quota"}}}, "error"),
        (OpenAI(), {**OPENAI, "response": {"status_code": 429, "body": {}}}, "error"),
        (OpenAI(), {**OPENAI, "response": CHUNKS[:3]}, "cut short"),
        (OpenAI(), {**OPENAI, "response": 7}, "no answer"),
        (OpenAI(), {**OPENAI, "response": {"weather": "fine"}}, "unknown form"),
        (OpenAI(), {"messages": MESSAGES}, "no answer"),
        (OpenAI(), COMPLETION, "no request"),
        (OpenAIBatch(), {**BATCH, "url": "/v1/embeddings"}, "no chat"),
        (OpenAIBatch(), {**BATCH, "response": None, "error": {"code": "batch_expired"}}, "error"),
        (OpenAIBatch(), BATCH_INPUT, "no answer"),
        (OpenAIBatch(), BATCH_OUTPUT, "no request"),
        (LiteLLM(), {**LITELLM_SPEND, "call_type": "aembedding"}, "no chat"),
        (LiteLLM(), {**LITELLM_SPEND, "status": "failure", "response": {}}, "error"),
        (LiteLLM(), {**LITELLM_SPEND, "proxy_server_request": "{}"}, "no request"),
        (LiteLLM(), {**LITELLM_SPEND, "response": "{}"}, "no answer"),
        (
            LiteLLM(),
            {**LITELLM_PAYLOAD, "response": "begin ... (litellm_truncated 9 chars) ... end"},
            "cut short by the log",
        ),
        (LiteLLM(), {**LITELLM_PAYLOAD, "response": "redacted-by-litellm"}, "redacted by the log"),
        (LiteLLM(), {**LITELLM_PAYLOAD, "model_parameters": {"tools": [{}]}}, "tools"),
        (Langfuse(), {**LANGFUSE, "type": "SPAN"}, "no generation"),
        (Langfuse(), {**LANGFUSE, "type": None, "model": None}, "no generation"),
        (Langfuse(), {**LANGFUSE, "level": "ERROR"}, "error"),
        (Langfuse(), {**LANGFUSE, "output": None}, "no answer"),
        (Langfuse(), {**LANGFUSE, "input": None}, "no request"),
        (Langfuse(), {**LANGFUSE, "tool_calls": ['{"name": "f"}']}, "tools"),
        (Langfuse(), {**column_names(LANGFUSE), "output": ""}, "no answer"),
        (Columns(), {"request": "", "response": "a"}, "no request"),
        (Columns(), {"request": "q", "response": "a", "finish_reason": "length"}, "cut short"),
    ],
)
def test_what_cannot_be_learnt_from_is_skipped_with_its_reason(
    format: Format, record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Skipped) as skipped:
        format.read(record)
    assert skipped.value.reason == reason


def test_columns_have_any_names() -> None:
    columns = Columns({"request": "prompt", "response": "completion", "system_prompt": "rules"})
    row = {"prompt": REQUEST, "completion": ANSWER, "rules": SYSTEM, "model": "gpt-4o"}
    assert columns.matches(row) and not Columns().matches(row)
    logged = columns.read(row)
    assert logged == Logged(REQUEST, ANSWER, SYSTEM, ("gpt-4o",))
    in_json = columns.read({**row, "prompt": json.dumps(MESSAGES), "rules": ""})
    assert (in_json.request, in_json.system_prompt) == (REQUEST, SYSTEM)


@pytest.mark.parametrize(
    "record", [OPENAI, STORED, TRAINING, BATCH_INPUT, LITELLM_PAYLOAD, LITELLM_SPEND, LANGFUSE]
)
def test_no_record_has_the_fields_of_two_formats(record: dict[str, Any]) -> None:
    first = next(format for format in FORMATS if format.matches(record))
    later = [f for f in FORMATS if f.matches(record) and f.name != first.name]
    assert all(f.name in ("openai", "csv") for f in later)  # which come last


def test_requests_are_the_same_whatever_their_case_and_spaces() -> None:
    logged = Logged("What  is this?", "A", "s", tenant="t")
    same = Logged("what is THIS", "A", "s", tenant="t")
    assert (logged.request_hash, logged.id) == (same.request_hash, same.id)
    others = [
        Logged("What is that?", "A", "s", tenant="t"),
        Logged("What is this?", "A", "other", tenant="t"),
        Logged("What is this?", "A", "s", tenant="other"),
    ]
    assert logged.request_hash not in {other.request_hash for other in others}
    assert Logged("What is this?", "B", "s", tenant="t").id != logged.id
