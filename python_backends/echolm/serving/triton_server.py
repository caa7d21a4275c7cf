"""The Triton Inference Server of the ``nvidia-pytriton`` wheel or of an image, as a process.

The wheel is only the carrier: its Python code is never imported. It holds the server, the
python backend and one backend stub per Python version; this module puts the matching ones
together in a private directory and starts the server over several model repositories.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import platform
import re
import secrets
import shutil
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from echolm.engines.worker.parent import ENV_LIBRARY_PATH
from echolm.errors import ConfigurationError, UnavailableError
from echolm.serving import guard
from echolm.serving.process import Command, GuardedProcess

SHM_DIR = Path("/dev/shm")
SYSTEM_ROOT = Path("/opt/tritonserver")
"""Where NVIDIA's images have Triton."""
SHM_PREFIX = "echolm-"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonInstallation:
    """Where the parts of Triton are.

    Attributes:
        root: ``pytriton/tritonserver`` in site-packages, or where an image has Triton.
        libraries: the shared libraries that the wheel brings along; None: those of the system.
        libpython_dir: holds ``libpython3.x.so.1.0``, which the wheel's backend stub is linked
            to; None: where the system finds it.
    """

    root: Path
    libraries: Path | None = None
    libpython_dir: Path | None = None

    @property
    def server(self) -> Path:
        """The ``tritonserver`` program."""
        return self.root / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The directory of backends."""
        return self.root / "backends"

    @property
    def from_wheel(self) -> bool:
        """Whether it is the wheel's, whose python backend has to be put together first."""
        return self.libraries is not None

    @property
    def stub(self) -> Path:
        """The python backend's stub; in the wheel, for the running Python version."""
        if self.from_wheel:
            return self.root / "python_backend_stubs" / _PYTHON / _STUB
        return self.backends / "python" / _STUB


def libpython_name() -> str:
    """File name of the shared library of the running Python."""
    return f"libpython{_PYTHON}.so.1.0"


def libpython_candidates() -> Iterable[Path]:
    """Directories in which the shared libpython can be, the running Python's own first."""
    libdir = sysconfig.get_config_var("LIBDIR")
    if libdir:
        yield Path(libdir)
    yield Path(sys.base_prefix) / "lib"
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    for base in ("/usr/lib", "/lib", "/usr/local/lib"):
        yield Path(base) / triplet
        yield Path(base)
    yield Path("/usr/lib64")


def find_libpython(candidates: Iterable[Path] | None = None) -> Path:
    """Directory of the shared libpython.

    Raises:
        ConfigurationError: there is none; a statically linked Python runs everything but
            the backend stub.
    """
    looked = list(dict.fromkeys(libpython_candidates() if candidates is None else candidates))
    for directory in looked:
        if (directory / libpython_name()).is_file():
            return directory
    raise ConfigurationError(
        f"shared Python library: expected {libpython_name()}, got none in "
        f"{', '.join(map(str, looked))}; Triton's python backend needs it: "
        f"`apt-get install libpython{_PYTHON}`, or a Python built with --enable-shared "
        f'(pyenv: `PYTHON_CONFIGURE_OPTS="--enable-shared" pyenv install {_PYTHON}`), '
        "then make the virtual environment anew"
    )


def find_triton(*, prefer_system: bool = False) -> TritonInstallation:
    """Find Triton: in the installed wheel, without importing it, or in an image of NVIDIA's.

    Args:
        prefer_system: the image's is taken if both are there; else the wheel's.

    Raises:
        ConfigurationError: there is none, or its stub for this Python or libpython is missing.
    """
    spec = importlib.util.find_spec("pytriton")
    system = _system_triton()
    if system is not None and (prefer_system or spec is None):
        return system
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"Triton: expected the package nvidia-pytriton in {sys.prefix}, or tritonserver in "
            f"{SYSTEM_ROOT} or on the path, got none; install it: `pip install nvidia-pytriton`, "
            "or run in an image of NVIDIA's (nvcr.io/nvidia/tritonserver)"
        )
    package = Path(spec.submodule_search_locations[0])
    found = TritonInstallation(
        root=package / "tritonserver",
        libraries=package.parent / "nvidia_pytriton.libs",
        libpython_dir=find_libpython(),
    )
    for part in (found.server, found.backends / "python", package.parent / "nvidia_pytriton.libs"):
        if not part.exists():
            raise ConfigurationError(
                f"Triton: expected {part}, which nvidia-pytriton carries, got nothing there; "
                "install it again: `pip install --force-reinstall nvidia-pytriton`"
            )
    if not found.stub.is_file():
        offered = sorted(path.name for path in found.stub.parent.parent.glob("*"))
        raise ConfigurationError(
            f"Triton's python backend: expected a stub for Python {_PYTHON}, got stubs for "
            f"{', '.join(offered)}; use one of these Python versions"
        )
    return found


def _system_triton() -> TritonInstallation | None:
    """The Triton of an image: a directory with ``bin/tritonserver`` and ``backends``.

    Raises:
        ConfigurationError: its python backend is missing or is for another Python version.
    """
    program = shutil.which("tritonserver", path=str(SYSTEM_ROOT / "bin"))
    program = program or shutil.which("tritonserver")
    if program is None:
        return None
    found = TritonInstallation(Path(program).resolve().parent.parent)
    try:
        linked = re.search(rb"libpython([0-9.]+)\.so", found.stub.read_bytes())
    except OSError:
        raise ConfigurationError(
            f"Triton in {found.root}: expected its python backend as {found.stub}, got nothing "
            "there; take an image that has it"
        ) from None
    version = linked[1].decode() if linked else _PYTHON
    if version != _PYTHON:
        raise ConfigurationError(
            f"Triton's python backend in {found.root}: expected it for Python {_PYTHON}, got one "
            f"for {version}; run EchoLM with Python {version}"
        )
    return found


@dataclass(frozen=True)
class TritonOptions:
    """How to run one server.

    Attributes:
        model_repositories: directories of models; no model name may be in two of them.
        run_dir: private directory for the backend and process files.
        log_file: log of the server and of all models.
        thread_pool_size: threads for BLS calls of each model, all in Triton's own process; more
            calls than this wait. Thousands of threads make each wake-up dear: 1,024 for each of
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
        """Start the server; :meth:`wait_ready` says when it can be used."""
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
        """What to say when the server has ended by itself."""
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
        """Put the python backend and the stub of this Python version together.

        Nothing is written to site-packages: it may be shared or read-only. An image has them
        together.
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
            (python / _STUB).symlink_to(stub)
        else:  # Some installers drop the run bit.
            shutil.copyfile(stub, python / _STUB)
            (python / _STUB).chmod(0o755)
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
