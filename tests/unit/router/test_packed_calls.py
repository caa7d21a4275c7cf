"""What router and front door tell each other byte by byte."""

from __future__ import annotations

import struct

import pytest
from echolm.errors import InvalidRequestError
from echolm.llm.triton_client import EncodedInput, LLMCall, Reading
from echolm.primitives import Completion, Report
from echolm.router.packed import CallPacker, unpack_report
from echolm.settings import Settings

SETTINGS = Settings(
    limits={"max_in_flight": 7, "request_timeout_s": 1.5, "stream_interval_ms": 12.5},
    retrieval={"batches_in_flight": 3, "timeout_s": 0.25},
)


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def test_a_call_is_packed_as_the_front_door_reads_it() -> None:
    inputs = (
        EncodedInput("text_input", "BYTES", (1,), text(b"hello")),
        EncodedInput("max", "INT32", (1, 1), struct.pack("<i", 9)),
    )
    call = LLMCall("llm", inputs, Reading(stop=("\N{SNOWMAN}", "b"), counts_add=True), gathers=True)
    assert CallPacker(SETTINGS).pack(call, 9) == b"".join(
        [
            struct.pack("<iiiid", 7, 3, 250, 1500, 12.5),
            struct.pack("<Bi", 2 + 4, 9),
            struct.pack("<I", 2),
            text("\N{SNOWMAN}".encode()),
            text(b"b"),
            struct.pack("<I", 2),
            text(b"text_input"),
            text(b"BYTES"),
            struct.pack("<Iq", 1, 1),
            text(text(b"hello")),
            text(b"max"),
            text(b"INT32"),
            struct.pack("<Iqq", 2, 1, 1),
            text(struct.pack("<i", 9)),
        ]
    )


def test_a_plan_without_a_call_has_the_settings_all_the_same() -> None:
    head = struct.pack("<iiiid", 7, 3, 250, 1500, 12.5)
    assert CallPacker(SETTINGS).nothing == head + struct.pack("<BiII", 0, 0, 0, 0)


PACKED = b"".join(
    [
        b"\x01",
        text(b"id"),
        text(b"small"),
        text(b"cut \xe2\x98"),
        text(b"stop"),
        struct.pack("<iidddd", 3, -1, 0.1, 0.2, -1.0, 0.4),
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
