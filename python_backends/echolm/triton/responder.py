"""A response sender that may be used by several threads."""

from __future__ import annotations

import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from echolm.triton import codec


class Responder:
    """Sends the responses of one request, and knows whether its client has gone.

    Triton frees the response factory with the final response; asking it afterwards whether
    the request is cancelled crashes the whole server (Triton 2.51). So the final response and
    the question exclude each other here.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self._open = True

    def send(self, tensors: list[Any], final: bool = False) -> None:
        """Send a response with these output tensors; nothing once the final one is out."""
        self._send(pb_utils.InferenceResponse(tensors), final)

    def fail(self, problem: BaseException) -> None:
        """Send the error as the final response."""
        self._send(codec.error_response(problem), final=True)

    def finish(self) -> None:
        """Close a decoupled request without another response."""
        self._send(None, final=True)

    def _send(self, response: Any, final: bool) -> None:
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        with self._lock:
            if self._open:
                self._open = not final
                self._sender.send(response, flags)

    def is_cancelled(self) -> bool:
        """Whether the client has gone; false once the final response is out."""
        with self._lock:
            return self._open and bool(self._sender.is_cancelled())
