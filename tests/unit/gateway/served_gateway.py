"""A gateway over a fake backend, served on a free port in the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from echolm.gateway import memory, rates
from echolm.gateway.app import Gateway, application
from echolm.gateway.keys import KeyFile, Keyring
from echolm.gateway.memory import ResponseMemory
from echolm.gateway.metrics import GatewayMetrics
from echolm.gateway.protocol import BoundedProtocol
from echolm.gateway.rates import Rates
from echolm.settings import GatewaySettings, Settings
from echolm.sqlite import SQLiteFile
from echolm.testing.gateway import FakeBackend
from openai import AsyncOpenAI


@dataclass
class Served:
    """A gateway that runs."""

    backend: FakeBackend
    keys: KeyFile
    port: int
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, key: str = "none", **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0, **options)

    def http(self, key: str = "") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers)


@asynccontextmanager
async def gateway(
    directory: Path,
    backend: FakeBackend | None = None,
    clock: Callable[[], float] = lambda: 1_000_000.0,
    **values: Any,
) -> AsyncIterator[Served]:
    settings = Settings(data_dir=directory, gateway=GatewaySettings(**values))
    backend = backend or FakeBackend()
    keys = KeyFile(settings.keys_path)

    def prepare(db: Any) -> None:
        rates.prepare(db)
        memory.prepare(db)

    file = SQLiteFile(directory / "gateway.sqlite", "gateway", prepare, durable=False)
    metrics = GatewayMetrics(None)
    remembered = ResponseMemory(file, settings.gateway.remembered_responses)
    keyring = Keyring(keys, settings.keys_are_required)
    app = application(
        Gateway(settings, backend, keyring, Rates(file, clock), remembered, metrics),
        metrics,
    )

    class Protocol(BoundedProtocol):
        limits = settings.gateway

    config = uvicorn.Config(app, port=0, http=Protocol, ws="none", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
            assert not serving.done()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(backend, keys, port, server)
    finally:
        server.should_exit = True
        backend.hangs = False
        await serving
        file.close()
