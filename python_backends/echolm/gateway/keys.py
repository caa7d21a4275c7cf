"""API keys: who calls, for which tenant, and within which limits.

A key is ``sk-echolm-`` and 256 random bits. The file has their SHA-256 only; a slow hash protects
passwords, which can be guessed, and adds nothing to a number that cannot. It is JSON, so that a
secret of Kubernetes or Docker can be mounted in its place::

    {"keys": [{"id": "k_3f…", "name": "search team", "hash": "9a…", "tenant": "search", …}]}
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echolm.errors import ConfigurationError
from echolm.gateway.errors import ApiError
from echolm.primitives import DEFAULT_TENANT

logger = logging.getLogger("echolm")

PREFIX = "sk-echolm-"
_CHECK_S = 1.0
_MAX_SECRET = 256


class Key(BaseModel):
    """What a key stands for.

    Attributes:
        id: names it in commands and metrics; no secret.
        hash: SHA-256 of the key, in hexadecimal.
        role: an ``admin`` may name any tenant and read the metrics; a ``user`` is its key's tenant.
        requests_per_minute, tokens_per_minute: averages, with bursts of a minute's worth.
        tokens_per_day: budget of a day in UTC.
        expires, revoked: times, after which it is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    name: str = ""
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str = Field(DEFAULT_TENANT, min_length=1, max_length=256)
    role: Literal["user", "admin"] = "user"
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    @property
    def is_limited(self) -> bool:
        """Whether anything of it is counted."""
        limits = (self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day)
        return any(limit is not None for limit in limits)


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...] = ()


class KeyFile:
    """The file of the keys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, required: bool = False) -> tuple[Key, ...]:
        """All keys, revoked ones included; none where there is no file.

        Raises:
            ConfigurationError: the file cannot be read, holds something else, or is required and
                not there.
        """
        try:
            return _Contents.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            if not required:
                return ()
            raise ConfigurationError(
                f"API keys {self.path}: expected this file, since keys are required, got none; "
                "make a key: `echolm keys add`, or correct gateway.keys_path"
            ) from None
        except OSError as error:
            problem = f"expected a readable file, got: {error.strerror}"
            raise ConfigurationError(f"API keys {self.path}: {problem}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigurationError(
                f"API keys {self.path}: expected what `echolm keys` writes, got at "
                f"{place or 'its top'}: {first['msg']}"
            ) from error

    def add(
        self,
        *,
        name: str = "",
        tenant: str = DEFAULT_TENANT,
        role: Literal["user", "admin"] = "user",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        tokens_per_day: int | None = None,
        expires: datetime | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is kept nowhere."""
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=f"k_{secrets.token_hex(6)}",
            name=name,
            hash=digest(secret),
            tenant=tenant,
            role=role,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            tokens_per_day=tokens_per_day,
            created=_now(),
            expires=expires,
        )
        with self._alone():
            self._write((*self.read(), key))
        return key, secret

    def revoke(self, id: str) -> Key:
        """Refuse a key from now on; ConfigurationError if there is none of that id."""
        with self._alone():
            keys = self.read()
            found = next((key for key in keys if key.id == id), None)
            if found is None:
                raise ConfigurationError(
                    f"API keys {self.path}: expected the id of a key, got {id!r}; see "
                    "`echolm keys list`"
                )
            revoked = found.model_copy(update={"revoked": found.revoked or _now()})
            self._write(tuple(revoked if key is found else key for key in keys))
        return revoked

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """As long as it lasts, no other process changes the file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(
                self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, keys: tuple[Key, ...]) -> None:
        text = _Contents(keys=keys).model_dump_json(indent=1, exclude_none=True)
        made = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as stream:
                with contextlib.suppress(FileNotFoundError):
                    # Mounted into a container, it may be read by that one's user as well.
                    os.fchmod(descriptor, self.path.stat().st_mode & 0o777)
                stream.write(f"{text}\n")
                stream.flush()
                os.fsync(stream.fileno())
            made.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            made.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"API keys {self.path}: expected a file that can be written, got: {error.strerror}; "
            "if it is a mounted secret, make the keys in another file and mount that"
        )


class Keyring:
    """The keys of a file that others change.

    A file that becomes unreadable leaves the keys as they were.

    Args:
        required: whether callers need a key even where there is none.

    Raises:
        ConfigurationError: the file cannot be used, or is required and not there.
    """

    def __init__(self, file: KeyFile, required: bool = False) -> None:
        self._file = file
        self._seen = self._stamp()
        self._keys = _by_hash(file.read(required))
        self._needed = required or bool(self._keys)
        self._next = 0.0

    @property
    def is_needed(self) -> bool:
        """Whether callers need a key: keys are required, or there was one."""
        self._follow()
        return self._needed

    def check(self, secret: str) -> Key:
        """The key of that secret; ApiError 401 if it is none, is revoked, or has expired."""
        self._follow()
        key = None
        if secret.startswith(PREFIX) and len(secret) <= _MAX_SECRET:
            hashed = digest(secret)
            key = self._keys.get(hashed)
            if key is not None and not hmac.compare_digest(key.hash, hashed):
                key = None
        if key is None:
            raise refused("got one that is not known")
        now = _now()
        if key.revoked is not None and key.revoked <= now:
            raise refused(f"got {key.id}, which is revoked")
        if key.expires is not None and key.expires <= now:
            raise refused(f"got {key.id}, which has expired")
        return key

    def _follow(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _CHECK_S
        if (stamp := self._stamp()) == self._seen:
            return
        if stamp is None:
            logger.error("API keys %s: the file is gone; its keys stay", self._file.path)
        else:
            try:
                self._keys = _by_hash(self._file.read(required=True))
                self._needed = self._needed or bool(self._keys)
            except ConfigurationError as error:
                logger.error("%s; the keys stay as they were", error)
        self._seen = stamp

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _by_hash(keys: tuple[Key, ...]) -> dict[str, Key]:
    return {key.hash: key for key in keys}


def refused(got: str) -> ApiError:
    """The error of a caller without a good key."""
    message = f"API key: expected a valid one in `Authorization: Bearer …`, {got}"
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def digest(secret: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _now() -> datetime:
    return datetime.now(timezone.utc)
