"""Fixtures of tests that start a server of their own beside Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from echolm.serving.milvus_lite import MilvusLite
from milvus_server import start_milvus_lite
from redis_server import RedisServer


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server that keeps what it acknowledges; tests must not depend on its being empty."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def own_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One for a test that stops or kills it."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def own_milvus_lite(tmp_path: Path) -> Iterator[MilvusLite]:
    """One for a test that stops or kills it."""
    server = start_milvus_lite(tmp_path)
    yield server
    server.stop()
