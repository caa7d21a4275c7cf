"""Requests with their answers as people keep them, to be taken in as examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echolm.conversation import Conversation, Turn, read_messages, transcript
from echolm.errors import InvalidRequestError
from echolm.examples.transfer import check_number, check_text
from echolm.primitives import DEFAULT_TENANT

REQUEST_NAMES = ("request", "prompt", "question", "instruction", "input")
RESPONSE_NAMES = ("response", "completion", "answer", "output", "reference")
"""What a record may call its request and the answer to it."""

_FORMS = (
    f"a request ({', '.join(REQUEST_NAMES)}) and a response ({', '.join(RESPONSE_NAMES)}), or "
    "messages"
)
_MAX_TENANT_BYTES = 256  # as requests may have them
_EXPORTED = ("scope", "source_llm")  # what only records of an export have


@dataclass(frozen=True)
class Pair:
    """A request and the answer that is wanted to it.

    Attributes:
        request: the transcript of its conversation.
        quality: the answer's, 0..1.
    """

    request: str
    response: str
    tenant: str = DEFAULT_TENANT
    system_prompt: str = ""
    quality: float = 1.0


def read_pair(record: Mapping[str, Any], tenant: str = "", system_prompt: str = "") -> Pair:
    """The pair of a record: request and response, or messages of which the last is the answer.

    A record may have a ``tenant``, a ``system_prompt`` and a ``quality`` of its own; what else it
    has is not looked at.

    Args:
        tenant: whose all pairs are; empty: the record's, else the default tenant's.
        system_prompt: for records that have none.

    Raises:
        InvalidRequestError: a value is missing, wrong or ambiguous.
    """
    if all(name in record for name in _EXPORTED):
        mend = "give the whole file, of which the first line is the header"
        raise InvalidRequestError.of("record", "a request and a response", "an export's", mend)
    own = _optional(record, "tenant")
    if tenant and own not in ("", tenant):
        mend = "leave --tenant out, or the line"
        raise InvalidRequestError.of("tenant", repr(tenant), own, mend)
    name = check_text("tenant", tenant or own or DEFAULT_TENANT, _MAX_TENANT_BYTES)
    quality = 1.0 if record.get("quality") is None else record["quality"]
    check_number("quality", quality, 0, 1)
    if "messages" in record:
        asked, response = _split(record)
    else:
        request = check_text(*_only(record, REQUEST_NAMES))
        response = check_text(*_only(record, RESPONSE_NAMES))
        asked = Conversation("", (Turn("user", request),))
    system = asked.system_prompt or _optional(record, "system_prompt") or system_prompt
    return Pair(check_text("request", transcript(asked.turns)), response, name, system, quality)


def _optional(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return "" if value is None else check_text(name, value, least=0)


def _only(record: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """The one of the names that the record has, and its value; empty texts do not count."""
    present = [name for name in names if name in record]
    filled = [name for name in present if record[name] not in (None, "")]
    if len(filled) == 1 or (present and not filled):
        name = (filled or present)[0]
        return name, record[name]
    mend = "join them into one" if filled else ""
    got = " and ".join(filled) or f"the keys {sorted(map(str, record))[:12]}"
    raise InvalidRequestError.of("record", _FORMS, got, mend)


def _split(record: Mapping[str, Any]) -> tuple[Conversation, str]:
    """The conversation of a record of messages, and the answer that ends it."""
    if any(record.get(name) for name in ("tools", "functions")):
        raise _tools()
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError.of("messages", "an array that is not empty", messages)
    *before, last = messages
    for message in messages:
        if not isinstance(message, Mapping):
            raise InvalidRequestError.of("messages", "objects", type(message).__name__)
        if message.get("role") in ("tool", "function") or any(
            message.get(name) for name in ("tool_calls", "function_call")
        ):
            raise _tools()
    if last.get("role") != "assistant":
        expected = "an assistant's answer as the last message"
        raise InvalidRequestError.of("messages", expected, last.get("role"))
    if last.get("weight") == 0:
        mend = "leave it out: it is marked as not to be learnt from"
        raise InvalidRequestError.of("messages", "an answer of weight 1", "weight 0", mend)
    try:
        asked = read_messages(json.dumps(before, ensure_ascii=False).encode())
    except (UnicodeEncodeError, RecursionError):
        expected = "text that UTF-8 can hold"
        raise InvalidRequestError.of("messages", expected, "what is not") from None
    content = last.get("content")
    if isinstance(content, list):  # parts, which are read as those of a request
        content = read_messages(json.dumps([{"role": "user", "content": content}])).turns[0].text
    return asked, check_text("messages[-1].content", content)


def _tools() -> InvalidRequestError:
    return InvalidRequestError.of("messages", "text only", "tools or calls of them")
