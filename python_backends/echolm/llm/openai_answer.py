"""Answers of OpenAI's API, read from whole responses or from the events of a stream.

What is passed on has OpenAI's fields only, of the right types, whatever a server has put there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from echolm.primitives import Completion, Piece

_MOST_CALLS = 1_024
"""Most calls in one answer."""


@dataclass
class _Answer:
    """One answer.

    Attributes:
        begun: whether there was any choice, be its text empty.
        done: whether the stream said that it is complete.
    """

    begun: bool = False
    finish_reason: str = ""
    done: bool = False
    _pieces: list[Piece] = field(default_factory=list)
    _counts: tuple[int, int] = (-1, -1)
    _calls_begun: set[int] = field(default_factory=set)

    def take(self, value: dict[str, Any]) -> Piece:
        """What is new in a response or an event; ValueError if it is none."""
        try:
            usage = value.get("usage")
            if usage:
                self._counts = (
                    _count(usage.get("prompt_tokens")),
                    _count(usage.get("completion_tokens")),
                )
            # The event with the usage has no choice.
            choice = next(iter(value.get("choices") or ()), None)
            if choice is None:
                return Piece()
            self.begun = True
            self.finish_reason = _text(choice.get("finish_reason") or self.finish_reason)
            piece = self._read(choice)
            self._pieces.append(piece)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError("expected a completion as OpenAI's API has it") from error
        return piece

    def completion(self) -> Completion:
        """The whole answer; ValueError if there is none."""
        if not self.begun:
            raise ValueError("expected a completion with a choice, got none")
        whole = Piece.joined(self._pieces)
        calls = _whole_calls(whole.tool_calls)
        # Servers end an answer with a call that the caller has demanded in either way.
        reason = "tool_calls" if calls and self.finish_reason != "length" else self.finish_reason
        return Completion(
            whole.text, reason, *self._counts, tool_calls=calls, logprobs=whole.logprobs
        )

    def _read(self, choice: dict[str, Any]) -> Piece:
        """What a choice says; AttributeError, LookupError or TypeError if it is none."""
        raise NotImplementedError


class ChatAnswer(_Answer):
    """An answer of ``/v1/chat/completions``."""

    def _read(self, choice: dict[str, Any]) -> Piece:
        said = choice.get("delta") or choice.get("message") or {}
        tokens = (choice.get("logprobs") or {}).get("content") or ()
        return Piece(
            _text(said.get("content") or ""),
            tuple(self._delta(k, call) for k, call in enumerate(said.get("tool_calls") or ())),
            tuple(_token(t, t.get("top_logprobs") or ()) for t in tokens),
        )

    def _delta(self, place: int, call: Mapping[str, Any]) -> dict[str, Any]:
        """One of a stream's ``delta.tool_calls``, or a whole call as one."""
        function = call.get("function") or {}
        index = int(call.get("index", place))
        if not 0 <= index < _MOST_CALLS:
            raise LookupError
        delta: dict[str, Any] = {"index": index, "function": {}}
        if index not in self._calls_begun:
            self._calls_begun.add(index)
            id = call.get("id") or f"call_{secrets.token_hex(12)}"
            delta |= {"id": _text(id), "type": "function"}
            delta["function"]["name"] = _text(function["name"])
        if (arguments := function.get("arguments")) is not None:
            delta["function"]["arguments"] = _text(arguments)
        return delta


class TextAnswer(_Answer):
    """An answer of ``/v1/completions``."""

    def _read(self, choice: dict[str, Any]) -> Piece:
        found = choice.get("logprobs") or {}
        tokens, values = found.get("tokens") or (), found.get("token_logprobs") or ()
        likeliest = found.get("top_logprobs") or [None] * len(tokens)
        return Piece(
            _text(choice.get("text") or ""),
            logprobs=tuple(
                _token(
                    {"token": token, "logprob": value},
                    [{"token": t, "logprob": p} for t, p in (top or {}).items()],
                )
                for token, value, top in zip(tokens, values, likeliest, strict=True)
            ),
        )


def _count(value: Any) -> int:
    """A count of tokens, which becomes an INT32; -1: there is none."""
    return value if isinstance(value, int) and 0 <= value < 2**31 else -1


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _token(token: Mapping[str, Any], likeliest: Any) -> dict[str, Any]:
    """One of ``logprobs.content``."""
    return {**_likely(token), "top_logprobs": [_likely(one) for one in likeliest]}


def _likely(token: Mapping[str, Any]) -> dict[str, Any]:
    text, data = _text(token["token"]), token.get("bytes")
    data = list(text.encode()) if data is None else [int(byte) for byte in data]
    return {"token": text, "logprob": float(token["logprob"]), "bytes": data}


def _whole_calls(deltas: tuple[Mapping[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """The calls of which deltas were streamed."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        said = {"arguments": "", **delta["function"]}
        if delta["index"] in calls:
            calls[delta["index"]]["function"]["arguments"] += said["arguments"]
        else:
            call = {"id": delta["id"], "type": "function", "function": said}
            calls[delta["index"]] = call
    return tuple(calls[index] for index in sorted(calls))
