"""EchoLM on one machine: Milvus Lite, Triton and the gateway, started and stopped as one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import echolm
from echolm.contracts import REMOTE_LLM
from echolm.embedding import minilm
from echolm.embedding.spec import MODEL_FILE, SPEC_FILE, TOKENIZER_FILE, EmbedderSpec
from echolm.errors import ConfigurationError, EchoError
from echolm.serving import preflight
from echolm.serving.data_dir import CONFIGURATION, LOAD_TABLE_PREFIX, DataDir, resolve
from echolm.serving.gateway import GatewayServer
from echolm.serving.milvus_lite import MilvusLite
from echolm.serving.model_config import is_python
from echolm.serving.restarts import Backoff
from echolm.serving.status_page import StatusPage
from echolm.serving.supervisor import Part, Supervisor
from echolm.serving.triton_installation import find_triton
from echolm.serving.triton_server import (
    SHM_BYTE_SIZE,
    TritonOptions,
    TritonServer,
    connect_host,
)
from echolm.settings import ENV_CONFIG, Settings

Progress = Callable[[str], None]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Set to 1 for the model processes of a CPU profile, unless the user has set them.

Otherwise each process would start a thread per core for vectors of a few hundred numbers, and
together they would push the LLM engines off the cores. The engines do not use OpenMP (OpenVINO
has threads of its own, ONNX Runtime takes ``embedding.threads``).
"""

_TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
"""Set to ``false`` in the same way: a batch of texts is too little work to share, and waking the
tokenizer's threads for it took up to three times its CPU time."""

_CPU_ARGS = ("--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false")
"""For Triton without a GPU, which otherwise reports the missing driver as an error."""

_EARLIER_DATA_DIR = Path("build/data")
"""The default of versions before December 2026, in the folder where a server was started."""
_ENV_KEY_FILE = "ECHOLM_FEEDBACK__SIGNING_KEY_FILE"
_CPU_PROFILES = ("local", "remote")
_CPU_LOAD_S, _GPU_LOAD_S = 300.0, 1_800.0


@dataclass(frozen=True)
class ServeOptions:
    """How to serve; what is served is in the settings.

    Attributes:
        profile: directory of the model repository that is served along with ``core``; None
            serves only ``model_repositories``.
        repository_root: holds ``core`` and the profiles; None finds that of this checkout.
        model_repositories: more directories of models.
        host: address on which Triton listens.
        metrics_host: address of :class:`StatusPage`; None: ``host``.
        http_port, grpc_port: of Triton; 0 takes a free port.
        metrics_port: of :class:`StatusPage`; 0 takes a free port.
        gateway_port: 0 takes a free port; None starts no gateway.
        ready_timeout_s: seconds for all models to load; None: five minutes on CPUs, half an hour
            on GPUs.
        verbose: show Triton's log on stderr, and log more.
        triton_args: more arguments for ``tritonserver``, behind EchoLM's own.
    """

    profile: str | None = "local"
    repository_root: Path | None = None
    model_repositories: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    metrics_host: str | None = None
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    gateway_port: int | None = None
    ready_timeout_s: float | None = None
    verbose: bool = False
    triton_args: tuple[str, ...] = ()

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of Triton's HTTP and gRPC, and of the metrics."""
        return self.http_port, self.grpc_port, self.metrics_port

    @property
    def on_gpus(self) -> bool:
        """Whether the profile's LLMs are on GPUs."""
        return self.profile not in (None, *_CPU_PROFILES)

    @property
    def load_s(self) -> float:
        """Seconds for all models to load."""
        return self.ready_timeout_s or (_GPU_LOAD_S if self.on_gpus else _CPU_LOAD_S)


@dataclass(frozen=True)
class Endpoints:
    """Where a running server is reached.

    Attributes:
        grpc_url: ``host:port``, as ``tritonclient.grpc`` wants it.
        http_url: ``http://host:port``; ``tritonclient.http`` wants :attr:`http_address`.
        metrics_url: the page with Prometheus metrics.
        gateway_url: base of OpenAI's API, ``http://host:port/v1``; empty if there is no gateway.
        pids: process ids by name: ``triton``, and ``milvus`` and ``gateway`` if they were started.
    """

    grpc_url: str
    http_url: str
    metrics_url: str
    data_dir: Path
    gateway_url: str = ""
    pids: Mapping[str, int] = field(default_factory=dict)

    @property
    def http_address(self) -> str:
        """``host:port`` of HTTP."""
        return self.http_url.removeprefix("http://")

    @property
    def ready_url(self) -> str:
        """Answers 200 if all models, and the gateway, can be used, else 503."""
        return f"{self.metrics_url.removesuffix('/metrics')}/health/ready"


class StartInterruptedError(EchoError):
    """The start was given up because a stop was requested."""


@contextlib.contextmanager
def running_server(
    settings: Settings, options: ServeOptions | None = None, *, progress: Progress | None = None
) -> Iterator[Endpoints]:
    """A server that runs as long as the ``with`` block, for programs.

    Raises:
        ConfigurationError: something that is needed is missing or wrong.
        UnavailableError: Triton or Milvus Lite did not start.
    """
    server = LocalServer(settings, options or ServeOptions(), progress=progress)
    try:
        endpoints = server.start()
        server.supervise()
        yield endpoints
    finally:
        server.stop()


class LocalServer:
    """Milvus Lite and Triton over one data directory."""

    def __init__(
        self, settings: Settings, options: ServeOptions, *, progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._options = options
        self._report: Progress = progress or (lambda message: None)
        self._data: DataDir | None = None
        self._milvus: MilvusLite | None = None
        self._triton: TritonServer | None = None
        self._gateway: GatewayServer | None = None
        self._supervisor: Supervisor | None = None
        self._status: StatusPage | None = None
        self._ready = False

    def start(self, stop: threading.Event | None = None) -> Endpoints:
        """Check, prepare and start everything; returns when all models are ready.

        From then on :meth:`supervise` keeps it going.

        Raises:
            StartInterruptedError: ``stop`` was set meanwhile.
            ConfigurationError, UnavailableError: as :func:`running_server`.
        """
        stop = stop or threading.Event()
        options = _with_ports(self._options, self._settings.gateway.host)
        settings = _with_gateway_port(self._settings, options.gateway_port)
        repositories = model_repositories(options)

        preflight.check_python()
        preflight.check_llm_servers(settings)
        installation = find_triton(prefer_system=options.on_gpus)
        preflight.check_host(installation.from_wheel)
        models = preflight.models_in(repositories)
        preflight.check_backends(models, installation.backends)
        if options.profile is not None:
            preflight.check_models(models, settings)
        metrics_host = options.metrics_host or options.host
        ports = zip(("--http-port", "--grpc-port", "--metrics-port"), options.ports, strict=True)
        preflight.check_ports(options.host, dict(ports))
        preflight.check_ports(metrics_host, {"--metrics-port": options.metrics_port})
        if options.gateway_port is not None:
            preflight.check_gateway(settings)
        if warning := earlier_data(settings):
            self._report(warning)
        self._data = data = DataDir(settings.data_dir)
        if options.profile is not None:
            prepare_embedder(settings, self._report)
        _check(stop)

        milvus_uri = settings.retrieval.milvus_uri
        if not milvus_uri:
            self._report("starting Milvus Lite")
            self._milvus = milvus = MilvusLite.over(data)
            milvus.start(stop=stop)
            _check(stop)
            milvus_uri = milvus.uri
        host = _in_url(connect_host(options.host))
        grpc_url = f"{host}:{options.grpc_port}"
        resolved = resolve(settings, data, milvus_uri, grpc_url)
        configuration = data.write_configuration(resolved)
        # The front door is no Python, and reads no TOML.
        key_file = data.write_secret("signing.key", resolved.feedback.signing_key)
        table = resolved.load_table_path
        is_own = table.name.startswith(LOAD_TABLE_PREFIX)

        triton_options = TritonOptions(
            model_repositories=repositories,
            run_dir=data.run,
            log_file=data.logs / "triton.log",
            host=options.host,
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            taken_ports=(options.metrics_port, options.gateway_port or 0),
            environment={
                **_thread_limits(options),
                ENV_CONFIG: str(configuration),
                _ENV_KEY_FILE: str(key_file),
            },
            extra_args=(
                *(_CPU_ARGS if options.profile in _CPU_PROFILES else ()),
                *options.triton_args,
            ),
            admin_key=resolved.triton.admin_key.get_secret_value()
            if resolved.triton.restrict
            else "",
            cleanup=(f"{table}*",) if is_own else (),
            keep_open=(data.lock_fd,),
            verbose=options.verbose,
        )
        preflight.check_shared_memory(preflight.python_instances(models), SHM_BYTE_SIZE)
        self._triton = triton = TritonServer(triton_options, installation)
        preflight.check_stub_python(triton.environment())
        _check(stop)
        self._report(f"starting Triton with {len(models)} models (log: {triton_options.log_file})")
        triton.start()
        triton.wait_ready(options.load_s, stop)
        _check(stop)
        self._ready = True
        if options.gateway_port is not None:
            self._report("starting the gateway")
            self._gateway = GatewayServer(settings, data, configuration)
            self._gateway.start(stop)
            _check(stop)
        self._supervisor = supervisor = self._new_supervisor(models)
        elsewhere = {llm.name: REMOTE_LLM.name for llm in settings.llms if llm.url}
        self._status = StatusPage(metrics_host, options.metrics_port, triton, supervisor, elsewhere)

        pids = {"triton": triton.process.pid() or 0}
        if self._milvus is not None:
            pids["milvus"] = self._milvus.process.pid() or 0
        if self._gateway is not None:
            pids["gateway"] = self._gateway.process.pid() or 0
        return Endpoints(
            grpc_url=grpc_url,
            http_url=f"http://{host}:{options.http_port}",
            metrics_url=f"http://{_in_url(connect_host(metrics_host))}:{options.metrics_port}/metrics",
            data_dir=data.path,
            gateway_url=self._gateway.url if self._gateway is not None else "",
            pids=pids,
        )

    def _new_supervisor(self, models: Mapping[str, Path]) -> Supervisor:
        assert self._triton is not None
        # While Milvus Lite is away, requests are answered without examples; without the gateway,
        # Triton's ports answer. So these are tried as long as it takes.
        others = {"milvus": self._milvus, "gateway": self._gateway}
        parts = {
            name: Part(server, server.start, Backoff())
            for name, server in others.items()
            if server is not None
        }
        load_s = self._options.load_s
        supervisor = Supervisor(self._triton, models, load_s, parts, self._report)
        python = {name for name, path in models.items() if is_python(path)}
        if unseen := sorted(python - supervisor.models.keys()):
            self._report(
                f"warning: the processes of {', '.join(unseen)} were not found among Triton's, so "
                "that nobody notices when they end"
            )
        return supervisor

    def supervise(self) -> None:
        """Start again, in the background, what ends by itself; see :class:`Supervisor`."""
        assert self._supervisor is not None
        self._supervisor.start()

    def check(self) -> None:
        """UnavailableError if the server is given up, since Triton ended again and again."""
        if self._supervisor is not None and self._supervisor.failure is not None:
            raise self._supervisor.failure

    def stop(self) -> None:
        """Stop everything; may be repeated."""
        if self._supervisor is not None:
            self._supervisor.stop()
        if not self._ready:
            # There is nothing to lose, and Triton would load all models before it stops.
            self.kill()
        with contextlib.ExitStack() as last_to_first:
            if self._data is not None:
                last_to_first.callback(self._data.close)
                for name in (CONFIGURATION, "signing.key"):
                    last_to_first.callback((self._data.run / name).unlink, missing_ok=True)
            if self._status is not None:
                last_to_first.callback(self._status.close)
            # Triton stops before Milvus, since its models write what they still hold; and the
            # gateway before Triton, since its requests are still answered.
            for server in filter(None, (self._milvus, self._triton, self._gateway)):
                last_to_first.callback(server.stop)

    def kill(self) -> None:
        """Stop everything at once, without waiting; may be called from a signal handler."""
        for server in filter(None, (self._gateway, self._triton, self._milvus)):
            server.kill()


def model_repositories(options: ServeOptions) -> tuple[Path, ...]:
    """The directories of models that the options name; ConfigurationError if one is missing."""
    more = tuple(path.resolve() for path in options.model_repositories)
    if options.profile is None:
        return more
    root = model_repository_root(options.repository_root)
    profiles = sorted({p.parts[-3] for p in root.glob("*/*/config.pbtxt")} - {"core"})
    if options.profile not in profiles:
        raise ConfigurationError(
            f"profile: expected one of {', '.join(profiles)} (directories of {root}), got "
            f"{options.profile!r}; choose it with --profile"
        )
    return (root / "core", root / options.profile, *more)


def model_repository_root(path: Path | None) -> Path:
    """The directory of ``core`` and the profiles; ConfigurationError if there is none.

    Args:
        path: that directory or the checkout it is in; None: this package's checkout.
    """
    # Installed in editable mode, the package lies in <checkout>/python_backends/echolm.
    root = path or Path(echolm.__file__).resolve().parents[2]
    if not (root / "core").is_dir():
        root = root / "model_repository"
    root = root.resolve()
    if not (root / "core").is_dir():
        raise ConfigurationError(
            f"model repository {root}: expected a directory with core and the profiles, got none; "
            "give the model_repository directory of an EchoLM checkout with --repository-root"
        )
    return root


def earlier_data(settings: Settings) -> str:
    """Warns of data that an earlier version left in its default directory; empty: nothing to say.

    To be asked before a server has used the data directory.
    """
    default = Path(os.path.expanduser(Settings.model_fields["data_dir"].default))
    is_new = settings.data_dir == default and not (default / "lock").exists()
    if not is_new or not (_EARLIER_DATA_DIR / "lock").is_file():
        return ""
    return (
        "warning: an earlier version kept its examples and ratings in "
        f"{_EARLIER_DATA_DIR.resolve()}, and this one begins anew in {default}; to go on with the "
        f"earlier ones, stop it and start it with --data-dir {_EARLIER_DATA_DIR}"
    )


def prepare_embedder(settings: Settings, progress: Progress) -> None:
    """Build the default embedding model, if there is none in ``embedding.model_dir``.

    One that an earlier version has built is built anew. Its vectors of plain texts are the same;
    those of conversations may not be, and a store that holds some wants ``echolm examples reembed``
    (``docker/README.md``, "Upgrading").

    Raises:
        ConfigurationError: a part of a model is there, perhaps the user's, which is left as it is;
            or the folder cannot be used.
    """
    directory = settings.embedding.model_dir.resolve()
    try:
        _prepare_embedder(directory, progress)
    except OSError as error:
        raise ConfigurationError(
            f"embedding model {directory}: expected a folder that can be read and written, got: "
            f"{error.strerror} ({error.filename}); name another one as embedding.model_dir "
            "(ECHOLM_EMBEDDING__MODEL_DIR)"
        ) from error


def _prepare_embedder(directory: Path, progress: Progress) -> None:
    files = (MODEL_FILE, TOKENIZER_FILE, SPEC_FILE)
    missing = [name for name in files if not (directory / name).is_file()]
    if not missing:
        earlier = minilm.form_of_earlier(EmbedderSpec.read(directory))
        if earlier is not None:
            progress(f"building the embedding model in {directory} anew, for this version")
            minilm.build(directory, earlier)
        return
    if len(missing) < len(files):
        raise ConfigurationError(
            f"embedding model {directory}: expected {', '.join(files)}, got no "
            f"{', '.join(missing)}; add what is missing, or have the default model written there: "
            f"`python scripts/build_embedder.py --output {directory}`"
        )
    progress(f"building the embedding model in {directory} (once)")
    minilm.build(directory)


def _with_ports(options: ServeOptions, gateway_host: str) -> ServeOptions:
    free = preflight.free_ports(options.host, len(options.ports))
    http, grpc, metrics = (port or new for port, new in zip(options.ports, free, strict=True))
    gateway = options.gateway_port
    if gateway == 0:
        gateway = preflight.free_port(gateway_host, {http, grpc, metrics})
    return replace(
        options, http_port=http, grpc_port=grpc, metrics_port=metrics, gateway_port=gateway
    )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _with_gateway_port(settings: Settings, port: int | None) -> Settings:
    if port is None:
        return settings
    gateway = settings.gateway.model_copy(update={"port": port})
    return settings.model_copy(update={"gateway": gateway})


def _thread_limits(options: ServeOptions) -> dict[str, str]:
    if options.profile not in _CPU_PROFILES:
        return {}
    limits = dict.fromkeys(_THREAD_VARIABLES, "1") | {_TOKENIZER_THREADS: "false"}
    return {name: os.environ.get(name, value) for name, value in limits.items()}


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise StartInterruptedError("stopped before all models were ready")
