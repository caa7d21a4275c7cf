"""The gateway's processes: one, or several over one listening socket.

Uvicorn starts anew a worker that has died; ``echolm serve`` does so with all of them.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from echolm.gateway.app import application, open_gateway
from echolm.gateway.metrics import DIRECTORY_VARIABLE, GatewayMetrics
from echolm.gateway.protocol import BoundedProtocol
from echolm.gateway.triton import TritonBackend
from echolm.settings import load_settings

_GRACE_S = 10
"""Seconds for requests in flight to finish when the server stops."""
_METRICS = "gateway-metrics"
_WORKER_START_S = 60
"""Seconds after which a worker that does not answer its supervisor is ended."""


def create() -> FastAPI:
    """The application of one worker; called in its event loop."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # It warns of each head that is not HTTP, with which a scanner could fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    settings = load_settings()
    BoundedProtocol.limits = settings.gateway
    directory = settings.data_dir / "run" / _METRICS if settings.gateway.workers > 1 else None
    metrics = GatewayMetrics(directory)
    backend = TritonBackend(settings.grpc_url)
    return application(open_gateway(settings, backend, metrics), metrics)


def main() -> None:
    """Serve until SIGTERM, as the configuration says."""
    settings = load_settings()
    gateway = settings.gateway
    config = uvicorn.Config(
        "echolm.gateway.server:create",
        factory=True,
        workers=gateway.workers,
        http=BoundedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(gateway.keep_alive_s),
        timeout_graceful_shutdown=_GRACE_S,
        timeout_worker_healthcheck=_WORKER_START_S,
        ssl_certfile=gateway.tls_certificate,
        ssl_keyfile=gateway.tls_key,
    )
    family = socket.AF_INET6 if ":" in gateway.host else socket.AF_INET
    address = (gateway.host, gateway.port)
    with socket.create_server(address, family=family, backlog=config.backlog) as listening:
        if gateway.workers == 1:
            uvicorn.Server(config).run([listening])
            return
        directory = settings.data_dir / "run" / _METRICS
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        # The workers' metrics library reads it when it is imported.
        os.environ[DIRECTORY_VARIABLE] = str(directory)
        Multiprocess(config, [listening]).run()
