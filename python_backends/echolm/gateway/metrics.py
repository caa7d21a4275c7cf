"""The gateway's own metrics, for Prometheus; with several workers those of all of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory that workers share; the library reads it when it is imported."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class GatewayMetrics:
    """Counts what passes.

    Args:
        directory: shared by all workers; None: this process counts alone.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        registry = self._registry = CollectorRegistry()
        if directory is not None:
            _forget_ended(directory)
        self._requests = Counter(
            "echolm_gateway_requests",
            "Requests by endpoint and status; 499: the client went away.",
            ["endpoint", "status"],
            registry=registry,
        )
        self._latency = Histogram(
            "echolm_gateway_request_latency_seconds",
            "Time from a request's head to the end of its answer.",
            ["endpoint"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "echolm_gateway_in_flight",
            "Requests that are being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def began(self) -> None:
        self._in_flight.inc()

    def ended(self, endpoint: str, status: int, seconds: float) -> None:
        self._in_flight.dec()
        self._requests.labels(endpoint, str(status)).inc()
        self._latency.labels(endpoint).observe(seconds)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        if self._directory is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        # With its type: the package has no annotations here.
        collector: type = multiprocess.MultiProcessCollector
        collector(registry, path=str(self._directory))
        return generate_latest(registry)


def _forget_ended(directory: Path) -> None:
    """Remove the gauges of workers that have ended; what they counted stays."""
    for file in directory.glob("gauge_live*_*.db"):
        pid = re.fullmatch(r"gauge_live\w*_(\d+)", file.stem)
        if pid is not None and int(pid[1]) != os.getpid() and not Path("/proc", pid[1]).exists():
            file.unlink(missing_ok=True)
