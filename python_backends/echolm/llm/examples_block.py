"""Examples as one block of text in front of a request, in the same turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from echolm.conversation import Turn, turns_of

_HEAD = "Earlier requests with good answers, as examples of what is wanted:"
_TAG = re.compile(r"<(?=/?(?:example|user|assistant|system|tool)>)")


def examples_block(examples: Sequence[tuple[str, str]]) -> str:
    """The block of (request, response) pairs, each with the turns of the request's transcript.

    No text can close its own tag: a zero-width space breaks what would.
    """
    parts = [_HEAD]
    for request, response in examples:
        turns = (*turns_of(request), Turn("assistant", response))
        said = [_tagged(turn.role, turn.text + turn.tool_calls) for turn in turns]
        parts.append("\n".join(["<example>", *said, "</example>"]))
    return "\n\n".join(parts)


def _tagged(role: str, text: str) -> str:
    quoted = _TAG.sub("<\u200b", text)
    return f"<{role}>\n{quoted}\n</{role}>"
