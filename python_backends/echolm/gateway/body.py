"""The body of a request: its type, size and shape, before anything is made of it."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from echolm.conversation import json_levels
from echolm.gateway.errors import ApiError
from echolm.settings import GatewaySettings


async def read_json(request: Request, limits: GatewaySettings) -> dict[str, Any]:
    """The object that a request's body holds.

    Raises:
        ApiError: it holds none, is too large, or is nested too deep.
        ClientDisconnect: the client went away.
    """
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        expected = "content-type: expected application/json"
        raise ApiError(415, f"{expected}, got {media_type[:80] or 'none'}")
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        message = f"content-encoding: expected none, got {encoding[:80]}; send it uncompressed"
        raise ApiError(415, message)
    data = await _read(request, limits.max_body_bytes)
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:  # too deep and not UTF-8 as well
        raise ApiError(400, f"body: expected JSON, got what is not: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"body: expected an object, got {type(body).__name__}")
    _check_shape(data, body, limits)
    return body


async def _read(request: Request, most: int) -> bytes:
    # The server has refused a length that is no number.
    size = int(request.headers.get("content-length", 0))
    parts: list[bytes] = []
    read = 0
    while size <= most:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        parts.append(part)
        size = max(size, read := read + len(part))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
    problem = f"body: expected at most {most} bytes, got {size} or more"
    raise ApiError(413, problem, code="request_too_large")


def _check_shape(data: bytes, body: Any, limits: GatewaySettings) -> None:
    """ApiError if the body has too many levels or values."""
    opened = data.count(b"{") + data.count(b"[")
    commas = data.count(b",")
    # Brackets and commas in texts count as well here: where they are few there is nothing to walk.
    if opened <= limits.max_json_depth and opened + commas <= limits.max_json_elements:
        return
    elements = 0
    for depth, level in enumerate(json_levels(body), 1):
        elements += sum(map(len, level))
        if depth > limits.max_json_depth:
            raise ApiError(400, f"body: expected at most {limits.max_json_depth} levels, got more")
        if elements > limits.max_json_elements:
            expected = f"at most {limits.max_json_elements} values"
            raise ApiError(400, f"body: expected {expected}, got more")
