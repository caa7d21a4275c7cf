"""Lines of logs as the real ones look, cut down to what matters and what could confuse."""

from __future__ import annotations

from typing import Any

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is the capital of France?"},
]
ANSWER = "Paris."

COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": ANSWER,
                "refusal": None,
                "annotations": [],
                "tool_calls": None,
                "function_call": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 19, "completion_tokens": 3, "total_tokens": 22},
    "service_tier": "default",
    "system_fingerprint": None,
}

OPENAI: dict[str, Any] = {
    "request": {
        "model": "gpt-4o",
        "messages": MESSAGES,
        "temperature": 0.2,
        "max_completion_tokens": 300,
        "stream": False,
        "user": "u-1",
    },
    "response": COMPLETION,
}

STORED: dict[str, Any] = {
    **COMPLETION,
    "request_id": "req_ded8ab984ec4bf840f37566c1011c417",
    "tool_choice": None,
    "tools": None,
    "temperature": 1.0,
    "top_p": 1.0,
    "response_format": None,
    "input_user": None,
    "metadata": {"team": "search"},
    "messages": {
        "object": "list",
        "data": [
            {"id": "msg-0", "role": "system", "content": "Answer briefly.", "content_parts": None},
            {
                "id": "msg-1",
                "role": "user",
                "content": None,
                "content_parts": [{"type": "text", "text": "What is the capital of France?"}],
            },
        ],
        "has_more": False,
    },
}

TRAINING: dict[str, Any] = {"messages": [*MESSAGES, {"role": "assistant", "content": ANSWER}]}

BATCH_INPUT: dict[str, Any] = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 300},
}
BATCH_OUTPUT: dict[str, Any] = {
    "id": "batch_req_123",
    "custom_id": "request-1",
    "response": {"status_code": 200, "request_id": "req_123", "body": COMPLETION},
    "error": None,
}

LITELLM_PAYLOAD: dict[str, Any] = {
    "id": "chatcmpl-82a5b1a1",
    "trace_id": "1c94b7a8",
    "call_type": "acompletion",
    "stream": False,
    "response_cost": 3.25e-05,
    "status": "success",
    "custom_llm_provider": "openai",
    "total_tokens": 22,
    "startTime": 1729639393.6,
    "endTime": 1729639394.0,
    "model": "gpt-4o-2024-08-06",
    "model_group": "gpt-4o",
    "model_id": "e0d3",
    "metadata": {"user_api_key_hash": "88dc", "user_api_key_team_id": "team-7"},
    "cache_hit": None,
    "request_tags": [],
    "end_user": "",
    "messages": MESSAGES,
    "response": COMPLETION,
    "error_str": None,
    "error_information": None,
    "model_parameters": {"temperature": 0.2, "max_tokens": 300, "extra_body": {}},
}

LITELLM_SPEND: dict[str, Any] = {
    "request_id": "chatcmpl-82a5b1a1",
    "call_type": "acompletion",
    "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "spend": 3.25e-05,
    "total_tokens": 22,
    "startTime": "2026-07-01T10:00:00.000Z",
    "model": "openai/gpt-4o-2024-08-06",
    "model_group": "gpt-4o",
    "metadata": '{"user_api_key_team_id": "team-7", "status": "success"}',
    "cache_hit": "False",
    "team_id": "team-7",
    "messages": {},
    "response": COMPLETION,
    "proxy_server_request": {"model": "gpt-4o", "messages": MESSAGES, "temperature": 0.2},
    "status": "success",
    "session_id": "1c94",
}

LANGFUSE: dict[str, Any] = {
    "id": "obs_01J9",
    "traceId": "trace_01J9",
    "name": "openai-chat",
    "type": "GENERATION",
    "model": "gpt-4o",
    "modelParameters": {"temperature": 0.2, "max_tokens": 300},
    "startTime": "2025-04-12T10:23:14.512Z",
    "input": MESSAGES,
    "output": {"role": "assistant", "content": ANSWER},
    "usageDetails": {"input": 19, "output": 3, "total": 22},
    "level": "DEFAULT",
    "statusMessage": None,
    "metadata": {"team": "search"},
}
