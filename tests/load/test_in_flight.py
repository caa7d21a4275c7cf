"""500 requests in flight at once over one gRPC channel: all answered, none lost."""

from __future__ import annotations

import queue
from collections import Counter
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from echolm.serving import Endpoints
from triton_calls import Caller, eventually, inputs, samples, streams

pytestmark = pytest.mark.timeout(240)

NUMBER = 500


def row(number: int, **options: Any) -> dict[str, Any]:
    """A request that takes little of the LLM, and of which nothing is stored."""
    return {
        "text_input": f"request {number}",
        "llm": "small_llm",
        "max_tokens": 32,
        "cache_control": "no-cache",
        **options,
    }


def test_500_requests_in_flight_are_all_answered(server: Endpoints) -> None:
    caller = Caller(server)
    arrived: queue.Queue[tuple[int, Any, Any]] = queue.Queue()

    def send(number: int) -> None:
        caller.client.async_infer(
            "echolm",
            inputs(grpcclient, [row(number)]),
            lambda result, error: arrived.put((number, result, error)),
            request_id=str(number),
        )

    for number in range(NUMBER):
        send(number)
    assert arrived.qsize() < NUMBER, "all answered before the last was sent: never in flight"
    answers = [arrived.get(timeout=120) for _ in range(NUMBER)]

    assert [error for _, _, error in answers if error is not None] == []
    assert sorted(number for number, _, _ in answers) == list(range(NUMBER))
    assert all(result.get_response().id == str(number) for number, result, _ in answers)
    assert all(result.as_numpy("text_output").item() for _, result, _ in answers)
    assert {result.as_numpy("degraded").item() for _, result, _ in answers} == {b""}
    tokens = {result.as_numpy("feedback_token").item() for _, result, _ in answers}
    assert len(tokens) == NUMBER
    assert eventually(lambda: samples(server, "echolm_in_flight") == 0)
    assert arrived.empty(), "answered twice"


def test_500_streams_in_flight_all_come_to_their_end(server: Endpoints) -> None:
    with streams(server) as (client, arrived):
        for number in range(NUMBER):
            client.async_stream_infer(
                "echolm_stream",
                inputs(grpcclient, [row(number, stream=True)]),
                request_id=str(number),
                enable_empty_final_response=True,
            )
        ends: Counter[str] = Counter()
        pieces: Counter[str] = Counter()
        while ends.total() < NUMBER:
            result, error = arrived.get(timeout=120)
            assert error is None
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                ends[response.id] += 1
                assert result.as_numpy("feedback_token").item()
            else:
                assert response.id not in ends, "a piece after the end"
                pieces[response.id] += 1
        assert eventually(lambda: samples(server, "echolm_in_flight") == 0)
        assert arrived.empty()
    everyone = {str(number) for number in range(NUMBER)}
    assert set(ends) == set(pieces) == everyone
    assert set(ends.values()) == {1}
