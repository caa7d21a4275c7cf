"""The model ``echolm_stream`` end to end: answers that come in pieces."""

from __future__ import annotations

import http.client
import json
import queue
import urllib.error
import urllib.request
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
from echolm import contracts
from echolm.serving import Endpoints
from echolm_lab.tasks import Workload
from triton_calls import Caller, Result, eventually, inputs, outputs, samples, streams, text

pytestmark = pytest.mark.timeout(240)

FORCED: dict[str, Any] = {"llm": "large_llm", "cache_control": "no-cache", "max_tokens": 24}
REQUEST = Workload(seed=0).stream(1, seed=11)[0].text


def send(client: Any, request_id: str = "", **row: Any) -> None:
    client.async_stream_infer(
        "echolm_stream",
        inputs(grpcclient, [row]),
        request_id=request_id,
        enable_empty_final_response=True,
    )


def is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def receive(arrived: queue.Queue[Any]) -> tuple[list[str], Result]:
    """The pieces of one answer, and the outputs of its last response."""
    pieces: list[str] = []
    while True:
        result, error = arrived.get(timeout=60)
        assert error is None, error
        found = outputs(result, contracts.ECHOLM_STREAM)
        if is_final(result):
            return pieces, found
        assert set(found) == {"text_output"}
        pieces.append(text(found, "text_output"))


def test_the_pieces_are_the_answer_and_the_end_says_the_rest(server: Endpoints) -> None:
    whole = Caller(server).ask(REQUEST, **FORCED)
    with streams(server) as (client, arrived):
        send(client, text_input=REQUEST, stream=True, **FORCED)
        pieces, last = receive(arrived)
    assert "".join(pieces) == text(whole, "text_output")
    assert len(pieces) > 1  # how many depends on the LLM's speed, since pieces gather
    assert all(pieces)
    assert set(last) == {t.name for t in contracts.ECHOLM_STREAM.outputs} - {
        t.name for t in (*contracts.LOG_PROBS, *contracts.OPENAI_OUTPUTS)
    }
    assert text(last, "text_output") == ""
    for name in ("llm", "finish_reason", "num_input_tokens", "num_output_tokens", "degraded"):
        assert text(last, name) == text(whole, name)
    assert Caller(server).rate(last["feedback_token"].item(), score=0.5)


def test_without_stream_there_is_one_response(server: Endpoints) -> None:
    with streams(server) as (client, arrived):
        send(client, text_input=REQUEST, **FORCED)
        pieces, last = receive(arrived)
    assert pieces == []
    assert text(last, "text_output")


def test_answers_of_one_connection_are_told_apart_by_their_ids(server: Endpoints) -> None:
    got: dict[str, list[str]] = {f"r{n}": [] for n in range(8)}
    finished: set[str] = set()
    with streams(server) as (client, arrived):
        for n, name in enumerate(got):
            options = {**FORCED, "max_tokens": 4 + n}
            send(client, name, text_input=f"request {n}", stream=True, **options)
        while len(finished) < len(got):
            result, error = arrived.get(timeout=60)
            assert error is None, error
            name = result.get_response().id
            assert name not in finished
            if is_final(result):
                finished.add(name)
            else:
                got[name].append(text(outputs(result, contracts.ECHOLM), "text_output"))
    for n, pieces in enumerate(got.values()):
        options = {**FORCED, "max_tokens": 4 + n}
        expected = text(Caller(server).ask(f"request {n}", **options), "text_output")
        assert "".join(pieces) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text_input": ""}, "text_input: expected text that is not empty"),
        ({"text_input": "x", "max_tokens": 0}, "max_tokens: expected 1 to"),
        ({"text_input": "x", "llm": "nobody"}, "llm: expected 'auto' or one of"),
        ({"text_input": b"\xff"}, "text_input: expected UTF-8"),
    ],
)
def test_a_bad_request_gets_one_error_and_the_stream_goes_on(
    server: Endpoints, row: dict[str, Any], message: str
) -> None:
    with streams(server) as (client, arrived):
        send(client, stream=True, **row)
        _, error = arrived.get(timeout=60)
        assert message in str(error)
        send(client, text_input=REQUEST, stream=True, **FORCED)
        while True:  # the error's own end may come first
            result, error = arrived.get(timeout=60)
            assert error is None
            if outputs(result, contracts.ECHOLM):
                break


def test_a_stream_has_one_request_at_a_time(server: Endpoints) -> None:
    with streams(server) as (client, arrived):
        rows = [{"text_input": "a", "stream": True}, {"text_input": "b", "stream": True}]
        client.async_stream_infer("echolm_stream", inputs(grpcclient, rows))
        _, error = arrived.get(timeout=60)
    assert "expected one request for echolm_stream, got 2" in str(error)


def events(server: Endpoints, **body: Any) -> list[dict[str, Any]]:
    """What ``generate_stream`` sends, an object per server-sent event."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/echolm_stream/generate_stream",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as page:
        assert page.headers["Content-Type"].startswith("text/event-stream")
        lines = page.read().decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_generate_stream_sends_the_pieces_as_events(server: Endpoints) -> None:
    found = events(server, text_input=REQUEST, stream=True, **FORCED)
    assert len(found) > 2  # the last has no text
    whole = text(Caller(server).ask(REQUEST, **FORCED), "text_output")
    assert "".join(event["text_output"] for event in found) == whole
    assert found[-1]["llm"] == "large_llm"
    assert found[-1]["feedback_token"]


def test_generate_stream_tells_an_error(server: Endpoints) -> None:
    try:
        [event] = events(server, text_input="", stream=True)
        message = event["error"]
    except urllib.error.HTTPError as error:
        assert 400 <= error.code < 500
        message = error.read().decode()
    assert "text_input: expected text that is not empty" in message


def long_answers(number: int) -> list[dict[str, Any]]:
    """Requests whose answers do not end by themselves: the LLM rambles."""
    options = {**FORCED, "max_tokens": 1_000, "temperature": 5.0, "stream": True}
    return [{"text_input": f"{REQUEST} {n}", **options} for n in range(number)]


def test_a_client_that_closes_its_stream_stops_the_generations(server: Endpoints) -> None:
    before = samples(server, "echolm_llm_cancelled_total", model="large_llm")
    with streams(server) as (client, arrived):
        for row in long_answers(8):
            send(client, **row)
        arrived.get(timeout=60)
        assert eventually(lambda: samples(server, "echolm_llm_in_flight", model="large_llm") == 8)
    assert eventually(lambda: samples(server, "echolm_llm_in_flight") == 0)
    assert eventually(lambda: samples(server, "echolm_in_flight") == 0)
    assert samples(server, "echolm_llm_cancelled_total", model="large_llm") - before == 8


def test_a_client_that_leaves_generate_stream_stops_the_generation(server: Endpoints) -> None:
    before = samples(server, "echolm_llm_cancelled_total", model="large_llm")
    [row] = long_answers(1)
    connection = http.client.HTTPConnection(server.http_address, timeout=60)
    connection.request(
        "POST",
        "/v2/models/echolm_stream/generate_stream",
        json.dumps(row),
        {"Content-Type": "application/json"},
    )
    connection.getresponse().read(20)
    connection.close()
    assert eventually(
        lambda: samples(server, "echolm_llm_cancelled_total", model="large_llm") == before + 1
    )
    assert eventually(lambda: samples(server, "echolm_llm_in_flight") == 0)


def test_100_streams_at_once_all_end(server: Endpoints) -> None:
    options = {**FORCED, "llm": "small_llm", "max_tokens": 3, "stream": True}
    with streams(server) as (client, arrived):
        for n in range(100):
            send(client, f"r{n}", text_input=f"request {n}", **options)
        ended: set[str] = set()
        while len(ended) < 100:
            result, error = arrived.get(timeout=60)
            assert error is None
            if is_final(result):
                ended.add(result.get_response().id)
