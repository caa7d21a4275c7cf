"""The page that tells machines how a server is: its metrics, and whether it is ready.

It stands before Triton's own page of metrics, to which it adds those of :class:`Supervisor`, and
answers also while there is no Triton::

    GET /metrics        all metrics, for Prometheus
    GET /health/ready   200 if all models, and the gateway, can be used, else 503
    GET /health/live    200 if it is watched, else 503
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from echolm.errors import UnavailableError
from echolm.serving.frozen_gauges import without_frozen
from echolm.serving.supervisor import Supervisor
from echolm.serving.triton_server import TritonServer
from echolm.telemetry import METRICS

_READ_S = 5.0
_MOST_CONNECTIONS = 32


class StatusPage:
    """Serves the page in threads of its own, from its making to :meth:`close`.

    Args:
        owners: see :func:`without_frozen`.

    Raises:
        UnavailableError: the address cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        triton: TritonServer,
        supervisor: Supervisor,
        owners: Mapping[str, str],
    ) -> None:
        registry = CollectorRegistry()
        registry.register(_Supervised(supervisor))

        class Handler(BaseHTTPRequestHandler):
            timeout = _READ_S  # of a client that sends nothing

            def do_GET(self) -> None:
                body, kind, status = b"", "text/plain", 200
                if self.path == "/metrics":
                    down = {name for name, known in supervisor.models.items() if not known.up}
                    page = without_frozen(triton.metrics() or b"", down, owners)
                    body = page + generate_latest(registry)
                    kind = CONTENT_TYPE_LATEST
                elif self.path == "/health/ready":
                    status = 200 if supervisor.is_ready else 503
                elif self.path == "/health/live":
                    status = 200 if supervisor.is_live else 503
                else:
                    status = 404
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass  # Prometheus asks all the time.

        try:
            self._server = _BoundedServer(host, port, Handler)
        except OSError as error:
            raise UnavailableError(
                f"metrics: expected to listen on port {port} of {host}, got: {error.strerror}; "
                "choose another one with --metrics-port"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="status", daemon=True).start()

    def close(self) -> None:
        """Answer no more; may be repeated."""
        self._server.shutdown()
        self._server.server_close()


class _BoundedServer(ThreadingHTTPServer):
    """Takes so many connections at a time; further ones are closed at once."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # The client has gone.


class _Supervised(Collector):
    """What the supervisor knows, as metrics of :data:`echolm.telemetry.METRICS`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        processes, models = self._supervisor.processes, self._supervisor.models
        for label, known, up, restarts in (
            ("process", processes, "echolm_process_up", "echolm_process_restarts_total"),
            ("model", models, "echolm_model_up", "echolm_model_restarts_total"),
        ):
            gauge = GaugeMetricFamily(up, METRICS[up].meaning, labels=[label])
            counter = CounterMetricFamily(restarts, METRICS[restarts].meaning, labels=[label])
            for name, health in known.items():
                gauge.add_metric([name], float(health.up))
                counter.add_metric([name], health.restarts)
            yield gauge
            yield counter
