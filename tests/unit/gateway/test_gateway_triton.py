"""Triton behind the gateway: how its tensors and errors are read."""

from __future__ import annotations

import socket
import struct

import pytest
from echolm.errors import ContextLengthError, EchoError, InvalidRequestError, UnavailableError
from echolm.gateway.triton import TritonBackend, _final, _of_text, _request


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


async def test_a_triton_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:  # bound, so that nobody else is, and not listening
        taken.bind(("127.0.0.1", 0))
        backend = TritonBackend(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UnavailableError):
            await backend.answer({"text_input": "a"})
        with pytest.raises(UnavailableError):
            await anext(backend.stream({"text_input": "a"}))
        with pytest.raises(UnavailableError):
            await backend.embed(["a"])
        assert not await backend.is_ready()
        await backend.close()


def test_inputs_are_packed_by_their_types() -> None:
    inputs = {
        "messages": b"[]",
        "stop_words": ["a", "öl"],
        "seed": 2**64 - 1,
        "max_tokens": 7,
        "temperature": 1,
        "stream": True,
    }
    request = _request("echolm", inputs)
    found = {
        tensor.name: (tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    assert found == {
        "messages": ("BYTES", [1, 1], text("[]")),
        "stop_words": ("BYTES", [1, 2], text("a") + text("öl")),
        "seed": ("UINT64", [1, 1], b"\xff" * 8),
        "max_tokens": ("INT32", [1, 1], b"\7\0\0\0"),
        "temperature": ("FP32", [1, 1], struct.pack("<f", 1.0)),
        "stream": ("BOOL", [1, 1], b"\1"),
    }


def test_outputs_are_read() -> None:
    final = _final(
        {
            "text_output": text("öl"),
            "llm": text("small_llm"),
            "example_ids": struct.pack("<2q", 7, -1),
            "predicted_quality": struct.pack("<f", 0.5),
            "solicit_feedback": b"\1",
            "feedback_token": text("t"),
            "degraded": text(""),
            "finish_reason": text("stop"),
            "num_input_tokens": struct.pack("<i", -1),
            "num_output_tokens": struct.pack("<i", 3),
        }
    )
    assert (final.text, final.llm, final.example_ids) == ("öl", "small_llm", (7, -1))
    assert (final.predicted_quality, final.solicit_feedback) == (0.5, True)
    assert (final.num_input_tokens, final.num_output_tokens) == (-1, 3)
    assert (final.tool_calls, final.logprobs) == (b"", b"")


@pytest.mark.parametrize(
    ("message", "refused", "kind"),
    [
        ("[invalid_request] stop_words: too many", False, InvalidRequestError),
        ("[request id: 7] [context_length] small_llm: too long", True, ContextLengthError),
        ("[unavailable] large_llm: down", False, UnavailableError),
        ("[internal] internal error: KeyError", False, EchoError),
        ("unexpected shape for input", True, InvalidRequestError),
        ("something else", False, UnavailableError),
    ],
)
def test_errors_are_read(message: str, refused: bool, kind: type[EchoError]) -> None:
    error = _of_text("echolm", message, refused)
    assert type(error) is kind
    assert "[" not in str(error)
