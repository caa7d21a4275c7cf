"""The gateway as a process, in front of a Triton that is ready."""

from __future__ import annotations

import http.client
import ssl
import sys
import threading
import time
from pathlib import Path

from echolm.errors import UnavailableError
from echolm.serving.data_dir import DataDir
from echolm.serving.process import Command, GuardedProcess, GuardedServer, foreign_environment
from echolm.serving.triton_server import connect_host
from echolm.settings import ENV_CONFIG, Settings

_START_S = 60.0
_GRACE_S = 15.0


class GatewayServer(GuardedServer):
    """One gateway with its workers.

    Args:
        configuration: file with the resolved settings.
    """

    def __init__(self, settings: Settings, data: DataDir, configuration: Path) -> None:
        gateway = settings.gateway
        self._host, self._port = connect_host(gateway.host), gateway.port
        self._tls = gateway.tls_certificate is not None
        self._command = Command(
            name="gateway",
            # Isolated: a folder echolm where the server was started is not the package.
            program=[sys.executable, "-I", "-m", "echolm.gateway"],
            environment=foreign_environment() | {ENV_CONFIG: str(configuration)},
            log_file=data.logs / "gateway.log",
            pid_file=data.run / "gateway.pid",
            keep_open=(data.lock_fd,),
            directory=data.run,
            grace_s=_GRACE_S,
        )

    @property
    def url(self) -> str:
        """Base of OpenAI's API, as its clients want it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}/v1"

    def start(self, stop: threading.Event | None = None) -> None:
        """Start the gateway and wait until it answers, or ``stop`` is set.

        Raises:
            UnavailableError: it ended, or did not answer in time and was ended.
        """
        stop = stop or threading.Event()
        self._process = GuardedProcess(self._command)
        deadline = time.monotonic() + _START_S
        while not stop.is_set() and not self._answers():
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                got = "no answer" if status is None else f"exit status {status}"
                self.kill()
                raise UnavailableError(
                    f"gateway: expected it to start within {_START_S:g} s, got {got}; "
                    f"{self.log_excerpt()}"
                )
            stop.wait(0.05)

    def _answers(self) -> bool:
        connection: http.client.HTTPConnection
        if self._tls:
            # Whether it lives is asked; its certificate has another name than the loopback's.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=5, context=context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
