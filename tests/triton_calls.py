"""Calls to EchoLM with plain tritonclient, as a user's program makes them."""

from __future__ import annotations

import json
import queue
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from echolm import contracts
from echolm.internal_calls import ASKED, PROOF
from echolm.serving import Endpoints
from echolm.serving.attach import running_settings
from echolm.wiring.internal_calls import build_call_proofs
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

Result = dict[str, NDArray[Any]]

_SPECS = {
    t.name: t
    for t in (
        *contracts.ECHOLM.inputs,
        *contracts.FEEDBACK.inputs,
        *contracts.EXAMPLE_MANAGER.inputs,
    )
}
_NUMPY = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "FP32": np.float32,
    "INT32": np.int32,
    "UINT64": np.uint64,
}


def array(name: str, rows: Sequence[Any]) -> NDArray[Any]:
    """Values of an input, one per row (a list for ``stop_words``): ``[n, …]``."""
    spec = _SPECS[name]
    cells = [list(r) if isinstance(r, list | tuple) else [r] for r in rows]
    if spec.datatype == "BYTES":
        cells = [[c.encode() if isinstance(c, str) else c for c in row] for row in cells]
    return np.array(cells, dtype=_NUMPY[spec.datatype])


def inputs(kind: Any, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Input tensors of one request; every row names the same inputs.

    Args:
        kind: ``tritonclient.grpc`` or ``tritonclient.http``.
    """
    made = []
    for name in rows[0]:
        values = array(name, [row[name] for row in rows])
        tensor = kind.InferInput(name, list(values.shape), _SPECS[name].datatype)
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def outputs(result: Any, model: contracts.ModelContract) -> Result:
    """All outputs of a response by name."""
    found = {t.name: result.as_numpy(t.name) for t in model.outputs}
    return {name: value for name, value in found.items() if value is not None}


class Caller:
    """``echolm`` and ``feedback`` over gRPC or HTTP."""

    def __init__(self, endpoints: Endpoints, protocol: str = "grpc") -> None:
        self.kind: Any = grpcclient if protocol == "grpc" else httpclient
        url = endpoints.grpc_url if protocol == "grpc" else endpoints.http_address
        self.client: Any = self.kind.InferenceServerClient(url)

    def ask_rows(self, *rows: dict[str, Any]) -> Result:
        """One request of several rows."""
        return outputs(self.client.infer("echolm", inputs(self.kind, rows)), contracts.ECHOLM)

    def ask(self, text: str | bytes, **options: Any) -> Result:
        """One request of one row."""
        return self.ask_rows({"text_input": text, **options})

    def rate(self, token: bytes, **options: Any) -> bool:
        """Rate an answer."""
        made = inputs(self.kind, [{"feedback_token": token, **options}])
        return bool(self.client.infer("feedback", made).as_numpy("accepted").item())


def text(result: Result, name: str, row: int = 0) -> str:
    """One BYTES output as text."""
    value = result[name][row].item()
    return value.decode() if isinstance(value, bytes) else str(value)


def refusal(call: Callable[[], Any]) -> str:
    """Status and message of the error that a call ends with."""
    try:
        call()
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    raise AssertionError("expected an error, got an answer")


def samples(endpoints: Endpoints, name: str, **labels: str) -> float:
    """Sum of the samples of a metric that have these labels."""
    with urllib.request.urlopen(endpoints.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.partition("{")[0].split(" ")[0] == name and all(w in line for w in wanted)
    )


def eventually(true: Callable[[], Any], seconds: float = 30) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def streams(endpoints: Endpoints) -> Iterator[tuple[Any, queue.Queue[Any]]]:
    """A gRPC stream: its client, and the queue of (result, error) that it fills."""
    arrived: queue.Queue[Any] = queue.Queue()
    client = grpcclient.InferenceServerClient(endpoints.grpc_url)
    client.start_stream(lambda result, error: arrived.put((result, error)))
    try:
        yield client, arrived
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def post(server: Endpoints, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Status and text of the answer to a JSON body.

    Args:
        path: below ``/v2/models/``.
    """
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def proof(
    server: Endpoints,
    purpose: str,
    inputs: Sequence[Any],
    names: Collection[str] | None = ASKED,
) -> dict[str, str]:
    """Parameters by which a call of an inner model counts as EchoLM's own.

    Args:
        inputs: of ``tritonclient.grpc``.
        names: of those that are signed; None: all.
    """
    proofs = build_call_proofs(running_settings(server.data_dir))
    signed = {i.name(): i._get_content() for i in inputs if names is None or i.name() in names}
    return {PROOF: proofs.sign(purpose, signed)}
