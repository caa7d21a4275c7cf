"""The Triton Inference Server as a process, over several model repositories.

The ``nvidia-pytriton`` wheel holds the server, the python backend and one backend stub for each
Python version; the matching ones are put together in a private directory.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from echolm.engines.worker.parent import ENV_LIBRARY_PATH
from echolm.errors import UnavailableError
from echolm.serving import guard
from echolm.serving.process import Command, GuardedProcess
from echolm.serving.triton_installation import STUB, TritonInstallation, find_triton

SHM_DIR = Path("/dev/shm")
SHM_PREFIX = "echolm-"


@dataclass(frozen=True)
class TritonOptions:
    """How to run one server.

    Attributes:
        model_repositories: directories of models; no model name may be in two of them.
        run_dir: private directory for the backend and process files.
        log_file: log of the server and of all models.
        thread_pool_size: threads for BLS calls of each model, all in Triton's own process; more
            calls than this wait. Thousands of threads make each wake-up slow: 1,024 for each of
            nine models halved the throughput.
        shm_byte_size: first size, and step of growth, of each model instance's shared memory.
        stub_timeout_s: time for one model to load.
        exit_timeout_s: time for requests in flight to finish when the server stops.
        environment: what the processes get on top of this process's environment.
        drop_environment: prefixes of variables that they do not get.
        extra_args: more arguments for ``tritonserver``.
        keep_open: file descriptors to hold until the server has gone.
        verbose: log what models are loaded and the like.
        echo: stream that gets a copy of the log.
    """

    model_repositories: tuple[Path, ...]
    run_dir: Path
    log_file: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    model_control_mode: Literal["none", "poll", "explicit"] = "none"
    load_models: tuple[str, ...] = ()
    thread_pool_size: int = 64
    shm_byte_size: int = 4 << 20
    stub_timeout_s: int = 300
    exit_timeout_s: int = 10
    environment: Mapping[str, str] = field(default_factory=dict)
    drop_environment: tuple[str, ...] = ("ECHOLM_",)
    extra_args: tuple[str, ...] = ()
    keep_open: tuple[int, ...] = ()
    verbose: bool = False
    echo: TextIO | None = None


class TritonServer:
    """One ``tritonserver`` process with its model processes."""

    def __init__(
        self, options: TritonOptions, installation: TritonInstallation | None = None
    ) -> None:
        self.options = options
        self._installation = installation or find_triton()
        self._process: GuardedProcess | None = None

    @property
    def process(self) -> GuardedProcess:
        """The running (or ended) process; only after :meth:`start`."""
        if self._process is None:
            raise RuntimeError("TritonServer.start() has not been called")
        return self._process

    def start(self) -> None:
        """Start the server; :meth:`wait_ready` waits until it can be used."""
        options = self.options
        options.run_dir.mkdir(parents=True, exist_ok=True)
        record = options.run_dir / "shm-prefix"
        self._remove_leftovers(record)
        prefix = f"{SHM_PREFIX}{secrets.token_hex(4)}-"
        record.write_text(prefix)
        self._process = GuardedProcess(
            Command(
                name="Triton",
                program=self._arguments(prefix),
                environment=self.environment(),
                library_path=tuple(
                    filter(None, (self._installation.libraries, self._installation.libpython_dir))
                ),
                log_file=options.log_file,
                pid_file=options.run_dir / "tritonserver.pid",
                cleanup=(f"{SHM_DIR}/{prefix}*",),
                keep_open=options.keep_open,
                grace_s=options.exit_timeout_s + 5,
                echo=options.echo,
            )
        )

    def wait_ready(self, timeout_s: float, stop: threading.Event | None = None) -> bool:
        """Wait until all models can be used.

        Args:
            timeout_s: after this the start has failed.
            stop: ends the wait early when set.

        Returns:
            Whether the server is ready: False only when ``stop`` was set.

        Raises:
            UnavailableError: the server ended or was not ready in time; with its last log lines.
        """
        stop = stop or threading.Event()
        deadline = time.monotonic() + timeout_s
        while not stop.is_set():
            status = self.process.poll()
            if status is not None:
                raise UnavailableError(
                    f"Triton: expected it to start, got exit status {status}; {self._log_excerpt()}"
                )
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Triton: expected all models ready within {timeout_s:g} s, got none; give it "
                    f"longer with --ready-timeout; {self._log_excerpt()}"
                )
            stop.wait(0.1)
        return False

    def is_ready(self) -> bool:
        """Whether all models are ready and the metrics, which Triton opens last, are served."""
        return self._answers(self.options.http_port, "/v2/health/ready") and self._answers(
            self.options.metrics_port, "/metrics"
        )

    def _answers(self, port: int, path: str) -> bool:
        connection = http.client.HTTPConnection(connect_host(self.options.host), port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def poll(self) -> int | None:
        """Exit status of a server that has ended, else None."""
        return self.process.poll()

    def stop(self) -> None:
        """Stop the server, its models and remove its shared memory; may be repeated."""
        if self._process is not None:
            self._process.stop()
            (self.options.run_dir / "shm-prefix").unlink(missing_ok=True)

    def kill(self) -> None:
        """As :meth:`stop`, at once: requests in flight are lost."""
        if self._process is not None:
            self._process.kill()

    def death_notice(self) -> str:
        """The message for a server that has ended by itself."""
        return f"Triton ended by itself, exit status {self.poll()}; {self._log_excerpt()}"

    def _log_excerpt(self) -> str:
        tail = self.process.log_tail() or "(empty)"
        return f"last lines of {self.options.log_file}:\n{tail}"

    def _remove_leftovers(self, record: Path) -> None:
        """Remove the shared memory of an earlier server of this directory that was killed."""
        try:
            prefix = record.read_text().strip()
        except OSError:
            return
        if prefix.startswith(SHM_PREFIX) and "/" not in prefix:
            guard.remove(f"{SHM_DIR}/{prefix}*")

    def _backend_directory(self) -> Path:
        """Put the python backend and the stub of this Python version into one directory.

        Nothing is written to site-packages: it may be shared or read-only. In an image they are
        in one directory already.
        """
        if not self._installation.from_wheel:
            return self._installation.backends
        directory = self.options.run_dir / "backends"
        shutil.rmtree(directory, ignore_errors=True)
        python = directory / "python"
        python.mkdir(parents=True)
        source = self._installation.backends / "python"
        for part in ("libtriton_python.so", "triton_python_backend_utils.py"):
            (python / part).symlink_to(source / part)
        stub = self._installation.stub
        if os.access(stub, os.X_OK):
            (python / STUB).symlink_to(stub)
        else:  # Some installers do not keep the permission to execute it.
            shutil.copyfile(stub, python / STUB)
            (python / STUB).chmod(0o755)
        return directory

    def _arguments(self, shm_prefix: str) -> list[str]:
        options = self.options
        python_backend = {
            "thread-pool-size": options.thread_pool_size,
            "shm-default-byte-size": options.shm_byte_size,
            "shm-growth-byte-size": options.shm_byte_size,
            "shm-region-prefix-name": shm_prefix,
            "stub-timeout-seconds": options.stub_timeout_s,
        }
        return [
            str(self._installation.server),
            *(f"--model-repository={path}" for path in options.model_repositories),
            f"--backend-directory={self._backend_directory()}",
            *(f"--backend-config=python,{key}={value}" for key, value in python_backend.items()),
            f"--model-control-mode={options.model_control_mode}",
            *(f"--load-model={name}" for name in options.load_models),
            # Loading is CPU-bound, but models wait for each other's stubs to start.
            f"--model-load-thread-count={max(4, os.cpu_count() or 1)}",
            f"--http-address={options.host}",
            f"--http-port={options.http_port}",
            f"--grpc-address={options.host}",
            f"--grpc-port={options.grpc_port}",
            f"--metrics-address={options.host}",
            f"--metrics-port={options.metrics_port}",
            f"--exit-timeout-secs={options.exit_timeout_s}",
            f"--log-info={str(options.verbose).lower()}",
            "--log-warning=true",
            "--log-error=true",
            "--log-format=ISO8601",
            *options.extra_args,
        ]

    def environment(self) -> dict[str, str]:
        """The environment of the server and its models (but for LD_LIBRARY_PATH)."""
        options = self.options
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(options.drop_environment)
        }
        # The stub embeds Python: it takes site-packages from the python3 that it finds on PATH.
        for name in ("PYTHONHOME", "PYTHONPATH"):
            environment.pop(name, None)
        environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
        )
        environment[ENV_LIBRARY_PATH] = environment.get("LD_LIBRARY_PATH", "")
        environment.update(options.environment)
        return environment


def connect_host(host: str) -> str:
    """The address at which a client on this machine reaches a server bound to ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
