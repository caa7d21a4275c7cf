"""A real Redis server for tests: Debian's ``redis-server`` on a free port."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis

_START_S = 20.0


class RedisServer:
    """Runs in a directory of its own, where its append-only file outlives it.

    Args:
        options: as on the server's command line, e.g. ``{"appendfsync": "everysec"}``.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        if shutil.which("redis-server") is None:
            pytest.fail("redis-server not found; install it: apt-get install redis-server")
        self._directory = directory
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": ""} | options
        if "replicaof" in options:
            # A replica writes its append-only file anew after the first synchronisation, and
            # Redis drops a SIGTERM that comes meanwhile ("Writing initial AOF, can't exit").
            self._options["appendonly"] = "no"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start and wait until it answers."""
        log = (self._directory / "redis.log").open("ab")
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        for key, value in self._options.items():
            command += [f"--{key}", value]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._directory)], stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + _START_S
        with redis.Redis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        self.stop()
                        text = (self._directory / "redis.log").read_text()[-2_000:]
                        pytest.fail(f"redis-server does not answer: {error}\n{text}")
                    time.sleep(0.05)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in peace; it need not run."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_START_S)
            self._process = None
