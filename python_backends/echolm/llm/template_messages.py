"""Messages of a conversation in the form in which chat templates read them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

Message = dict[str, Any]


def message(role: str, content: str) -> Message:
    """A message of text."""
    return {"role": role, "content": content}


def tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls of a :class:`~echolm.conversation.Turn`; none if a stored text holds no such.

    Templates want the arguments as an object, where OpenAI's API has them as text.
    """
    calls: list[dict[str, Any]] = []
    with suppress(ValueError, TypeError, LookupError):
        calls = [{**call, "function": {**call["function"]}} for call in json.loads(text or "[]")]
    for call in calls:
        arguments = call["function"].get("arguments") or {}
        if isinstance(arguments, str):
            with suppress(ValueError):  # the LLM may have written anything
                arguments = json.loads(arguments)
        call["function"]["arguments"] = arguments
    return calls
