"""Conversations: the messages of a chat, as OpenAI's API has them, and as one text.

Examples are stored and compared as texts. :func:`transcript` makes one of a conversation, in which
no part can be taken for another, and which is the plain request where nothing came before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from echolm.errors import InvalidRequestError

_TURN, _FIELD = "\x1e", "\x1f"  # ASCII's record and unit separators, which texts do not need
_LETTERS = {"user": "u", "assistant": "a", "system": "s", "tool": "t"}
_ROLES = {letter: role for role, letter in _LETTERS.items()}
_SHOWN = str.maketrans({_TURN: "\u241e", _FIELD: "\u241f"})

MAX_MESSAGES = 1_024
"""Most messages in one conversation."""
MAX_DEPTH = 64
"""Most levels of arrays and objects in its JSON; what reads it later is recursive."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: ``user``, ``assistant``, ``system`` (one that does not come first) or ``tool``.
        tool_calls: of an assistant: JSON array as in OpenAI's API; empty: none.
        tool_call_id: of a tool: which call it answers.
    """

    role: str
    text: str
    tool_calls: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True)
class Conversation:
    """A valid conversation that waits for an answer.

    Attributes:
        system_prompt: the system messages that come first, joined; may be empty.
        turns: the others, oldest first; the last one is a user's or a tool's. Neighbours of one
            role are joined, since many chat templates want roles to alternate.
    """

    system_prompt: str
    turns: tuple[Turn, ...]


def read_messages(data: str | bytes) -> Conversation:
    """The conversation of a JSON array of messages, as in OpenAI's chat API.

    Content is text, or parts of type ``text``. What else a message has (``name``, ``refusal`` …)
    does not reach an LLM and is not looked at.

    Raises:
        InvalidRequestError: it is none; the message names the element.
    """
    import orjson  # Engines' processes import this module, in environments with few packages.

    try:
        messages = orjson.loads(data)
    except orjson.JSONDecodeError as error:  # not UTF-8 and lone surrogates as well
        raise InvalidRequestError.of("messages", "a JSON array", f"what is not: {error}") from error
    if next(islice(json_levels(messages), MAX_DEPTH, None), None):
        raise InvalidRequestError.of("messages", f"JSON at most {MAX_DEPTH} levels deep", "more")
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        got = f"{len(messages)}" if isinstance(messages, list) else type(messages).__name__
        raise InvalidRequestError.of("messages", f"an array of 1 to {MAX_MESSAGES} messages", got)
    turns: list[Turn] = []
    calls: set[str] = set()
    for i, message in enumerate(messages):
        turn = _turn(f"messages[{i}]", message, calls)
        if turns and _continues(turns[-1], turn):
            turns[-1] = replace(turns[-1], text=f"{turns[-1].text}\n\n{turn.text}")
        else:
            turns.append(turn)
    system = turns.pop(0).text if turns[0].role == "system" else ""
    if not turns or turns[-1].role not in ("user", "tool"):
        got = turns[-1].role if turns else "system messages only"
        raise InvalidRequestError.of("messages", "the last message to be a user's or a tool's", got)
    return Conversation(system, tuple(turns))


def json_levels(value: Any) -> Iterator[list[Any]]:
    """The arrays and objects of a JSON value, level by level from the outermost on.

    Nothing recursive, which what is nested too deep would break.
    """
    level = [value] if isinstance(value, dict | list) else []
    while level:
        yield level
        below: list[Any] = []
        for one in level:
            values = one.values() if isinstance(one, dict) else one
            below += [inner for inner in values if isinstance(inner, dict | list)]
        level = below


def _continues(before: Turn, turn: Turn) -> bool:
    return before.role == turn.role != "tool" and not before.tool_calls and not turn.tool_calls


def _turn(where: str, message: Any, calls: set[str]) -> Turn:
    """One message; ``calls`` holds the ids of tool calls so far, and gets its own."""
    if not isinstance(message, dict):
        raise InvalidRequestError.of(where, "an object", type(message).__name__)
    role = message.get("role")
    role = "system" if role == "developer" else role
    if not isinstance(role, str) or role not in _LETTERS:
        roles = ["developer", *_LETTERS]
        raise InvalidRequestError.of(f"{where}.role", f"one of {sorted(roles)}", role)
    made = message.get("tool_calls") if role == "assistant" else None
    if message.get("function_call") is not None:
        raise InvalidRequestError.of(f"{where}.function_call", "none", "one", "use tool_calls")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    text = _text(f"{where}.content", content)
    if role == "user" and not text.strip():
        raise InvalidRequestError.of(f"{where}.content", "text that is not empty", text)
    if role == "tool":
        id = message.get("tool_call_id")
        if not isinstance(id, str) or id not in calls:
            expected = "the id of a tool call in an earlier message"
            raise InvalidRequestError.of(f"{where}.tool_call_id", expected, id)
        return Turn(role, text, tool_call_id=id)
    if not made:
        return Turn(role, text)
    calls.update(_call_ids(f"{where}.tool_calls", made))
    return Turn(role, text, tool_calls=json.dumps(made, separators=(",", ":"), ensure_ascii=False))


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError.of(where, "text or an array of parts", type(content).__name__)
    texts = []
    for k, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            mend = "the LLMs here read text only"
            raise InvalidRequestError.of(f"{where}[{k}]", "a part of type text", kind, mend)
        texts.append(text)
    return "".join(texts)


def _call_ids(where: str, calls: Any) -> Iterable[str]:
    if not isinstance(calls, list):
        raise InvalidRequestError.of(where, "an array", type(calls).__name__)
    for k, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        named = isinstance(function, dict) and isinstance(function.get("name"), str)
        if not named or not isinstance(call.get("id"), str) or not call["id"]:
            raise InvalidRequestError.of(f"{where}[{k}]", "an id and a function's name", call)
        yield call["id"]


def transcript(turns: Sequence[Turn]) -> str:
    """A conversation as one text; :func:`turns_of` reads it.

    Args:
        turns: of one conversation, without the system prompt that comes first.
    """
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].text.translate(_SHOWN)
    parts = []
    for turn in turns:
        fields = [turn.text, turn.tool_calls or turn.tool_call_id]
        fields = [field.translate(_SHOWN) for field in (fields if fields[1] else fields[:1])]
        parts.append(_TURN + _LETTERS[turn.role] + _FIELD.join(fields))
    return "".join(parts)


def turns_of(text: str) -> tuple[Turn, ...]:
    """The turns of a :func:`transcript`; any other text is one turn of a user."""
    if not text.startswith(_TURN):
        return (Turn("user", text),)
    turns = []
    for part in text[1:].split(_TURN):
        role = _ROLES.get(part[:1], "user")
        said, _, field = part[1:].partition(_FIELD)
        calls, id = (field, "") if role == "assistant" else ("", field)
        turns.append(Turn(role, said, calls, id))
    return tuple(turns)


def is_conversation(text: str) -> bool:
    """Whether a :func:`transcript` holds more than one message of a user."""
    return text.startswith(_TURN)


def last_turn(text: str) -> str:
    """What was said last in a :func:`transcript`: the part that waits for an answer."""
    return turns_of(text)[-1].text if is_conversation(text) else text


def by_turn(text: str, change: Callable[[str], str]) -> str:
    """A :func:`transcript` in which a function has changed what was said in each turn.

    Changing the whole would not do: blank space is what the marks between turns are to Python.
    """
    if not is_conversation(text):
        return change(text)
    return transcript([replace(turn, text=change(turn.text)) for turn in turns_of(text)])


def readable(text: str) -> str:
    """A :func:`transcript` as a person or a judge reads it: turns with their roles in front."""
    if not is_conversation(text):
        return text
    said = []
    for turn in turns_of(text):
        parts = [turn.text, turn.tool_calls and f"calls {turn.tool_calls}"]
        said.append(f"{turn.role}: {' '.join(filter(None, parts))}")
    return "\n\n".join(said)
