"""The prompt of an LLM whose server applies the chat template itself."""

from __future__ import annotations

from collections.abc import Sequence

import orjson


class OpenAIMessages:
    """Renders the messages of OpenAI's chat API as a JSON array.

    Nothing in a text is escaped: texts are values there, and a server tokenises them as such.
    """

    def render(self, request: str, examples: Sequence[tuple[str, str]], system: str = "") -> str:
        """The prompt with (request, response) pairs as earlier turns, in the order given."""
        turns = [("system", system)] if system else []
        for asked, answered in examples:
            turns += [("user", asked), ("assistant", answered)]
        turns.append(("user", request))
        return orjson.dumps([{"role": r, "content": text} for r, text in turns]).decode()
