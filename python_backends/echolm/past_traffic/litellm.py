"""LiteLLM's logs: rows of ``LiteLLM_SpendLogs`` and objects of ``StandardLoggingPayload``.

In spend logs ``messages`` is ``{}`` unless prompts are stored (``store_prompts_in_spend_logs``),
and then, by release, the request stands there or in ``proxy_server_request``. Both, and
``response``, may be text of JSON. Long texts are cut in the middle, with a mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echolm.past_traffic.chat import decoded, read_answer, read_request
from echolm.past_traffic.openai import unwrapped
from echolm.past_traffic.record import Logged, Skipped

_CHAT = ("completion", "text_completion", "responses", "anthropic_messages")
_CUT, _REDACTED = "litellm_truncated", "redacted-by-litellm"


class LiteLLM:
    """See the module."""

    name = "litellm"
    about = "LiteLLM's spend logs or StandardLoggingPayload, JSON or CSV"

    def matches(self, record: Mapping[str, Any]) -> bool:
        record = _payload(record)
        return "call_type" in record and ("messages" in record or "response" in record)

    def read(self, record: Mapping[str, Any]) -> Logged:
        record = _payload(record)
        call = str(record.get("call_type") or "").removeprefix("_")
        if call and call not in _CHAT and call.removeprefix("a") not in _CHAT:
            raise Skipped("no chat")
        if record.get("status") == "failure" or record.get("error_str"):
            raise Skipped("error")
        request = decoded(record.get("messages"))
        if not request:
            request = decoded(unwrapped(record.get("proxy_server_request")))
        if not request:
            raise Skipped("no request")
        if isinstance(request, list):
            request = {"messages": request}
        parameters = decoded(record.get("model_parameters"))
        asked = read_request(request, parameters)
        answered = read_answer(record.get("response"))
        for text in (asked.request, asked.system_prompt, answered.response):
            if _CUT in text:
                raise Skipped("cut short by the log")
            if text == _REDACTED:
                raise Skipped("redacted by the log")
        names = [record.get("model_group"), record.get("model"), *asked.models, *answered.models]
        models = tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))
        return replace(asked, response=answered.response, models=models)


def _payload(record: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = record.get("standard_logging_object")
    return inner if isinstance(inner, Mapping) else record
