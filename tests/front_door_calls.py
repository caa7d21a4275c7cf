"""Calls to the front door of ``tests/front_door.py``."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from front_door import FrontDoor, plan, tensors
from triton_calls import eventually
from tritonclient.utils import InferenceServerException

names = iter(f"request {n}" for n in range(10**9))


def script(*plans: dict[str, Any], **row: Any) -> dict[str, Any]:
    """What a request's text tells the models, under a name of its own."""
    return {"name": next(names), "plans": list(plans), **row}


@contextlib.contextmanager
def obeying(door: FrontDoor, **settings: Any) -> Iterator[None]:
    """Within it the front door has these settings, which come with each LLM call."""

    def send(**wanted: Any) -> None:
        door.ask(script({**plan(), "settings": wanted}))
        Stream(door, script({**plan(), "settings": wanted})).rest()

    send(**settings)
    try:
        yield
    finally:
        send()


class Later:
    """A request whose answer is waited for later."""

    def __init__(self, door: FrontDoor, *scripts: dict[str, Any], **options: Any) -> None:
        self._arrived: queue.Queue[Any] = queue.Queue()
        self._client = door.client()
        self._call = self._client.async_infer(
            options.pop("model", "echolm"),
            tensors(*scripts, **options),
            lambda result, error: self._arrived.put((result, error)),
        )

    def cancel(self) -> None:
        self._call.cancel()

    def result(self) -> Any:
        """The answer; raises what the client gets."""
        result, error = self._arrived.get(timeout=60)
        if error is not None:
            raise error
        return result


def is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


class Stream:
    """A request to ``echolm_stream`` whose pieces are wanted."""

    def __init__(self, door: FrontDoor, *rows: dict[str, Any], stream: bool = True) -> None:
        self.arrived: queue.Queue[Any] = queue.Queue()
        self._client = door.client()
        self._client.start_stream(lambda result, error: self.arrived.put((result, error)))
        self._client.async_stream_infer(
            "echolm_stream", tensors(*rows, stream=stream), enable_empty_final_response=True
        )

    def next(self) -> Any:
        """The next response; raises what the client gets, which is the last then."""
        result, error = self.arrived.get(timeout=60)
        if error is not None:
            self._client.stop_stream()
            raise error
        return result

    def rest(self) -> tuple[list[str], Any]:
        """Texts of the pieces still to come, and the last response."""
        *pieces, last = self.responses()
        assert all(piece.as_numpy("llm") is None for piece in pieces)
        return [piece.as_numpy("text_output").item().decode() for piece in pieces], last

    def responses(self) -> list[Any]:
        """All responses still to come."""
        found = [self.next()]
        while not is_final(found[-1]):
            found.append(self.next())
        self._client.stop_stream()
        return found

    def leave(self) -> None:
        """Go away without waiting for the rest.

        Triton 2.51 never frees a request whose stream is cancelled after its last response, be the
        model ours or not, and then waits for it when it stops; so a complete one is only closed.
        """
        complete = False
        with contextlib.suppress(queue.Empty):
            while not complete:
                result, error = self.arrived.get_nowait()
                complete = error is not None or is_final(result)
        self._client.stop_stream(cancel_requests=not complete)


def outcome(call: Callable[[], Any]) -> str:
    """The error that a call ends with, if any."""
    try:
        call()
    except InferenceServerException as error:
        return str(error)
    return ""


@contextlib.contextmanager
def http_stream(door: FrontDoor, row: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
    """A request over HTTP that wants pieces; the client leaves at the end of the block."""
    connection = http.client.HTTPConnection(door.http_address)
    body = json.dumps({"text_input": json.dumps(row), "stream": True})
    connection.request("POST", "/v2/models/echolm_stream/generate_stream", body)
    try:
        yield connection
    finally:
        connection.close()


def storm(door: FrontDoor, count: int, seed: int) -> None:
    """Requests of all kinds, many of them cancelled at any time; all must be accounted for.

    Streams are left over HTTP: Triton 2.51 frees twice what it writes to a gRPC stream that is
    cancelled meanwhile, be the model ours or not.
    """
    draw = random.Random(seed)
    rows = []

    def one(n: int, delay_s: float, row: dict[str, Any]) -> None:
        if n % 4 == 0:
            outcome(Stream(door, row).rest)
        elif n % 4 == 1:
            outcome(Later(door, row).result)
        elif n % 4 == 2:
            later = Later(door, row)
            time.sleep(delay_s)
            later.cancel()
            outcome(later.result)
        else:
            with http_stream(door, row):
                time.sleep(delay_s)

    threads: list[threading.Thread] = []
    for n in range(count):
        pieces = [f"{i} " for i in range(draw.randrange(1, 12))]
        made = plan("alpha", pieces=pieces, delay_s=draw.choice([0, 0.001, 0.01]))
        kinds = [
            [made],
            [plan("alpha", fail=0), plan("beta", pieces=pieces, delay_s=0.002)],
            [plan("alpha", pieces=pieces, fail=1, delay_s=0.005), plan("unary")],
            [{**made, "stop": ["3"]}],
            [{"stored": "x"}],
        ]
        selection = draw.choice(["", "", "", "error"])
        row = script(*draw.choice(kinds), selection=selection)
        rows.append(row)
        delay_s = draw.choice([0.0, 0.005, 0.02, 0.05, 0.1])
        threads.append(threading.Thread(target=one, args=(n, delay_s, row)))
        threads[-1].start()
        time.sleep(draw.choice([0.0, 0.002]))
        while sum(thread.is_alive() for thread in threads) > 32:
            time.sleep(0.005)
    for thread in threads:
        thread.join()
    mine = {row["name"] for row in rows}

    def unfinished() -> set[str]:
        given = {e["request_id"] for e in door.events(event="id") if e["name"] in mine}
        lost = {r["request_id"] for r in door.events("router", "report", kind=1)}
        refused = {i for i in lost if not (door.folder / "plans" / i).exists()}
        return {i for i in given if door.ends()[i] != 1 and i not in refused}

    assert eventually(lambda: not unfinished()), unfinished()
    # What remained in flight would count.
    with obeying(door, max_in_flight=1):
        pass
    ends = door.ends()
    assert max(ends[i] for row in rows for i in door.ids(row["name"])) <= 1
