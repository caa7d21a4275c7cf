"""What router and front door tell each other, as bytes: calls of LLMs, and what came of them.

All numbers are little-endian. A text is its length in bytes, u32, and its UTF-8; a list is its
length, u32, and its elements. ``front_door/protocol.h`` reads and writes the same.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

from echolm.errors import InvalidRequestError
from echolm.llm.triton_client import EncodedInput, LLMCall
from echolm.primitives import Completion, Report
from echolm.settings import Settings

_KINDS: tuple[Literal["answered", "failed", "ended"], ...] = ("answered", "failed", "ended")
_CUMULATIVE, _COUNTS_ADD, _GATHERS = 1, 2, 4


class CallPacker:
    """Packs calls of LLMs, each after the settings that the front door obeys from then on.

    ::

        i32  limits.max_in_flight
        i32  retrieval.batches_in_flight
        i32  retrieval.timeout_s in milliseconds
        i32  limits.request_timeout_s in milliseconds
        f64  limits.stream_interval_ms
        u8   flags: 1 cumulative, 2 counts_add, 4 gathers
        i32  most new tokens
        list of stop words to cut at
        list of inputs: name, datatype, list of i64 (the shape), raw contents
    """

    def __init__(self, settings: Settings) -> None:
        limits, retrieval = settings.limits, settings.retrieval
        self._head = struct.pack(
            "<iiiid",
            limits.max_in_flight,
            retrieval.batches_in_flight,
            _ms(retrieval.timeout_s),
            _ms(limits.request_timeout_s),
            limits.stream_interval_ms,
        )
        self.nothing = self._head + struct.pack("<BiII", 0, 0, 0, 0)
        """For a plan that calls no LLM."""

    def pack(self, call: LLMCall, max_tokens: int) -> bytes:
        """One call."""
        reading = call.reading
        flags = _CUMULATIVE * reading.cumulative + _COUNTS_ADD * reading.counts_add
        flags += _GATHERS * call.gathers
        words = [_text(word.encode()) for word in reading.stop]
        inputs = [_input(one) for one in call.inputs]
        parts = [self._head, struct.pack("<Bi", flags, max_tokens), *_list(words), *_list(inputs)]
        return b"".join(parts)


def _ms(seconds: float) -> int:
    return min(int(seconds * 1_000), 2**31 - 1)


def _text(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "little") + raw


def _list(elements: Sequence[bytes]) -> list[bytes]:
    return [len(elements).to_bytes(4, "little"), *elements]


def _input(one: EncodedInput) -> bytes:
    shape = struct.pack(f"<I{len(one.shape)}q", len(one.shape), *one.shape)
    return _text(one.name.encode()) + _text(one.datatype.encode()) + shape + _text(one.raw)


_NUMBERS = struct.Struct("<iiddddB")


def unpack_report(packed: bytes) -> Report:
    """A report.

    ::

        u8   kind: 0 answered, 1 failed, 2 ended
        text request id, LLM, answer, finish reason
        i32  input tokens, output tokens
        f64  selection_s, generation_s, first_token_s, total_s
        u8   refused
        text reason

    Raises:
        InvalidRequestError: the bytes are no report.
    """
    try:
        kind, at = _KINDS[packed[0]], 1
        texts = []
        for _ in range(4):
            text, at = _read_text(packed, at)
            texts.append(text)
        request_id, llm, text, finish_reason = texts
        tokens_in, tokens_out, selection_s, generation_s, first_token_s, total_s, refused = (
            _NUMBERS.unpack_from(packed, at)
        )
        reason, _ = _read_text(packed, at + _NUMBERS.size)
    except (IndexError, struct.error) as error:
        expected = "what a front door of this version packs"
        raise InvalidRequestError.of("report", expected, f"{len(packed)} other bytes") from error
    return Report(
        kind,
        request_id,
        llm,
        Completion(text, finish_reason, tokens_in, tokens_out),
        selection_s,
        generation_s,
        first_token_s,
        total_s,
        bool(refused),
        reason,
    )


def _read_text(packed: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<I", packed, at)
    start, end = at + 4, at + 4 + size
    if end > len(packed):
        raise IndexError
    # An LLM's answer may be cut in a character; nothing is lost for it.
    return packed[start:end].decode("utf-8", "replace"), end
