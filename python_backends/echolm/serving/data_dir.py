"""The data directory of a server: layout, exclusive use, signing key, resolved configuration.

What EchoLM writes only its owner may read: directories have the mode 0700 and files 0600. Nothing
else in the directory is touched.

::

    data_dir/
      lock            held (flock) while a server runs here; contains its process id
      signing.key     signs feedback tokens, and the calls of EchoLM's models to each other
      admin.key       for Triton's restricted protocols
      milvus.db       the examples, where Milvus Lite keeps them
      events.sqlite   the learning log, unless it is elsewhere
      examples.write_ahead_log.sqlite
                      admitted interactions that the store does not have yet
      examples.statistics.sqlite
                      what each example is worth; rebuilt from the learning log if it is removed
      keys.json       the gateway's API keys, hashed, unless they are elsewhere
      gateway.sqlite  what keys have used of their limits, and tokens by response id
      load.table      load of all routers, and load.table.prompts the retrievers' prefix index
      logs/           triton.log, milvus.log, gateway.log; those of the run before as *.log.1
      run/            only while a server runs: echolm.toml as resolved, the backend, pid files
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import time
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import tomli_w
from pydantic import BaseModel, SecretStr

from echolm.errors import ConfigurationError
from echolm.gateway.keys import KeyFile
from echolm.judges.grader import absolute_grader
from echolm.private import UMASK
from echolm.settings import Settings
from echolm.settings.sections import BUILT_IN_CHAT_TEMPLATES

CONFIGURATION = "echolm.toml"
"""Name of the resolved configuration in ``run``."""

LOAD_TABLE_PREFIX = "echolm-load-"
"""Begins the name of a load table that only this run uses."""

_SHUTDOWN_S = 30.0

_FOLDERS = ("logs", "run")
_FILES = (
    *("lock", "signing.key", "admin.key", "milvus.db", "events.sqlite", "past_traffic.sqlite"),
    *("examples.write_ahead_log.sqlite", "examples.statistics.sqlite", "keys.json"),
    *("gateway.sqlite", "load.table", "load.table.prompts"),
)
_BESIDE = ("-wal", "-shm", ".lock")
"""Ends of files that SQLite and locks put beside a file; Milvus Lite's lock begins with a dot."""
_OWN = frozenset(
    {*_FOLDERS, *_FILES, ".milvus.db.lock", *(f + end for f in _FILES for end in _BESIDE)}
)
"""Names that EchoLM itself gives to what it writes in a data directory."""

_Model = TypeVar("_Model", bound=BaseModel)


class DataDir:
    """A data directory in exclusive use by this process, until :meth:`close`.

    Attributes:
        lock_fd: descriptor of the lock; a process that inherits it keeps the directory in use.
    """

    def __init__(self, path: Path) -> None:
        """Create the directory where it is missing, and lock it.

        Raises:
            ConfigurationError: it cannot be written, another server uses it, or it has files of
                something else.
        """
        self.path = path.resolve()
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self.milvus_db = milvus_database(self.path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            was_used = _was_used(self.path)
            self.lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            self._lock()
            for directory in (self.run, self.logs):
                directory.mkdir(mode=0o700, exist_ok=True)
            if was_used:
                _make_private(self.path)
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other servers use the directory."""
        if self.lock_fd >= 0:
            # Not unlocked: guards that inherited the descriptor keep the lock until they end.
            os.close(self.lock_fd)
            self.lock_fd = -1

    def signing_key(self) -> SecretStr:
        """The key in ``signing.key``, which the first start writes."""
        return self._key("signing.key", "ratings of earlier answers will then be refused")

    def admin_key(self) -> SecretStr:
        """The key in ``admin.key``, which the first start writes."""
        return self._key("admin.key", "those who have it need the new one")

    def _key(self, name: str, consequence: str) -> SecretStr:
        file = self.path / name
        with contextlib.suppress(FileExistsError), _private(file) as stream:
            stream.write(f"{secrets.token_urlsafe(32)}\n".encode())
        key = file.read_text().strip()
        if not key:
            raise ConfigurationError(
                f"{name.replace('.', ' ')} {file}: expected a key, got an empty file; remove it to "
                f"have a new one made ({consequence})"
            )
        return SecretStr(key)

    def write_secret(self, name: str, value: SecretStr) -> Path:
        """Write a secret for the processes of this run; returns the file."""
        file = self.run / name
        file.unlink(missing_ok=True)
        with _private(file) as stream:
            stream.write(value.get_secret_value().encode())
        return file

    def write_configuration(self, settings: Settings) -> Path:
        """Write the settings as the model processes will read them; returns the file.

        All paths are absolute and all secrets in clear, so only the owner may read it.
        """
        file = self.run / CONFIGURATION
        file.unlink(missing_ok=True)
        with _private(file) as stream:
            # Through JSON, since TOML's writer takes neither paths nor secrets.
            values = json.dumps(settings.model_dump(exclude_none=True), default=_plain)
            tomli_w.dump(json.loads(values), stream)
        return file

    def _lock(self) -> None:
        deadline = time.monotonic() + _SHUTDOWN_S
        while True:
            try:
                fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self.lock_fd, 32, 0).decode(errors="replace").strip()
                # The owner may have died while its guards still clean up: they get some time.
                alive = owner.isdigit() and Path("/proc", owner).exists()
                if alive or time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"data directory {self.path}: expected it to be free, got it in use by a "
                        f"running server (process {owner or 'unknown'}); stop that server, or "
                        "choose another with --data-dir"
                    ) from None
                time.sleep(0.1)
            else:
                os.ftruncate(self.lock_fd, 0)
                os.pwrite(self.lock_fd, f"{os.getpid()}\n".encode(), 0)
                return


def resolve(settings: Settings, data: DataDir, milvus_uri: str, grpc_url: str) -> Settings:
    """The settings with absolute paths, both addresses and a signing key."""
    log, feedback = settings.event_log_path, settings.feedback
    if not feedback.signing_key.get_secret_value():
        feedback = _changed(feedback, signing_key=data.signing_key())
    triton, table = settings.triton, settings.load_table_path.resolve()
    if triton.restrict and not triton.admin_key.get_secret_value():
        triton = _changed(triton, admin_key=data.admin_key())
    if table.is_dir():
        table /= f"{LOAD_TABLE_PREFIX}{secrets.token_hex(16)}.table"
    judging, embedding, gateway = settings.judging, settings.embedding, settings.gateway
    return _changed(
        settings,
        grpc_url=grpc_url,
        data_dir=data.path,
        event_log=str(log.resolve()) if log else settings.event_log,
        embedding=_changed(embedding, model_dir=embedding.model_dir.resolve()),
        retrieval=_changed(settings.retrieval, milvus_uri=milvus_uri),
        routing=_changed(settings.routing, load_table=str(table)),
        feedback=feedback,
        triton=triton,
        gateway=_changed(
            gateway,
            keys_path=_absolute(settings.keys_path),
            require_keys=settings.keys_are_required
            or (gateway.enabled and bool(KeyFile(settings.keys_path).read())),
            tls_certificate=gateway.tls_certificate and _absolute(gateway.tls_certificate),
            tls_key=gateway.tls_key and _absolute(gateway.tls_key),
        ),
        judging=_changed(
            judging,
            prompt=judging.prompt and judging.prompt.resolve(),
            grader=absolute_grader(judging.grader),
        ),
        llms=tuple(
            _changed(
                llm,
                chat_template=_absolute_template(llm.chat_template),
                **{
                    name: _absolute(value)
                    for name in type(llm).model_fields
                    if isinstance(value := getattr(llm, name), Path)
                },
            )
            for llm in settings.llms
        ),
    )


def _absolute(path: Path) -> Path:
    """The path without its links followed: a mounted secret's change with its contents."""
    return Path(os.path.abspath(path))


def _absolute_template(chosen: str) -> str:
    is_path = chosen and chosen not in BUILT_IN_CHAT_TEMPLATES
    return str(_absolute(Path(chosen))) if is_path else chosen


def _changed(model: _Model, **values: Any) -> _Model:
    return model.model_copy(update=values)


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"data directory {path}: expected a directory that can be written, got: {error.strerror} "
        f"({error.filename}); choose another with --data-dir"
    )


def _was_used(path: Path) -> bool:
    """Whether a server has used the directory: its lock says so.

    Raises:
        ConfigurationError: none has, and something else keeps its files here, such as a user whose
            home it is. Hidden files do not count: containers have caches there.
    """
    lock = path / "lock"
    # A start that was killed leaves it empty.
    if lock.is_file() and re.fullmatch(rb"(\d+\n)?", lock.read_bytes()[:32]):
        return True
    others = sorted(
        name
        for name in os.listdir(path)
        if (name not in _OWN or name == "lock")
        and not name.startswith(".")
        # A volume that is a file system of its own has a folder for what its repair finds.
        and name != "lost+found"
    )
    if others:
        raise ConfigurationError(
            f"data directory {path}: expected a new or empty folder, or that of an EchoLM server, "
            f"got one with other files ({', '.join(others[:3])}); choose another with --data-dir"
        )
    return False


def _make_private(directory: Path) -> None:
    """Take all rights of others from what EchoLM has written, as earlier versions left it.

    The directory itself keeps its rights if anything else is in it.
    """
    names = set(os.listdir(directory))
    if names <= _OWN:
        _take_rights(directory)
    for name in names & _OWN:
        _take_rights(directory / name)
    for folder in (directory / name for name in _FOLDERS):
        if not folder.is_symlink():
            for entry in folder.iterdir():
                _take_rights(entry)


def _take_rights(path: Path) -> None:
    """Leave the rights of the owner, who is this process's user: else nothing is done."""
    with contextlib.suppress(PermissionError, FileNotFoundError):
        known = os.lstat(path)
        if (
            known.st_mode & UMASK
            and known.st_uid == os.geteuid()
            and not stat.S_ISLNK(known.st_mode)
        ):
            os.chmod(path, stat.S_IMODE(known.st_mode) & ~UMASK)


def _private(file: Path) -> BinaryIO:
    """A new file that only its owner may read."""
    return open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def milvus_database(path: Path) -> Path:
    """Where Milvus Lite keeps the examples of a data directory."""
    return path / "milvus.db"


def running_configuration(path: Path) -> Path | None:
    """The resolved configuration of the server that runs on a data directory, if one does."""
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file = path / "run" / CONFIGURATION
        return file if file.is_file() else None
    finally:
        os.close(descriptor)
    return None


def _plain(value: SecretStr | Path) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
