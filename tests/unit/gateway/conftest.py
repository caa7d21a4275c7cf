"""Gateways that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from served_gateway import Served, gateway


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts gateways that end with the test; takes what :func:`gateway` takes."""
    async with AsyncExitStack() as stack:

        async def start(*args: Any, **options: Any) -> Served:
            return await stack.enter_async_context(gateway(tmp_path, *args, **options))

        yield start


@pytest.fixture
async def served(serve: Callable[..., Any]) -> Served:
    """A gateway with the default settings."""
    started: Served = await serve()
    return started
