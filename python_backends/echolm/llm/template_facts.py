"""What can be told of a chat template from what it makes of small conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from echolm.llm.template_messages import Message, message, tool_calls

_TEXTS = {"user": "Que1stion", "assistant": "Ans2wer", "system": "Sys3tem", "tool": "Res4ult"}
"""What is said in the small conversations, by role; no template holds it."""
_FURTHER = "Fur5ther"
_CALL = '[{"id": "abcdefghi", "type": "function", "function": {"name": "f"}}]'
_MARKER = re.compile(
    r"<([|\uff5c])[^<>|\uff5c\s]{1,40}\1>|</?[a-z]+(?:_[a-z]+)+>|\[/?[A-Z_]{3,40}\]|<</?[A-Z]+>>"
)
"""What markers of turns look like, be they tokens or not."""
_LONGEST_MARKER = 40


@dataclass(frozen=True)
class TemplateFacts:
    """How a chat template treats conversations.

    Attributes:
        roles: those whose text reaches the LLM.
        late_system: whether that of a system message does that does not come first.
        alternates: whether two turns in a row must not have the same role.
        markers: what the template writes around turns that looks like a marker, or is a line of
            its own between two turns.
        end: the token that comes directly after an answer; empty if there is none.
    """

    roles: frozenset[str]
    late_system: bool
    alternates: bool
    markers: frozenset[str]
    end: str


def read_facts(
    render: Callable[[Sequence[Message]], str], tokens: Collection[str]
) -> TemplateFacts:
    """The facts of a template.

    Args:
        render: renders messages by it; raises what the template raises.
        tokens: those that are known of the tokenizer.

    Raises:
        Exception: the template cannot render a request, or one after another and its answer.
    """
    user, answer, system, result = (message(role, text) for role, text in _TEXTS.items())
    further = message("user", _FURTHER)
    called = {**answer, "tool_calls": tool_calls(_CALL)}
    result["tool_call_id"] = "abcdefghi"

    def attempt(*messages: Message) -> str:
        try:
            return render(messages)
        except Exception:
            return ""

    shown = {
        "user": render([user]),
        "assistant": render([user, answer, further]),
        "system": attempt(system, user),
        "tool": attempt(user, called, result),
    }
    end = shown["assistant"].partition(_TEXTS["assistant"])[2].partition(_FURTHER)[0]
    same = attempt(user, answer, answer, further)
    return TemplateFacts(
        roles=frozenset(role for role, text in _TEXTS.items() if text in shown[role]),
        late_system=_TEXTS["system"] in attempt(user, answer, system, further),
        alternates=same.count(_TEXTS["assistant"]) < 2,
        markers=frozenset(_markers(shown, tokens)),
        end=_first_token(end, tokens),
    )


def _markers(shown: Mapping[str, str], tokens: Collection[str]) -> Iterator[str]:
    found = {marker for text in shown.values() for marker in markers_in(text)}
    yield from found
    texts = _any_of([*_TEXTS.values(), _FURTHER])
    known = _any_of({*tokens, *found})
    for role in ("assistant", "system"):
        # What is before the first turn is no marker: it may be any text.
        for piece in texts.split(shown[role])[1:]:
            for line in map(str.strip, known.sub("\n", piece).splitlines()):
                is_marker = re.search(r"[^\W_]", line) and re.search(r"[^\w\s]", line)
                if is_marker and len(line) <= _LONGEST_MARKER:
                    yield line


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, reverse=True))) or "(?!)")


def _first_token(text: str, tokens: Collection[str]) -> str:
    """The token with which a text begins, white space apart; empty if it begins with none."""
    text = text.lstrip()
    starts = {*tokens, *markers_in(text)}
    return max((token for token in starts if text.startswith(token)), key=len, default="")


def markers_in(text: str) -> set[str]:
    """What looks like a marker in a text."""
    return {match[0] for match in _MARKER.finditer(text)}
