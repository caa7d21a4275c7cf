"""HTTP/1.1 with the bounds that uvicorn's protocol leaves to a proxy in front of it.

Uvicorn reads a head of any length for any time, and keeps an unread answer for ever.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from echolm.gateway.errors import ApiError
from echolm.settings import GatewaySettings

_MAX_HEADERS = 100
_READ_BYTES = 256 << 10
"""Most bytes that the event loop reads at once; what precedes them may be in one read with them."""
_KEEP_ALIVE = {
    socket.SO_KEEPALIVE: (socket.SOL_SOCKET, 1),
    socket.TCP_KEEPIDLE: (socket.IPPROTO_TCP, 30),
    socket.TCP_KEEPINTVL: (socket.IPPROTO_TCP, 10),
    socket.TCP_KEEPCNT: (socket.IPPROTO_TCP, 3),
}
"""By which the system ends the connection to a client that vanished without closing it, a minute
later: nothing else shows that nobody waits for an answer that takes long."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection; :attr:`limits` is set once, before the first."""

    limits: ClassVar[GatewaySettings] = GatewaySettings()

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = _parsed_bytes = 0
    _unseen_bytes = 0  # received since the parser last gave a part of a message
    _has_progress = False
    _problem: ApiError | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        for option, (level, value) in _KEEP_ALIVE.items():
            transport.get_extra_info("socket").setsockopt(level, option, value)
        most = self.limits.max_connections
        if len(self.connections) > most:
            message = f"connections: expected at most {most}, got more"
            headers = {"retry-after": "1"}
            self._refuse(ApiError(503, message, kind="server_error", headers=headers))
        else:
            self._start(self.limits.header_timeout_s, "head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._problem is not None:
            return
        self._has_progress = False
        super().data_received(data)
        if self._problem is not None or self.transport.is_closing():
            return
        self._unseen_bytes = 0 if self._has_progress else self._unseen_bytes + len(data)
        if self._unseen_bytes > self.limits.max_header_bytes + _READ_BYTES:
            self._refuse_or_close(_too_large(self.limits.max_header_bytes))
            return
        idle = self.cycle is not None and self.cycle.response_complete
        if idle and self._timer is None and self.timeout_keep_alive_task is None:
            # Bytes that begin no request have ended uvicorn's timer of the idle connection.
            self._in_head, self._head_bytes = True, 0
            self._start(self.limits.keep_alive_s, "head")
        if self._in_head:
            # A header that has not ended yet is still in the parser.
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_header_bytes:
                self._refuse(_too_large(self.limits.max_header_bytes))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._parsed_bytes = True, 0, 0
        self._has_progress = True
        self._start(self.limits.header_timeout_s, "head")

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._in_head, self._has_progress = False, True
        self._start(self.limits.body_timeout_s, "body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progress = True
        self._stop()
        super().on_message_complete()
        if self.cycle.response_complete:
            # The rest of a refused body was read, so that the client could read why. Uvicorn
            # times an idle connection from the answer on, and has stopped with this body.
            self._in_head, self._head_bytes = True, 0
            self._start(self.limits.keep_alive_s, "head")

    def pause_writing(self) -> None:
        super().pause_writing()
        after = self.limits.write_timeout_s
        self._write_timer = self.loop.call_later(after, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._problem or ApiError(400, msg))

    def _count(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > self.limits.max_header_bytes or len(self.headers) > _MAX_HEADERS:
            self._problem = _too_large(self.limits.max_header_bytes)
            raise ValueError("head too large")  # ends the parser, which calls send_400_response

    def _start(self, seconds: float, part: str) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self._too_slow, seconds, part)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, seconds: float, part: str) -> None:
        answered = self.cycle is not None and self.cycle.response_started
        if (part == "head" and self._head_bytes == 0) or (part == "body" and answered):
            self.transport.close()  # nothing was asked, or it is answered already
        else:
            message = f"{part} of the request: expected it within {seconds:g} s, got a part of it"
            self._refuse(ApiError(408, message, code="request_timeout"))

    def _refuse_or_close(self, error: ApiError) -> None:
        """Refuse, unless an answer has begun, in which no other may stand."""
        if self.cycle is not None and self.cycle.response_started:
            self._problem = error
            self.transport.close()
        else:
            self._refuse(error)

    def _refuse(self, error: ApiError) -> None:
        """Answer and close, past the application."""
        self._problem = error
        body = error.body()
        head = [STATUS_LINE[error.status], b"content-type: application/json\r\n"]
        head.append(b"content-length: %d\r\nconnection: close\r\n" % len(body))
        head += [f"{name}: {value}\r\n".encode() for name, value in error.headers.items()]
        self.transport.write(b"".join([*head, b"\r\n", body]))
        self.transport.close()


def _too_large(most: int) -> ApiError:
    message = f"head of the request: expected at most {most} bytes and {_MAX_HEADERS} headers"
    return ApiError(431, f"{message}, got more", code="headers_too_large")
