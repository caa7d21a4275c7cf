"""Both clients over the fake transports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from echolm_client import (
    AsyncClient,
    AsyncFakeTransport,
    Client,
    FakeTransport,
    InvalidRequest,
    Unavailable,
)
from echolm_client._protocol import Call, Outputs


def text(value: str) -> np.ndarray[Any, Any]:
    return np.array([[value.encode()]], dtype=object)


def scripted(call: Call) -> Iterator[Outputs]:
    """Answers in pieces where asked to; fails half-way on the text ``bad``."""
    if call.model == "feedback":
        yield {"accepted": np.array([[True]])}
        return
    asked = call.inputs[0].array[0, 0].decode()
    pieces = ["a", "", "b"] if call.model == "echolm_stream" else ["ab"]
    for i, piece in enumerate(pieces):
        if asked == "bad" and i == len(pieces) - 1:
            raise InvalidRequest("text_input: bad")
        last = i == len(pieces) - 1
        yield {
            "text_output": text(piece),
            "finish_reason": text("stop" if last else ""),
            "feedback_token": text("t" if last else ""),
        }


class Unreachable(FakeTransport):
    def is_ready(self, model: str, timeout: float | None) -> bool:
        raise Unavailable("no connection")


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport(scripted, page='nv_inference_count{model="echolm"} 3\n')


@pytest.fixture
def client(transport: FakeTransport) -> Client:
    return Client(transport=transport)


def test_generate_rate_prefer_stats(client: Client, transport: FakeTransport) -> None:
    answer = client.generate("hi", max_tokens=3)
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    assert answer.latency_s > 0
    assert client.rate(answer, 0.5) and client.prefer(answer, "other")
    assert [call.model for call in transport.calls] == ["echolm", "feedback", "feedback"]
    assert client.stats().inferences == {"echolm": 3}


def test_a_stream_gives_pieces_then_the_answer(client: Client) -> None:
    with client.stream("hi") as stream:
        with pytest.raises(RuntimeError, match="all pieces"):
            _ = stream.answer
        assert list(stream) == ["a", "b"]
        assert list(stream) == []
    assert (stream.answer.text, stream.answer.feedback_token) == ("ab", "t")


def test_leaving_a_stream_early_cancels_it(client: Client, transport: FakeTransport) -> None:
    with client.stream("hi") as stream:
        assert next(stream) == "a"
    assert transport.cancelled == 1
    assert list(stream) == []
    with pytest.raises(RuntimeError):
        _ = stream.answer


def test_a_stream_that_fails_half_way_has_no_answer(client: Client) -> None:
    stream = client.stream("bad")
    assert next(stream) == "a"
    with pytest.raises(InvalidRequest):
        next(stream)
    assert list(stream) == []
    with pytest.raises(RuntimeError):
        _ = stream.answer


def test_nothing_is_sent_before_the_first_piece_is_asked_for(
    client: Client, transport: FakeTransport
) -> None:
    client.stream("hi").close()
    assert transport.calls == []


def test_an_unreachable_server_is_not_ready() -> None:
    assert Client(transport=FakeTransport(scripted)).is_ready()
    assert not Client(transport=FakeTransport(scripted, ready=False)).is_ready()
    assert not Client(transport=Unreachable(scripted)).is_ready()


def test_a_closed_client_says_so_and_closes_once(client: Client, transport: FakeTransport) -> None:
    with client:
        pass
    client.close()
    assert transport.closed == 1
    calls: list[Any] = [
        lambda: client.generate("x"),
        lambda: client.stream("x"),
        lambda: client.rate("t", 1),
        client.stats,
        client.is_ready,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_asyncio_does_the_same() -> None:
    transport = AsyncFakeTransport(scripted, page='nv_inference_count{model="echolm"} 3\n')
    client = AsyncClient(transport=transport)  # outside of any event loop

    async def use() -> None:
        async with client:
            assert await client.is_ready()
            answer = await client.generate("hi")
            assert answer.text == "ab"
            assert await client.rate(answer, 1) and await client.prefer("a", "b")
            assert (await client.stats()).inferences == {"echolm": 3}
            async with client.stream("hi") as stream:
                assert [piece async for piece in stream] == ["a", "b"]
                assert [piece async for piece in stream] == []
            assert stream.answer.text == "ab"
            assert transport.sync.cancelled == 0
            async with client.stream("hi") as stream:
                async for _ in stream:
                    break
            assert transport.sync.cancelled == 1
            with pytest.raises(RuntimeError, match="all pieces"):
                _ = stream.answer
            failing = client.stream("bad")
            with pytest.raises(InvalidRequest):
                _ = [piece async for piece in failing]
            with pytest.raises(RuntimeError):
                _ = failing.answer
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.generate("x")

    asyncio.run(use())
    assert transport.sync.closed == 1
