"""A real Milvus on this machine, for tests: Milvus Lite, and a server.

Milvus standalone as one program comes from the PyPI package ``milvus``, which needs an
environment of its own; it is made once, in ``build/milvus-server``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import venv
from pathlib import Path

from echolm.serving.milvus_lite import MilvusLite, MilvusLiteOptions
from pymilvus import MilvusClient

VERSION = "2.3.5"
REPOSITORY = Path(__file__).resolve().parents[1]
_START_TIMEOUT_S = 120.0


def installed() -> Path:
    """The server's program."""
    directory = REPOSITORY / "build" / f"milvus-server-{VERSION}"
    program = directory / "bin" / "milvus-server"
    if not program.exists():
        venv.create(directory, with_pip=True)
        command = [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += ["--disable-pip-version-check", "--no-deps", f"milvus=={VERSION}"]
        subprocess.run(command, check=True)
    return program


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def start_milvus_lite(directory: Path) -> MilvusLite:
    """Milvus Lite with its file in a directory."""
    milvus = MilvusLite(
        MilvusLiteOptions(directory / "examples.db", directory, directory / "milvus.log")
    )
    milvus.start()
    return milvus


class MilvusServer:
    """Milvus standalone with its data in a directory; started by the constructor.

    One at a time: its parts talk to each other over fixed ports (2379, 2380, 9092, 53100 …).
    """

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        command = [str(installed()), "--data", str(directory / "data"), "--proxy-port", str(port)]
        self._log = directory / "milvus-server.log"
        with self._log.open("wb") as log:
            # It writes files into its working directory.
            self._process = subprocess.Popen(
                command, cwd=directory, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                client = MilvusClient(uri=self.uri, timeout=2)
                client.list_collections(timeout=5)
                client.close()
                return
            except Exception as error:  # nothing there yet, or not ready
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"Milvus server: {error}\n{self._log.read_text()[-2000:]}"
                    ) from error
                time.sleep(0.5)

    def stop(self) -> None:
        """End it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
