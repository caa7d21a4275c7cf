"""The learning log of many machines: a stream of a Redis server."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from echolm.clock import now_ms
from echolm.errors import ConfigurationError, UnavailableError
from echolm.learning.event_log import START, Event, SavedSnapshot, TrimmedError, encode_body
from echolm.settings import LearningSettings

logger = logging.getLogger("echolm")

_NEEDED_VERSION = (6, 2)  # XRANGE with an exclusive start
_TRIMMED_AT_ONCE_MS = 6 * 3_600_000  # time span of events; the server answers nobody meanwhile


class RedisEventLog:
    """An :class:`echolm.learning.event_log.EventLog` in Redis Streams.

    The server must keep what it acknowledges, which is checked at the first connection:
    ``appendonly yes``, and no eviction of keys that do not expire. An acknowledged event survives
    a crash of the server process, and with ``appendfsync always`` one of its machine; with
    ``everysec`` that costs up to a second of events. With ``redis_min_replicas`` an event is
    acknowledged once so many replicas have it, too.

    It connects again by itself when the server is back. It sends nothing twice, since an append
    that timed out may have been stored.

    Keys: ``<prefix>:events``, a stream with the fields ``kind`` and ``body``;
    ``<prefix>:snapshot:<name>``, a hash with ``position``, ``state`` and ``saved_at_ms``;
    ``<prefix>:lease:<name>``, the owner's name, which expires; ``<prefix>:trimmed``, the position
    of the last event that was removed.

    Args:
        url: ``redis://[user:password@]host[:port][/database]``, or ``rediss://`` for TLS: the
            address of the primary. Redis Cluster and Sentinel are not supported.

    Raises:
        ConfigurationError: the server is reached, but is unsafe, too old or refuses access. A
            server that is not reached is checked when it is.
    """

    def __init__(self, url: str, settings: LearningSettings) -> None:
        address = urlsplit(url)
        self._title = f"learning log {address.hostname}:{address.port or 6379}"
        prefix = settings.redis_prefix
        self._stream, self._trimmed = f"{prefix}:events", f"{prefix}:trimmed"
        self._snapshots, self._leases = f"{prefix}:snapshot", f"{prefix}:lease"
        self._min_replicas = settings.redis_min_replicas
        self._wait_ms = int(settings.redis_timeout_s * 500)  # less than the socket's timeout
        self._check_lock = threading.Lock()
        self._checked = self._closed = False
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=settings.redis_timeout_s,
            socket_connect_timeout=settings.redis_timeout_s,
            health_check_interval=30,
            retry=Retry(NoBackoff(), 0),
            client_name="echolm",
        )
        try:
            with self._used():
                pass
        except UnavailableError as error:
            logger.warning("%s; it is tried again at every use", error)

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        fields: Any = {"kind": kind, "body": encode_body(body)}
        with self._used("; try again") as client:
            if not self._min_replicas:
                return _text(client.xadd(self._stream, fields))
            # WAIT covers what its own connection has written.
            with client.pipeline(transaction=False) as pipeline:
                pipeline.xadd(self._stream, fields)
                pipeline.wait(self._min_replicas, self._wait_ms)
                position, replicas = pipeline.execute()
        if replicas < self._min_replicas:
            raise UnavailableError(
                f"{self._title}: expected {self._min_replicas} replicas to have the event, got "
                f"{replicas}; try again"
            )
        return _text(position)

    def read(self, after: str, limit: int) -> list[Event]:
        if after != START and not _is_position(after.encode()):
            raise TrimmedError(f"{self._title}: a snapshot's position is damaged")
        start = "-" if after == START else f"({after}"
        with self._used() as client, client.pipeline(transaction=False) as pipeline:
            pipeline.xrange(self._stream, start, "+", limit)
            # Afterwards, so that nothing can be removed unnoticed in between.
            pipeline.get(self._trimmed)
            entries, trimmed = pipeline.execute()
        if after != START and _is_position(trimmed) and _numbers(after) < _numbers(trimmed):
            raise TrimmedError(f"{self._title}: events behind {after} were removed")
        return [
            Event.decoded(_text(at), fields.get(b"kind"), fields.get(b"body"), _numbers(at)[0])
            for at, fields in entries
        ]

    def trim(self, before_ms: int, taken_in: Sequence[str]) -> int:
        milliseconds, sequence = min(map(_numbers, taken_in))
        end = min((before_ms, 0), (milliseconds, sequence + 1))  # the first that stays
        number = 0
        with self._used() as client:
            while True:
                oldest: Any = client.xrange(self._stream, "-", "+", 1)
                if not oldest or (first := _numbers(oldest[0][0])) >= end:
                    return number
                step = (first[0] + _TRIMMED_AT_ONCE_MS, 0)
                number += self._trim_before(client, min(end, step))

    def _trim_before(self, client: redis.Redis, end: tuple[int, int]) -> int:
        first_kept = f"{end[0]}-{end[1]}"
        with client.pipeline() as pipeline:
            # Or the work of another that trims at the same time could be taken back.
            pipeline.watch(self._trimmed)  # type: ignore[no-untyped-call]
            last: Any = pipeline.xrevrange(self._stream, f"({first_kept}", "-", 1)
            pipeline.multi()
            if last:
                pipeline.set(self._trimmed, last[0][0])
            pipeline.xtrim(self._stream, minid=first_kept, approximate=False)
            return int(pipeline.execute()[-1])

    def save_snapshot(self, name: str, position: str, state: bytes, replaces: str = START) -> bool:
        key = f"{self._snapshots}:{name}"
        fields: Any = {"position": position, "state": state, "saved_at_ms": now_ms()}
        with self._used() as client, client.pipeline() as pipeline:
            pipeline.watch(key)  # type: ignore[no-untyped-call]
            saved: Any = pipeline.hget(key, "position")
            if (START if saved is None else _text(saved)) != replaces:
                return False
            pipeline.multi()
            pipeline.hset(key, mapping=fields)
            try:
                pipeline.execute()
            except redis.WatchError:
                return False
        return True

    def snapshots(self) -> list[SavedSnapshot]:
        snapshots = []
        with self._used() as client:
            for key in client.scan_iter(f"{self._snapshots}:*", count=1_000):
                values: Any = client.hmget(key, ["position", "saved_at_ms"])
                if values[0] is not None:
                    name = _text(key)[len(self._snapshots) + 1 :]
                    saved_at_ms = int(values[1]) if (values[1] or b"").isdigit() else 0
                    snapshots.append(SavedSnapshot(name, _text(values[0]), saved_at_ms))
        return snapshots

    def drop_snapshot(self, name: str) -> None:
        with self._used() as client:
            client.delete(f"{self._snapshots}:{name}")

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        with self._used() as client:
            fields: Any = client.hgetall(f"{self._snapshots}:{name}")
        if not fields.keys() >= {b"position", b"state"}:
            return None
        return _text(fields[b"position"]), fields[b"state"]

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        key, milliseconds = f"{self._leases}:{name}", int(seconds * 1_000)
        with self._used() as client:
            if client.set(key, owner, nx=True, px=milliseconds):
                return True
            # The time may be over, and another's begin, between these two; then both may work
            # for a moment, which is wasteful but safe.
            return client.get(key) == owner.encode() and bool(client.pexpire(key, milliseconds))

    def close(self) -> None:
        self._closed = True
        self._client.close()

    @contextmanager
    def _used(self, mend: str = "") -> Iterator[redis.Redis]:
        """The client of a server that was checked."""
        if self._closed:
            raise UnavailableError(f"{self._title}: it was closed")
        try:
            with self._check_lock:
                if not self._checked:
                    self._check()
                    self._checked = True
            yield self._client
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise ConfigurationError(
                f"{self._title}: {error}; correct user and password in event_log, or let that "
                "user use XADD, XRANGE, XREVRANGE, XTRIM, HSET, HGET, HGETALL, HMGET, SET, GET, "
                "DEL, SCAN, PEXPIRE, WATCH, MULTI, EXEC, WAIT and INFO"
            ) from error
        except redis.RedisError as error:
            raise UnavailableError(f"{self._title}: {error}{mend}") from error

    def _check(self) -> None:
        """Refuse a server that would lose what it has acknowledged."""
        info: Any = self._client.info("all")
        version = str(info.get("redis_version", ""))
        if tuple(int(n) for n in version.split(".")[:2] if n.isdigit()) < _NEEDED_VERSION:
            needed = ".".join(map(str, _NEEDED_VERSION))
            raise ConfigurationError(
                f"{self._title}: expected Redis {needed} or later, got {version}"
            )
        if not info.get("aof_enabled"):
            raise self._unsafe("appendonly", "yes", "no", "CONFIG SET appendonly yes")
        eviction = str(info.get("maxmemory_policy", ""))
        if info.get("maxmemory") and eviction.startswith("allkeys"):
            own_server = "give the log a server of its own"
            raise self._unsafe("maxmemory-policy", "noeviction", eviction, own_server)
        try:
            config: Any = self._client.config_get("appendfsync")
        except redis.ResponseError:  # managed servers do not allow the command
            config = {}
        fsync = config.get("appendfsync", "")
        if fsync == "no":
            raise self._unsafe("appendfsync", "always", fsync, "CONFIG SET appendfsync always")
        if fsync != "always":
            logger.warning(
                "%s: appendfsync is %s, so a crash of the server's machine can lose the ratings of "
                "its last second; always loses none",
                self._title,
                fsync or "unknown",
            )

    def _unsafe(self, key: str, expected: str, got: str, mend: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._title}: expected a Redis server with {key} {expected}, got {got}, with which "
            f"ratings that were acknowledged can be lost; {mend}, and set it in redis.conf"
        )


def _numbers(position: Any) -> tuple[int, int]:
    """A position as numbers, which compare as the positions do."""
    if not _is_position(_text(position).encode()):
        return 0, 0
    milliseconds, _, sequence = _text(position).partition("-")
    return int(milliseconds), int(sequence or 0)


def _is_position(value: Any) -> bool:
    """Whether it is one; not if what holds it is damaged."""
    return isinstance(value, bytes) and re.fullmatch(rb"[0-9]{1,20}-[0-9]{1,20}", value) is not None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
