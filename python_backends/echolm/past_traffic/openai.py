"""Requests and responses of OpenAI's API, a pair a line; stored completions; training files.

- ``{"request": {…body…}, "response": {…}}``, also with the bodies under ``body`` as HTTP logs have
  them, and with texts in place of the bodies;
- a stored completion, the object ``chat.completion`` with its ``messages`` beside it;
- ``{"messages": […]}`` that ends with the assistant's answer, as files for fine-tuning have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from echolm.past_traffic.chat import decoded, read_answer, read_request
from echolm.past_traffic.record import UNKNOWN, Logged, Skipped


class OpenAI:
    """See the module."""

    name = "openai"
    about = "JSON lines of OpenAI requests and responses, stored completions, training files"

    def matches(self, record: Mapping[str, Any]) -> bool:
        return ("request" in record and "response" in record) or "messages" in record

    def read(self, record: Mapping[str, Any]) -> Logged:
        if record.get("error"):
            raise Skipped("error")
        if "request" in record:
            return pair(unwrapped(record["request"]), record.get("response"))
        if "choices" in record:
            return pair(record, record)
        messages = record.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Skipped(UNKNOWN)
        last = messages[-1]
        if not isinstance(last, Mapping) or last.get("role") != "assistant":
            raise Skipped("no answer")
        asked = read_request({**record, "messages": messages[:-1]})
        return replace(asked, response=read_answer(last).response)


def pair(request: Any, response: Any) -> Logged:
    """A request and the response to it, which names what answered better than the request."""
    asked = read_request(request)
    sent = decoded(response)
    status = sent.get("status_code") if isinstance(sent, Mapping) else None
    if isinstance(status, int) and status >= 400:
        raise Skipped("error")
    answered = read_answer(unwrapped(response))
    models = tuple(dict.fromkeys([*asked.models, *answered.models]))
    return replace(asked, response=answered.response, models=models)


def unwrapped(message: Any) -> Any:
    """The body of an HTTP request or response; anything else as it is."""
    inner = decoded(message)
    return inner["body"] if isinstance(inner, Mapping) and "body" in inner else message
