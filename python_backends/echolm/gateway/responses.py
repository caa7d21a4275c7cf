"""Responses of OpenAI's API, and the chunks of its streams."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import orjson

from echolm.errors import UnavailableError
from echolm.gateway.backend import Final, Piece
from echolm.settings import Settings

DONE = b"data: [DONE]\n\n"


def fingerprint(settings: Settings) -> str:
    """``system_fingerprint``: changes with the LLMs and their revisions."""
    llms = orjson.dumps([(llm.name, llm.revision) for llm in settings.llms])
    return f"fp_{hashlib.sha256(llms).hexdigest()[:10]}"


def echolm_fields(final: Final) -> dict[str, Any]:
    """What EchoLM says of an answer beside OpenAI's fields."""
    return {
        "llm": final.llm,
        "example_ids": final.example_ids,
        "predicted_quality": final.predicted_quality,
        "solicit_feedback": final.solicit_feedback,
        "feedback_token": final.feedback_token,
        "degraded": final.degraded,
    }


def usage(prompts: Sequence[Final], answers: Sequence[Final]) -> dict[str, int]:
    """Token counts; those that an LLM does not give count as 0.

    Args:
        prompts: an answer to each prompt, in which its tokens are counted.
    """
    of_prompts = sum(max(0, answer.num_input_tokens) for answer in prompts)
    of_answers = sum(max(0, answer.num_output_tokens) for answer in answers)
    return {
        "prompt_tokens": of_prompts,
        "completion_tokens": of_answers,
        "total_tokens": of_prompts + of_answers,
    }


@dataclass(frozen=True)
class Form:
    """How the answers to one request are written: as those of a chat, or as completions.

    Attributes:
        prefix: of the response's id.
        whole, chunk: OpenAI's names of the objects.
    """

    prefix: str
    whole: str
    chunk: str

    def choice(self, index: int, final: Final) -> dict[str, Any]:
        """A whole answer."""
        raise NotImplementedError

    def delta(self, piece: Piece, first: bool, offset: int) -> dict[str, Any]:
        """What a chunk's choice has for a piece, beside its index.

        Args:
            offset: characters of the choice's text before the piece.
        """
        raise NotImplementedError

    def end(self, final: Final) -> dict[str, Any]:
        """What the last chunk of a choice has beside its index."""
        raise NotImplementedError


class ChatForm(Form):
    """Of ``/v1/chat/completions``."""

    def choice(self, index: int, final: Final) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": final.text, "refusal": None}
        if final.tool_calls:
            message["tool_calls"] = _read(final.tool_calls)
            message["content"] = final.text or None
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(final.logprobs),
            "finish_reason": _CHAT_REASONS.get(final.finish_reason, "stop"),
        }

    def delta(self, piece: Piece, first: bool, offset: int) -> dict[str, Any]:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.text or not piece.tool_calls:
            delta["content"] = piece.text
        if piece.tool_calls:
            delta["tool_calls"] = _read(piece.tool_calls)
        return {"delta": delta, "logprobs": _logprobs(piece.logprobs), "finish_reason": None}

    def end(self, final: Final) -> dict[str, Any]:
        reason = _CHAT_REASONS.get(final.finish_reason, "stop")
        return {"delta": {}, "logprobs": None, "finish_reason": reason}


class TextForm(Form):
    """Of ``/v1/completions``."""

    def choice(self, index: int, final: Final) -> dict[str, Any]:
        return {
            "index": index,
            "text": final.text,
            "logprobs": _text_logprobs(final.logprobs, 0),
            "finish_reason": _TEXT_REASONS.get(final.finish_reason, "stop"),
        }

    def delta(self, piece: Piece, first: bool, offset: int) -> dict[str, Any]:
        logprobs = _text_logprobs(piece.logprobs, offset)
        return {"text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def end(self, final: Final) -> dict[str, Any]:
        reason = _TEXT_REASONS.get(final.finish_reason, "stop")
        return {"text": "", "logprobs": None, "finish_reason": reason}


_TEXT_REASONS = {"length": "length"}
_CHAT_REASONS = {**_TEXT_REASONS, "tool_calls": "tool_calls"}

CHAT = ChatForm("chatcmpl-", "chat.completion", "chat.completion.chunk")
TEXT = TextForm("cmpl-", "text_completion", "text_completion")


@dataclass(frozen=True)
class Envelope:
    """What all parts of a response share."""

    form: Form
    model: str
    fingerprint: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.form.prefix + secrets.token_hex(16))

    def choice_id(self, index: int) -> str:
        """Under which a choice's feedback token is remembered."""
        return f"{self.id}/{index}" if index else self.id

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def whole(self, finals: Sequence[Final], prompts: Sequence[Final]) -> bytes:
        """The response with all choices.

        Args:
            prompts: see :func:`usage`.
        """
        choices = [self.form.choice(index, final) for index, final in enumerate(finals)]
        if len(finals) > 1:
            for choice, final in zip(choices, finals, strict=True):
                choice["echolm"] = echolm_fields(final)
        return orjson.dumps(
            {
                **self.fields(self.form.whole),
                "choices": choices,
                "usage": usage(prompts, finals),
                "echolm": echolm_fields(finals[0]),
            }
        )


class Chunks:
    """Writes a stream's chunks.

    Args:
        with_usage: whether a last chunk has the token counts, and the others a null.
    """

    def __init__(self, envelope: Envelope, with_usage: bool) -> None:
        self._envelope, self._form = envelope, envelope.form
        self._with_usage = with_usage
        shared = orjson.dumps(envelope.fields(self._form.chunk))[:-1]
        self._begin = b"data: " + shared + b',"choices":'
        self._end = (b',"usage":null' if with_usage else b"") + b"}\n\n"
        self._written: dict[int, int] = {}  # characters of each choice that has begun

    def piece(self, index: int, piece: Piece) -> bytes:
        """The chunk of a piece of a choice."""
        offset = self._written.get(index, 0)
        choice = {"index": index, **self._form.delta(piece, index not in self._written, offset)}
        self._written[index] = offset + len(piece.text)
        return b"".join((self._begin, b"[", orjson.dumps(choice), b"]", self._end))

    def final(self, index: int, final: Final) -> bytes:
        """The chunks that end a choice."""
        parts = []
        if final.text or final.logprobs or index not in self._written:
            parts.append(self.piece(index, Piece(final.text, final.logprobs)))
        choice = {"index": index, **self._form.end(final)}
        choice_bytes, more = orjson.dumps(choice), orjson.dumps(echolm_fields(final))
        parts.append(b"".join((self._begin, b"[", choice_bytes, b'],"echolm":', more, self._end)))
        return b"".join(parts)

    def usage(self, prompts: Sequence[Final], finals: Sequence[Final]) -> bytes:
        """The chunk of the token counts; empty if it is not wanted."""
        if not self._with_usage:
            return b""
        counts = orjson.dumps(usage(prompts, finals))
        return b"".join((self._begin, b'[],"usage":', counts, b"}\n\n"))


def error_event(body: bytes) -> bytes:
    """The event by which a stream that has begun ends with an error."""
    return b"event: error\ndata: " + body + b"\n\n"


def _logprobs(content: bytes) -> Mapping[str, Any] | None:
    return {"content": _read(content), "refusal": None} if content else None


def _text_logprobs(content: bytes, offset: int) -> Mapping[str, Any] | None:
    """Tokens in the form of ``/v1/completions``."""
    if not content:
        return None
    tokens = _read(content)
    texts = [token["token"] for token in tokens]
    # The token that was generated is among the likely ones there.
    likely = [{one["token"]: one["logprob"] for one in (t, *t["top_logprobs"])} for t in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": likely,
        "text_offset": list(accumulate(map(len, texts[:-1]), initial=offset)),
    }


def _read(json: bytes) -> Any:
    try:
        return orjson.loads(json)
    except orjson.JSONDecodeError as error:
        raise UnavailableError("the LLM's answer: expected JSON, got what is not") from error
