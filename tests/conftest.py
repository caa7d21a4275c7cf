"""Fixtures of the tests with a real Triton, a real Milvus Lite and real LLMs.

``server`` is EchoLM as ``echolm serve --profile local`` runs it, started once for all tests
that ask for it. Tests must not depend on its being empty: use a tenant of your own.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from echolm.serving import Endpoints, ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings

pytest.register_assert_rewrite("event_log_contract")

REPOSITORY = Path(__file__).resolve().parents[1]
SERVED = tuple(Path(__file__).parent / name for name in ("integration", "load"))


# A shell's background jobs ignore SIGINT, and then so would the servers that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(folder in item.path.parents for folder in SERVED):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def server_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The settings of :func:`server`: the defaults, with a data directory of its own."""
    settings = load_settings()
    embedder = settings.embedding.model_copy(
        # Building the embedder takes a while: share the checkout's.
        update={"model_dir": REPOSITORY / "build" / "embedder"}
    )
    data_dir = tmp_path_factory.mktemp("server") / "data"
    # Two, so that what workers share is shared.
    gateway = settings.gateway.model_copy(update={"workers": 2})
    changes = {"data_dir": data_dir, "embedding": embedder, "gateway": gateway}
    return settings.model_copy(update=changes)


@pytest.fixture(scope="session")
def server(server_settings: Settings) -> Iterator[Endpoints]:
    """All core and local models on free ports, until the last test has ended."""
    # As in containers: Triton on the loopback, its metrics for others.
    options = ServeOptions(
        metrics_host="0.0.0.0", http_port=0, grpc_port=0, metrics_port=0, gateway_port=0
    )
    with running_server(server_settings, options) as endpoints:
        yield endpoints
