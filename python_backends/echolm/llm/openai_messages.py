"""The prompt of an LLM whose server applies the chat template itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from echolm.conversation import Turn


class OpenAIMessages:
    """Renders the messages of OpenAI's chat API as a JSON array.

    Nothing in a text is escaped: texts are values there, and a server tokenises them as such.
    """

    stop: tuple[str, ...] = ()

    def render(self, turns: Sequence[Turn]) -> str:
        """See :class:`~echolm.llm.endpoint.PromptTemplate`."""
        return orjson.dumps([_message(turn) for turn in turns]).decode()


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.tool_calls:
        try:
            message["tool_calls"] = orjson.loads(turn.tool_calls)
        except orjson.JSONDecodeError:  # of a stored example, which anybody may have imported
            message["content"] += turn.tool_calls
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    return message
