"""The page that tells how a server is; Triton and supervisor say what a test wants."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest
from echolm.errors import UnavailableError
from echolm.serving import status_page
from echolm.serving.status_page import StatusPage
from echolm.serving.supervisor import Health, Supervisor
from echolm.serving.triton_server import TritonServer
from triton_calls import eventually


@dataclass
class State:
    """A Triton and its supervisor."""

    page: bytes | None = b'echolm_llm_ready{model="small_llm"} 1\n'
    processes: dict[str, Health] = field(default_factory=lambda: {"triton": Health()})
    models: dict[str, Health] = field(default_factory=lambda: {"small_llm": Health(restarts=2)})
    is_ready: bool = True
    is_live: bool = True

    def metrics(self) -> bytes | None:
        return self.page


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def port(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(status_page, "_MOST_CONNECTIONS", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    supervisor, triton = cast(Supervisor, state), cast(TritonServer, state)
    page = StatusPage("127.0.0.1", number, triton, supervisor, {})
    with pytest.raises(UnavailableError, match="--metrics-port"):
        StatusPage("127.0.0.1", number, triton, supervisor, {})
    yield number
    page.close()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_it_shows_tritons_metrics_and_its_own(port: int, state: State) -> None:
    status, page = get(port, "/metrics")
    assert status == 200
    assert set(page.splitlines()) > {
        'echolm_llm_ready{model="small_llm"} 1',
        'echolm_process_up{process="triton"} 1.0',
        'echolm_model_up{model="small_llm"} 1.0',
        "# TYPE echolm_model_restarts_total counter",
        'echolm_model_restarts_total{model="small_llm"} 2.0',
    }
    state.models["small_llm"].up = False
    page = get(port, "/metrics")[1]
    assert 'echolm_llm_ready{model="small_llm"} 0\n' in page
    assert 'echolm_model_up{model="small_llm"} 0.0\n' in page


def test_it_answers_without_a_triton(port: int, state: State) -> None:
    state.page, state.is_ready, state.processes["triton"].up = None, False, False
    assert 'echolm_process_up{process="triton"} 0.0\n' in get(port, "/metrics")[1]
    assert [get(port, f"/health/{name}")[0] for name in ("ready", "live")] == [503, 200]
    state.is_ready, state.is_live = True, False
    assert [get(port, f"/health/{name}")[0] for name in ("ready", "live")] == [200, 503]
    assert get(port, "/other")[0] == 404


def test_connections_that_ask_nothing_are_bounded(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]

    def is_refused() -> bool:
        try:
            return get(port, "/health/live") == (0, "")
        except OSError:
            return True

    assert eventually(is_refused)
    for connection in silent:
        connection.close()
    assert eventually(lambda: not is_refused())
