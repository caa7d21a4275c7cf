"""What the synchronous and the asyncio client have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

from echolm_client import _protocol as protocol
from echolm_client._config import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    TLS,
    ClientTimeout,
    Endpoint,
    checked_metrics_url,
    checked_timeout,
)
from echolm_client._types import Answer

TransportT = TypeVar("TransportT")
ResponsesT = TypeVar("ResponsesT")


class BaseClient(ABC, Generic[TransportT]):
    """The arguments of a client, and whether it is closed."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        metrics_url: str | None = None,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        transport: TransportT | None = None,
    ) -> None:
        endpoint = Endpoint.parse(url, tls, headers)
        self._timeout = checked_timeout(timeout)
        self._metrics_url = checked_metrics_url(metrics_url or endpoint.default_metrics_url)
        self._transport = transport or self._open(endpoint)
        self._closed = False

    @staticmethod
    @abstractmethod
    def _open(endpoint: Endpoint) -> TransportT:
        """The transport for an address."""

    def _limit(self, timeout: float | ClientTimeout | None) -> float | None:
        """The seconds that a call may take; refuses it if the client is closed."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if isinstance(timeout, ClientTimeout):
            return self._timeout
        return checked_timeout(timeout)


class BaseStream(Generic[ResponsesT]):
    """What has arrived of an answer."""

    def __init__(self, responses: ResponsesT) -> None:
        self._responses = responses
        self._assembly = protocol.Assembly()
        self._started_s: float | None = None
        self._over = False
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The complete answer, once all pieces have been taken.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        if self._answer is None:
            raise RuntimeError("the answer is known only when all pieces have been taken")
        return self._answer

    def _start(self) -> None:
        if self._started_s is None:
            self._started_s = time.perf_counter()

    def _finish(self) -> None:
        assert self._started_s is not None
        self._answer = self._assembly.answer(time.perf_counter() - self._started_s)
        self._over = True
