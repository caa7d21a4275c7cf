"""The learning log in a real Redis server."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from echolm.errors import ConfigurationError, UnavailableError
from echolm.learning.event_log import START
from echolm.learning.redis_log import RedisEventLog
from echolm.settings import LearningSettings, Settings
from echolm.wiring.learning import open_event_log
from event_log_contract import Damage, DurableEventLogContract, OpenLog
from redis_server import RedisServer
from triton_calls import eventually

SETTINGS = LearningSettings(redis_timeout_s=2.0)


class TestRedisEventLog(DurableEventLogContract):
    @pytest.fixture
    def settings(self) -> LearningSettings:
        return SETTINGS.model_copy(update={"redis_prefix": f"test-{uuid.uuid4().hex}"})

    @pytest.fixture
    def open_log(self, redis_server: RedisServer, settings: LearningSettings) -> Iterator[OpenLog]:
        opened: list[RedisEventLog] = []

        def open_one() -> RedisEventLog:
            opened.append(RedisEventLog(redis_server.url, settings))
            return opened[-1]

        yield open_one
        for log in opened:
            log.close()

    @pytest.fixture
    def client(self, redis_server: RedisServer) -> Iterator[redis.Redis]:
        with redis.Redis(port=redis_server.port) as client:
            yield client

    @pytest.fixture
    def damage(self, client: redis.Redis, settings: LearningSettings) -> Damage:
        def add(body: bytes) -> None:
            client.xadd(f"{settings.redis_prefix}:events", {"kind": "rating", "body": body})

        return add

    def test_an_entry_without_our_fields_reads_as_an_empty_event(
        self, client: redis.Redis, settings: LearningSettings, open_log: OpenLog
    ) -> None:
        client.xadd(f"{settings.redis_prefix}:events", {b"\xff": b"x"})
        log = open_log()
        log.append("rating", {"n": 2})
        assert [(e.kind, dict(e.body)) for e in log.read(START, 10)] == [
            ("", {}),
            ("rating", {"n": 2}),
        ]

    def test_prefixes_keep_logs_apart(self, redis_server: RedisServer, open_log: OpenLog) -> None:
        open_log().append("k", {"n": 1})
        other = SETTINGS.model_copy(update={"redis_prefix": f"other-{uuid.uuid4().hex}"})
        log = open_event_log(Settings(event_log=redis_server.url, learning=other))
        assert log.read(START, 10) == []
        log.close()

    def test_without_the_replicas_asked_for_nothing_is_acknowledged(
        self, redis_server: RedisServer, settings: LearningSettings
    ) -> None:
        replicated = settings.model_copy(update={"redis_min_replicas": 1, "redis_timeout_s": 0.4})
        log = RedisEventLog(redis_server.url, replicated)
        with pytest.raises(UnavailableError, match="expected 1 replicas to have the event, got 0"):
            log.append("k", {})
        log.close()


def test_replicas_have_an_event_when_it_is_acknowledged(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    replica = RedisServer(tmp_path, replicaof=f"127.0.0.1 {redis_server.port}")
    try:
        settings = LearningSettings(redis_prefix=f"test-{uuid.uuid4().hex}", redis_min_replicas=1)
        log = RedisEventLog(redis_server.url, settings)
        with redis.Redis(port=replica.port) as client:
            assert eventually(lambda: client.info("replication")["master_link_status"] == "up")
            for n in range(20):
                position = log.append("k", {"n": n})
                [(newest, _)] = client.xrevrange(f"{settings.redis_prefix}:events", count=1)
                assert newest.decode() == position
        log.close()
    finally:
        replica.stop()


def test_it_goes_on_when_the_server_is_back(own_redis_server: RedisServer) -> None:
    log = RedisEventLog(own_redis_server.url, SETTINGS)
    position = log.append("k", {"n": 1})
    own_redis_server.kill()
    for _ in range(3):
        with pytest.raises(UnavailableError, match=rf":{own_redis_server.port}: .*; try again"):
            log.append("k", {"n": 2})
        with pytest.raises(UnavailableError):
            log.read(START, 1)
    own_redis_server.start()
    log.append("k", {"n": 3})
    assert [e.body["n"] for e in log.read(START, 10)] == [1, 3]
    assert [e.body["n"] for e in log.read(position, 10)] == [3]
    log.close()


def test_a_server_that_is_down_at_the_start_is_used_when_it_comes(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.stop()
    log = RedisEventLog(own_redis_server.url, SETTINGS)
    assert "tried again at every use" in caplog.text
    with pytest.raises(UnavailableError):
        log.append("k", {})
    own_redis_server.start()
    log.append("k", {"n": 1})
    assert len(log.read(START, 10)) == 1
    log.close()


def test_a_server_that_hangs_is_unavailable_after_the_timeout(
    own_redis_server: RedisServer,
) -> None:
    log = RedisEventLog(own_redis_server.url, LearningSettings(redis_timeout_s=0.3))
    with redis.Redis(port=own_redis_server.port) as client:
        client.client_pause(1_500)
        with pytest.raises(UnavailableError, match=r"(?i)timeout"):
            log.append("k", {})
        client.client_unpause()
    log.append("k", {"n": 1})
    # The first may have been stored; whoever sends it again must be ready for that.
    assert log.read(START, 10)[-1].body == {"n": 1}
    log.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"appendonly": "no"}, r"appendonly yes, got no, .*; CONFIG SET appendonly yes"),
        ({"appendfsync": "no"}, r"appendfsync always, got no, .*; CONFIG SET appendfsync always"),
        (
            {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"},
            r"maxmemory-policy noeviction, got allkeys-lru",
        ),
        ({"requirepass": "secret"}, "correct user and password in event_log"),
    ],
)
def test_a_server_that_would_lose_ratings_or_lets_us_not_in_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    password = options.pop("requirepass", None)
    server = RedisServer(tmp_path, **options)
    try:
        if password:
            with redis.Redis(port=server.port) as client:
                client.config_set("requirepass", password)
        with pytest.raises(ConfigurationError, match=message):
            RedisEventLog(server.url, SETTINGS)
    finally:
        server.stop()


def test_the_password_of_the_url_opens_the_server_and_is_never_shown(
    own_redis_server: RedisServer,
) -> None:
    with redis.Redis(port=own_redis_server.port) as client:
        client.config_set("requirepass", "sesame")
    url = own_redis_server.url.replace("//", "//:sesame@")
    log = RedisEventLog(url, SETTINGS)
    log.append("k", {"n": 1})
    own_redis_server.kill()
    with pytest.raises(UnavailableError) as caught:
        log.append("k", {"n": 1})
    assert "sesame" not in str(caught.value)
    log.close()


@pytest.mark.parametrize("user", ["+info +config +xrange +xadd", "+info +xrange +xadd"])
def test_a_server_that_syncs_every_second_or_does_not_tell_costs_a_warning(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture, user: str
) -> None:
    caplog.set_level(logging.WARNING)
    RedisEventLog(own_redis_server.url, SETTINGS).close()
    assert "appendfsync" not in caplog.text
    with redis.Redis(port=own_redis_server.port) as client:
        client.config_set("appendfsync", "everysec")
        client.execute_command(f"ACL SETUSER u on nopass ~* {user} +ping +client +hello")
    log = RedisEventLog(own_redis_server.url.replace("//", "//u:x@"), SETTINGS)
    assert ("everysec" if "config" in user else "unknown") in caplog.text
    log.append("k", {"n": 1})
    log.close()
