"""What router and front door tell each other byte by byte."""

from __future__ import annotations

import struct

import pytest
from echolm.errors import InvalidRequestError
from echolm.llm.triton_client import EncodedInput, LLMCall, Reading
from echolm.primitives import Completion, Plan, Report, Sampling
from echolm.router.packed import PlanPacker, unpack_report
from echolm.settings import Settings

SETTINGS = Settings(
    limits={"max_in_flight": 7, "request_timeout_s": 1.5, "stream_interval_ms": 12.5},
    retrieval={"batches_in_flight": 3, "timeout_s": 0.25},
)
NUMBERS = (7, 3, 250, 1500, 12.5)
PLAN = Plan("id", "small", "prompt", Sampling(9), False, (4, 2), 0.5, True, "token", "no examples")


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def tensor(name: bytes, datatype: bytes, contents: bytes, size: int = 1) -> bytes:
    return text(name) + text(datatype) + struct.pack("<Iq", 1, size) + text(contents)


def outputs(llm: bytes, reason: bytes, count: int, rule: int) -> bytes:
    return b"".join(
        [
            struct.pack("<I", 9),
            b"\0" + tensor(b"llm", b"BYTES", text(llm)),
            b"\0" + tensor(b"example_ids", b"INT64", struct.pack("<qq", 4, 2), 2),
            b"\0" + tensor(b"predicted_quality", b"FP32", struct.pack("<f", 0.5)),
            b"\0" + tensor(b"solicit_feedback", b"BOOL", b"\1"),
            b"\0" + tensor(b"feedback_token", b"BYTES", text(b"token")),
            b"\0" + tensor(b"degraded", b"BYTES", text(b"no examples")),
            b"\1" + tensor(b"finish_reason", b"BYTES", text(reason)),
            b"\1" + tensor(b"num_input_tokens", b"INT32", struct.pack("<i", count)),
            bytes([rule]) + tensor(b"num_output_tokens", b"INT32", struct.pack("<i", count)),
        ]
    )


def test_a_plan_is_packed_as_the_front_door_reads_it() -> None:
    inputs = (
        EncodedInput("text_input", "BYTES", (1,), text(b"hello")),
        EncodedInput("max", "INT32", (1, 1), struct.pack("<i", 9)),
    )
    reading = Reading(stop=("\N{SNOWMAN}", "", "b"), counts_add=True)
    assert PlanPacker(SETTINGS).pack(PLAN, LLMCall("model", inputs, reading, gathers=True)) == (
        b"".join(
            [
                struct.pack("<iiiiiidBB6x", 0, 9, *NUMBERS, 0, 1),
                text(b"id"),
                text(b"small"),
                text(b"model"),
                text(b""),
                struct.pack("<I", 2),
                text("\N{SNOWMAN}".encode()),
                text(b"b"),
                struct.pack("<I", 2),
                tensor(b"text_input", b"BYTES", text(b"hello")),
                text(b"max"),
                text(b"INT32"),
                struct.pack("<Iqq", 2, 1, 1),
                text(struct.pack("<i", 9)),
                outputs(b"small", b"", -1, 3),
            ]
        )
    )


def test_an_llm_that_repeats_its_text_and_says_why_it_ends() -> None:
    call = LLMCall("model", (), Reading(cumulative=True), gathers=False)
    packed = PlanPacker(SETTINGS).pack(PLAN, call)
    assert packed.startswith(struct.pack("<iiiiiidBB6x", 0, -1, *NUMBERS, 1, 0))
    assert packed.endswith(outputs(b"small", b"", -1, 1))


def test_what_a_stream_brings_piece_by_piece_is_joined() -> None:
    sampling = Sampling(9, logprobs=True, top_logprobs=0, tools="[]x")
    plan = Plan(**{**vars(PLAN), "sampling": sampling})
    packed = PlanPacker(SETTINGS).pack(plan, LLMCall("model", (), Reading(), gathers=False))
    assert packed.endswith(
        b"\4"
        + tensor(b"tool_calls", b"BYTES", text(b""))
        + b"\4"
        + tensor(b"logprobs", b"BYTES", text(b""))
        + b"\1"
        + tensor(b"cum_log_probs", b"FP32", b"", 0)
        + b"\2"
        + text(b"output_log_probs")
        + text(b"FP32")
        + struct.pack("<Iqq", 2, 1, 0)
        + text(b"")
    )


def test_a_plan_that_calls_no_llm() -> None:
    stored = Plan(**{**vars(PLAN), "llm": "stored", "text": "as before"})
    assert PlanPacker(SETTINGS).pack(stored, None) == b"".join(
        [
            struct.pack("<iiiiiidBB6x", 0, -1, *NUMBERS, 0, 0),
            *map(text, (b"id", b"stored", b"", b"as before")),
            struct.pack("<II", 0, 0),
            outputs(b"stored", b"stop", 0, 1),
        ]
    )


@pytest.mark.parametrize(
    ("status", "number"),
    [("INVALID_ARG", 3), ("UNAVAILABLE", 4), ("CANCELLED", 7), ("CONFIGURATION", 1)],
)
def test_a_refusal_says_what_the_client_gets(status: str, number: int) -> None:
    assert PlanPacker(SETTINGS).refusal(status, "[code] no") == b"".join(
        [
            struct.pack("<iiiiiidBB6x", number, -1, *NUMBERS, 0, 0),
            *map(text, (b"", b"", b"", b"[code] no")),
            struct.pack("<III", 0, 0, 0),
        ]
    )


PACKED = b"".join(
    [
        b"\x01",
        text(b"id"),
        text(b"small"),
        text(b"cut \xe2\x98"),
        text(text(b"stop")),
        text(struct.pack("<i", 3)),
        text(struct.pack("<i", -1)),
        struct.pack("<dddd", 0.1, 0.2, -1.0, 0.4),
        b"\x01",
        text(b"too long"),
    ]
)


def test_a_report_is_read_as_the_front_door_packs_it() -> None:
    completion = Completion("cut \N{REPLACEMENT CHARACTER}", "stop", 3, -1)
    assert unpack_report(PACKED) == Report(
        "failed", "id", "small", completion, 0.1, 0.2, -1.0, 0.4, True, "too long"
    )


@pytest.mark.parametrize("cut", range(len(PACKED)))
def test_a_report_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(InvalidRequestError, match="report: expected what a front door"):
        unpack_report(PACKED[:cut])


def test_a_report_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="report"):
        unpack_report(b"\x07" + PACKED[1:])
