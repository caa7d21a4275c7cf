"""What router and front door tell each other, as bytes: plans, and what came of them.

All numbers are little-endian. A text is its length in bytes, u32, and its UTF-8; a list is its
length, u32, and its elements; a tensor is its name, its type's name, its shape (a list of i64) and
its contents as a text. ``front_door/front_door.cc`` reads and writes the same.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

from echolm import contracts
from echolm.errors import InvalidRequestError
from echolm.llm.triton_client import LLMCall, Reading, read_int, read_text
from echolm.primitives import Completion, Plan, Report
from echolm.settings import Settings

_KINDS: tuple[Literal["answered", "failed", "ended"], ...] = ("answered", "failed", "ended")
_STATUS = {"INVALID_ARG": 3, "UNAVAILABLE": 4, "CANCELLED": 7}
"""Triton's numbers of an error's statuses; all others are an internal error to a client."""
_INTERNAL = 1
_HEAD = struct.Struct("<iiiiiidBB6x")
_KEEP, _REPLACE, _APPEND, _ADD, _JOIN = 0, 1, 2, 3, 4
_DATATYPES = {tensor.name: tensor.datatype for tensor in contracts.ECHOLM_OUTPUTS}
_STORED_ANSWER = Completion("", "stop", 0, 0)
_NOT_TOLD = Completion("", "")


class PlanPacker:
    """Packs plans, each with the settings that the front door obeys from then on.

    ::

        i32  0, or Triton's number of an error's status
        i32  most new tokens, where their number says why an answer ended; else -1
        i32  limits.max_in_flight
        i32  retrieval.batches_in_flight
        i32  retrieval.timeout_s in milliseconds
        i32  limits.request_timeout_s in milliseconds
        f64  limits.stream_interval_ms
        u8   whether each response of the LLM holds all of the text so far
        u8   whether the LLM's model takes ``stream_interval_ms`` and ``echolm_proof``
        six bytes of nothing
        text request id; empty: no report is wanted
        text name of the LLM
        text its model; empty: none is called
        text the error, or the answer, where no model is called
        list of stop words to cut at
        list of tensors: the inputs of the LLM's model
        list of the client's outputs besides the text: u8 rule, tensor. The tensor's dimensions,
    its last one apart, are those of the client's beside the number of rows

    A rule says what an output of the LLM of the same name and type does to the tensor here: 0
    nothing, 1 it replaces it, 2 it is appended to it, 3 (INT32 [1]) it is added to it, 4 (BYTES
    [1], JSON arrays) its elements are appended to those of the array here. What rule 4 has gathered
    goes out with the pieces of a stream, and whole otherwise.
    """

    def __init__(self, settings: Settings) -> None:
        limits, retrieval = settings.limits, settings.retrieval
        self._settings = (
            limits.max_in_flight,
            retrieval.batches_in_flight,
            _ms(retrieval.timeout_s),
            _ms(limits.request_timeout_s),
            limits.stream_interval_ms,
        )

    def refusal(self, status: str, message: str) -> bytes:
        """What makes an error of a request; ``status`` is Triton's name of the error's status."""
        head = _HEAD.pack(_STATUS.get(status, _INTERNAL), -1, *self._settings, False, False)
        return b"".join([head, *map(_text, (b"", b"", b"", message.encode())), bytes(12)])

    def pack(self, plan: Plan, call: LLMCall | None) -> bytes:
        """A plan, and the call of its LLM; None if the answer is stored."""
        reading = Reading() if call is None else call.reading
        limit = plan.sampling.max_tokens if reading.counts_add else -1
        gathers = call is not None and call.gathers
        model = "" if call is None else call.model
        inputs = () if call is None else call.inputs
        return b"".join(
            [
                _HEAD.pack(0, limit, *self._settings, reading.cumulative, gathers),
                *(_text(t.encode()) for t in (plan.request_id, plan.llm, model, plan.text)),
                *_list([_text(word.encode()) for word in reading.stop if word]),
                *_list([_tensor(i.name, i.datatype, i.shape, i.raw) for i in inputs]),
                *_list(_outputs(plan, _STORED_ANSWER if call is None else _NOT_TOLD, reading)),
            ]
        )


def _outputs(plan: Plan, completion: Completion, reading: Reading) -> list[bytes]:
    ids = plan.example_ids

    def output(rule: int, name: str, raw: bytes, *shape: int) -> bytes:
        return bytes([rule]) + _tensor(name, _DATATYPES[name], shape or (1,), raw)

    count = _ADD if reading.counts_add else _REPLACE
    outputs = [
        output(_KEEP, "llm", _text(plan.llm.encode())),
        output(_KEEP, "example_ids", struct.pack(f"<{len(ids)}q", *ids), len(ids)),
        output(_KEEP, "predicted_quality", struct.pack("<f", plan.predicted_quality)),
        output(_KEEP, "solicit_feedback", struct.pack("<?", plan.solicit_feedback)),
        output(_KEEP, "feedback_token", _text(plan.feedback_token.encode())),
        output(_KEEP, "degraded", _text(plan.degraded.encode())),
        output(_REPLACE, "finish_reason", _text(completion.finish_reason.encode())),
        output(_REPLACE, "num_input_tokens", struct.pack("<i", completion.num_input_tokens)),
        output(count, "num_output_tokens", struct.pack("<i", completion.num_output_tokens)),
    ]
    for name, wanted in (
        ("tool_calls", bool(plan.sampling.tools)),
        ("logprobs", plan.sampling.top_logprobs is not None),
    ):
        if wanted:
            outputs.append(output(_JOIN, name, _text(b"")))
    if plan.sampling.logprobs:
        # The ensemble's responses hold those of all tokens so far.
        each = _REPLACE if reading.counts_add else _APPEND
        outputs.append(output(_REPLACE, "cum_log_probs", b"", 0))
        outputs.append(output(each, "output_log_probs", b"", 1, 0))
    return outputs


def _ms(seconds: float) -> int:
    return min(int(seconds * 1_000), 2**31 - 1)


def _text(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "little") + raw


def _list(elements: Sequence[bytes]) -> list[bytes]:
    return [len(elements).to_bytes(4, "little"), *elements]


def _tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> bytes:
    dims = struct.pack(f"<I{len(shape)}q", len(shape), *shape)
    return _text(name.encode()) + _text(datatype.encode()) + dims + _text(raw)


_TIMES = struct.Struct("<ddddB")


def unpack_report(packed: bytes) -> Report:
    """A report.

    ::

        u8   kind: 0 answered, 1 failed, 2 ended
        text request id, LLM, answer
        text contents of the client's outputs finish_reason, num_input_tokens, num_output_tokens
        f64  selection_s, generation_s, first_token_s, total_s
        u8   refused
        text reason

    Raises:
        InvalidRequestError: the bytes are no report.
    """
    try:
        kind, at = _KINDS[packed[0]], 1
        fields = []
        for _ in range(6):
            field, at = _read_field(packed, at)
            fields.append(field)
        selection_s, generation_s, first_token_s, total_s, refused = _TIMES.unpack_from(packed, at)
        reason, _ = _read_field(packed, at + _TIMES.size)
    except (IndexError, struct.error) as error:
        expected = "what a front door of this version packs"
        raise InvalidRequestError.of("report", expected, f"{len(packed)} other bytes") from error
    request_id, llm, text, finish_reason, tokens_in, tokens_out = fields
    return Report(
        kind,
        _decode(request_id),
        _decode(llm),
        Completion(
            _decode(text), read_text(finish_reason), read_int(tokens_in), read_int(tokens_out)
        ),
        selection_s,
        generation_s,
        first_token_s,
        total_s,
        bool(refused),
        _decode(reason),
    )


def _decode(raw: bytes) -> str:
    # An LLM's answer may be cut in a character; nothing is lost for it.
    return raw.decode("utf-8", "replace")


def _read_field(packed: bytes, at: int) -> tuple[bytes, int]:
    (size,) = struct.unpack_from("<I", packed, at)
    start, end = at + 4, at + 4 + size
    if end > len(packed):
        raise IndexError
    return packed[start:end], end
