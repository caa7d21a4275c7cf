"""The Triton Inference Server as a process, over several model repositories."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echolm import private
from echolm.engines.worker.parent import ENV_LIBRARY_PATH
from echolm.errors import UnavailableError
from echolm.llm.triton_client import ADMIN_HEADER
from echolm.serving import guard, preflight
from echolm.serving.process import Command, GuardedProcess, GuardedServer, foreign_environment
from echolm.serving.triton_installation import STUB, TritonInstallation, find_triton

SHM_DIR = Path("/dev/shm")
SHM_PREFIX = "echolm-"
SHM_BYTE_SIZE = 4 << 20
"""First size, and step of growth, of each model instance's shared memory."""
_CONTROL = "model-repository"
RESTRICTED = (
    *("shared-memory", _CONTROL, "model-config"),
    *("statistics", "trace", "logging"),
)
"""Triton's protocols that are not for everybody: shared memory can be registered over that of other
programs, models unloaded, requests traced, and a log be written to any file."""
_BLS_THREADS = 64
"""Threads for BLS calls of each model, all in Triton's own process; more calls than this wait.

Thousands of threads make each wake-up slow: 1,024 for each of nine models halved the throughput.
"""
_LOAD_S = 300
"""Seconds for one model to load."""
_EXIT_S = 10
"""Seconds for requests in flight to finish when the server stops."""
_ASK_S = 5
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class TritonOptions:
    """How to run one server.

    Attributes:
        model_repositories: directories of models; no model name may be in two of them.
        run_dir: private directory for the backend and process files.
        environment: what the processes get on top of this process's environment, of which they
            do not get EchoLM's variables.
        extra_args: more arguments for ``tritonserver``.
        admin_key: what Triton wants for :data:`RESTRICTED`; empty leaves all of them open but that
            by which models are unloaded.
        cleanup: patterns of more files that are removed when the server has gone.
        keep_open: file descriptors to hold until the server has gone.
        metrics_port: on the loopback; 0 takes a free one at each start.
        taken_ports: of the server's other parts, which may not listen yet.
        verbose: log what models are loaded and the like, and copy the log to stderr.
    """

    model_repositories: tuple[Path, ...]
    run_dir: Path
    log_file: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 0
    taken_ports: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    admin_key: str = ""
    cleanup: tuple[str, ...] = ()
    keep_open: tuple[int, ...] = ()
    verbose: bool = False


class TritonServer(GuardedServer):
    """One ``tritonserver`` process with its model processes."""

    def __init__(
        self, options: TritonOptions, installation: TritonInstallation | None = None
    ) -> None:
        self.options = options
        self._installation = installation or find_triton()
        self._prefix_file = options.run_dir / "shm-prefix"
        self._admin_key = options.admin_key or secrets.token_hex(16)
        self._metrics_port = options.metrics_port

    def start(self) -> None:
        """Start the server; :meth:`wait_ready` waits until it can be used."""
        options, installation = self.options, self._installation
        options.run_dir.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        if not options.metrics_port:
            taken = {options.http_port, options.grpc_port, *options.taken_ports}
            self._metrics_port = preflight.free_port(_LOOPBACK, taken)
        prefix = f"{SHM_PREFIX}{secrets.token_hex(16)}-"  # nobody can guess what is in it
        with open(self._prefix_file, "w", opener=private.opener) as stream:
            stream.write(prefix)
        libraries = (installation.libraries, installation.libpython_dir)
        self._process = GuardedProcess(
            Command(
                name="Triton",
                program=self._arguments(prefix),
                environment=self.environment(),
                library_path=tuple(filter(None, libraries)),
                log_file=options.log_file,
                pid_file=options.run_dir / "tritonserver.pid",
                cleanup=(f"{SHM_DIR}/{prefix}*", *options.cleanup),
                keep_open=options.keep_open,
                # Python looks for packages in the current folder first: what lies where the server
                # is started, such as a folder echolm, would be imported in their place.
                directory=options.run_dir,
                grace_s=_EXIT_S + 5,
                echo=sys.stderr if options.verbose else None,
            )
        )

    def wait_ready(self, timeout_s: float, stop: threading.Event | None = None) -> None:
        """Wait until all models can be used, or ``stop`` is set.

        Raises:
            UnavailableError: the server ended or was not ready in time; with its last log lines.
        """
        stop = stop or threading.Event()
        deadline = time.monotonic() + timeout_s
        while not stop.is_set():
            if (status := self.poll()) is not None:
                raise UnavailableError(
                    f"Triton: expected it to start, got exit status {status}; {self.log_excerpt()}"
                )
            if self.is_ready():
                self._close_shared_memory()
                return
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Triton: expected all models ready within {timeout_s:g} s, got none; give it "
                    f"longer with --ready-timeout; {self.log_excerpt()}"
                )
            stop.wait(0.1)

    def is_ready(self) -> bool:
        """Whether all models are ready and the metrics, which Triton opens last, are served."""
        return self._answers("/v2/health/ready") and self.metrics() is not None

    def is_silent(self, timeout_s: float) -> bool:
        """Whether it lets a caller wait for longer than that; a refused connection is an answer."""
        try:
            self._ask("GET", "/v2/health/live", timeout_s)
        except TimeoutError:
            return True
        except (OSError, http.client.HTTPException):
            pass
        return False

    def metrics(self) -> bytes | None:
        """The page with its metrics; None if it does not give it."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, page = self._ask("GET", "/metrics", address=(_LOOPBACK, self._metrics_port))
            if status == 200:
                return page
        return None

    def load(self, model: str) -> None:
        """Load a model that is not loaded; returns when it answers.

        Raises:
            UnavailableError: it could not be loaded, or Triton does not answer.
        """
        self._control(model, "load", _LOAD_S + _ASK_S)
        self._close_shared_memory()

    def unload(self, model: str) -> None:
        """Let a model answer no more requests; those in flight end first, in the background.

        Raises:
            UnavailableError: Triton does not answer.
        """
        self._control(model, "unload", _ASK_S)

    @property
    def control_headers(self) -> dict[str, str]:
        """With which a gRPC client may load and unload models."""
        return {f"triton-grpc-protocol-{ADMIN_HEADER}": self._admin_key}

    def _control(self, model: str, action: str, timeout_s: float) -> None:
        path = f"/v2/repository/models/{model}/{action}"
        try:
            status, answer = self._ask("POST", path, timeout_s)
            problem = "" if status == 200 else answer.decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        if problem:
            raise UnavailableError(f"model {model}: expected Triton to {action} it, got: {problem}")

    def _answers(self, path: str, timeout_s: float = _ASK_S) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._ask("GET", path, timeout_s)[0] == 200
        return False

    def _ask(
        self,
        method: str,
        path: str,
        timeout_s: float = _ASK_S,
        address: tuple[str, int] | None = None,
    ) -> tuple[int, bytes]:
        host, port = address or (connect_host(self.options.host), self.options.http_port)
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            body = "{}" if method == "POST" else None
            connection.request(method, path, body, {ADMIN_HEADER: self._admin_key})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop the server and its models, and remove its shared memory; may be repeated."""
        if self._process is not None:
            super().stop()
            self._prefix_file.unlink(missing_ok=True)

    def _close_shared_memory(self) -> None:
        """Let nobody but its owner read what the python backend shares with its models.

        It gives each region the mode 0644 itself, whatever the umask.
        """
        with contextlib.suppress(FileNotFoundError):  # while it stops
            for path in SHM_DIR.glob(f"{self._prefix_file.read_text()}*"):
                path.chmod(0o600)

    def _remove_leftovers(self) -> None:
        """Remove the shared memory of an earlier server of this directory that was killed."""
        try:
            prefix = self._prefix_file.read_text().strip()
        except OSError:
            return
        if prefix.startswith(SHM_PREFIX) and "/" not in prefix:
            guard.remove(f"{SHM_DIR}/{prefix}*")

    def _backend_directory(self) -> Path:
        """A private directory with the python backend and the wheel's stub of this Python version.

        Nothing is written to site-packages, which may be shared or read-only. In an image both are
        in one directory already.
        """
        installation = self._installation
        if not installation.from_wheel:
            return installation.backends
        directory = self.options.run_dir / "backends"
        shutil.rmtree(directory, ignore_errors=True)
        python = directory / "python"
        for made in (directory, python):
            made.mkdir(mode=0o700, parents=True)
        for part in ("libtriton_python.so", "triton_python_backend_utils.py"):
            (python / part).symlink_to(installation.backends / "python" / part)
        if os.access(installation.stub, os.X_OK):
            (python / STUB).symlink_to(installation.stub)
        else:  # Some installers do not keep the permission to execute it.
            shutil.copyfile(installation.stub, python / STUB)
            (python / STUB).chmod(0o700)
        return directory

    def _arguments(self, shm_prefix: str) -> list[str]:
        options = self.options
        python_backend = {
            "thread-pool-size": _BLS_THREADS,
            "shm-default-byte-size": SHM_BYTE_SIZE,
            "shm-growth-byte-size": SHM_BYTE_SIZE,
            "shm-region-prefix-name": shm_prefix,
            "stub-timeout-seconds": _LOAD_S,
        }
        return [
            str(self._installation.server),
            *(f"--model-repository={path}" for path in options.model_repositories),
            f"--backend-directory={self._backend_directory()}",
            *(f"--backend-config=python,{key}={value}" for key, value in python_backend.items()),
            # Loading is CPU-bound, but models wait for each other's stubs to start.
            f"--model-load-thread-count={max(4, os.cpu_count() or 1)}",
            f"--http-address={options.host}",
            f"--grpc-address={options.host}",
            f"--metrics-address={_LOOPBACK}",
            f"--http-port={options.http_port}",
            f"--grpc-port={options.grpc_port}",
            f"--metrics-port={self._metrics_port}",
            f"--exit-timeout-secs={_EXIT_S}",
            # A model whose process has died can only be loaded anew by explicit request.
            "--model-control-mode=explicit",
            "--load-model=*",
            *restriction(RESTRICTED if options.admin_key else (_CONTROL,), self._admin_key),
            f"--log-info={str(options.verbose).lower()}",
            "--log-warning=true",
            "--log-error=true",
            "--log-format=ISO8601",
            *options.extra_args,
        ]

    def environment(self) -> dict[str, str]:
        """The environment of the server and its models (but for LD_LIBRARY_PATH)."""
        environment = foreign_environment()
        # The stub embeds Python: it takes site-packages from the python3 that it finds on PATH.
        for name in ("PYTHONHOME", "PYTHONPATH"):
            environment.pop(name, None)
        path = environment.get("PATH", os.defpath)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
        environment[ENV_LIBRARY_PATH] = environment.get("LD_LIBRARY_PATH", "")
        return environment | dict(self.options.environment)


def restriction(protocols: Sequence[str], admin_key: str) -> tuple[str, str]:
    """Arguments by which Triton wants the key for these protocols."""
    names = ",".join(protocols)
    return (
        f"--http-restricted-api={names}:{ADMIN_HEADER}={admin_key}",
        f"--grpc-restricted-protocol={names}:{ADMIN_HEADER}={admin_key}",
    )


def connect_host(host: str) -> str:
    """The address at which a client on this machine reaches a server bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
