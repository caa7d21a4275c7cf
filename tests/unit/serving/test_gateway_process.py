"""The gateway's process: started, watched, ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from echolm.errors import UnavailableError
from echolm.serving import gateway
from echolm.serving.data_dir import DataDir
from echolm.serving.gateway import GatewayServer
from echolm.settings import GatewaySettings, Settings


@pytest.fixture
def server(tmp_path: Path) -> GatewayServer:
    settings = Settings(data_dir=tmp_path, gateway=GatewaySettings(port=1))
    return GatewayServer(settings, DataDir(tmp_path / "data"), tmp_path / "none.toml")


def test_a_gateway_that_does_not_answer_in_time_is_ended(
    server: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "_START_S", -1.0)
    with pytest.raises(UnavailableError, match="no answer"):
        server.start()
    server.stop()
    assert server.poll() == -9


def test_a_stop_ends_the_wait_for_a_gateway(server: GatewayServer) -> None:
    stop = threading.Event()
    stop.set()
    server.start(stop)
    server.stop()
    assert server.poll() is not None
