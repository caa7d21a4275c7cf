"""Where the server is and how to reach it."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_URL = "localhost:8001"
"""Triton's gRPC port on this machine."""

DEFAULT_TIMEOUT_S = 180.0
"""Longer than the server's own limit (120 s), so that its message arrives first."""

READY_TIMEOUT_S = 5.0
"""For the question whether the server is ready, which a server that is answers at once."""

_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 8000}
_METRICS_PORT = 8002
_HOST_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?")


class ClientTimeout:
    """Type of :data:`CLIENT_TIMEOUT`."""

    def __repr__(self) -> str:
        return "CLIENT_TIMEOUT"


CLIENT_TIMEOUT = ClientTimeout()
"""A call's ``timeout`` where none is given: that of the client."""


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout, if it is one.

    Raises:
        ValueError: it is neither a number of seconds above 0 nor None.
    """
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ValueError(f"timeout: expected seconds above 0, or None for no limit, got {timeout}")
    return timeout


@dataclass(frozen=True)
class TLS:
    """Certificates for ``grpcs://`` and ``https://``.

    Attributes:
        root_certificates: PEM file of the authorities to trust; None: gRPC's or the system's.
        certificate_chain: PEM file of the client's certificate, where the server wants one.
        private_key: PEM file of its key.
    """

    root_certificates: Path | None = None
    certificate_chain: Path | None = None
    private_key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The same as an ``ssl.SSLContext``, for HTTP."""
        context = ssl.create_default_context(
            cafile=str(self.root_certificates) if self.root_certificates else None
        )
        if self.certificate_chain:
            context.load_cert_chain(self.certificate_chain, self.private_key)
        return context


@dataclass(frozen=True)
class Endpoint:
    """A server's address and what a connection to it needs.

    Attributes:
        scheme: ``grpc``, ``grpcs``, ``http`` or ``https``.
        host: name or address; an IPv6 address without its brackets.
        path: prefix of all HTTP paths, without a slash at its end; empty for gRPC.
        headers: sent with every request (gRPC metadata or HTTP headers).
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    tls: TLS = TLS()
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, url: str, tls: TLS | None = None, headers: Mapping[str, str] | None = None
    ) -> Endpoint:
        """Read an address.

        >>> Endpoint.parse("localhost").address
        'localhost:8001'
        >>> Endpoint.parse("https://gateway/llm").base_url
        'https://gateway:8000/llm'

        Raises:
            ValueError: it is not ``[scheme://]host[:port]`` with a scheme among those above.
        """
        expected = f"expected [scheme://]host[:port], scheme among {sorted(_PORTS)}, got {url!r}"
        try:
            parts = urlsplit(url if "://" in url else f"grpc://{url}")
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ValueError(f"url: {expected} ({error})") from None
        if parts.scheme not in _PORTS or not _is_host(host):
            raise ValueError(f"url: {expected}")
        path = parts.path.rstrip("/")
        if path and parts.scheme.startswith("grpc"):
            raise ValueError(f"url: a gRPC address has no path; {expected}")
        return cls(
            scheme=parts.scheme,
            host=host,
            port=_PORTS[parts.scheme] if port is None else port,
            path=path,
            tls=tls or TLS(),
            headers=dict(headers or {}),
        )

    @property
    def is_grpc(self) -> bool:
        """Whether the scheme is gRPC."""
        return self.scheme.startswith("grpc")

    @property
    def is_secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def base_url(self) -> str:
        """``scheme://host:port/path``."""
        return f"{self.scheme}://{self.address}{self.path}"

    @property
    def default_metrics_url(self) -> str:
        """Triton's metrics page on the same host and the usual port."""
        return f"http://{_bracketed(self.host)}:{_METRICS_PORT}/metrics"


def checked_metrics_url(url: str) -> str:
    """The address of a metrics page, with its scheme.

    Raises:
        ValueError: it is not ``[scheme://]host[:port][/path]`` with the scheme http or https.
    """
    url = url if "://" in url else f"http://{url}"
    try:
        is_http = not Endpoint.parse(url).is_grpc
    except ValueError:
        is_http = False
    if not is_http:
        raise ValueError(f"metrics url: expected http[s]://host[:port]/path, got {url!r}")
    return url


def _is_host(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
