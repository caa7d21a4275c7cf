"""Checks before anything is started, so that a wrong installation fails at once and clearly.

Each check raises a ConfigurationError.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from echolm.contracts import CORE_MODELS, ROUTER, ModelContract
from echolm.engines import check_engine
from echolm.errors import ConfigurationError
from echolm.gateway.keys import KeyFile, is_loopback
from echolm.serving import model_config
from echolm.settings import Settings
from echolm.wiring.llms import build_chat_template

GLIBC = (2, 35)
PYTHONS = ((3, 10), (3, 11), (3, 12))
MACHINE = "x86_64"
_SHM_SPARE = 8 << 20
FRONT_DOOR_BACKEND = "echolm"


def check_machine(system: str | None = None, machine: str | None = None) -> None:
    """The machine is Linux on x86-64, for which the Triton wheel is built."""
    got = f"{system or platform.system()} {machine or platform.machine()}"
    if got != f"Linux {MACHINE}":
        raise ConfigurationError(
            f"machine: expected Linux {MACHINE}, got {got}; the Triton wheel has no other build: "
            "use such a machine, a container or a virtual machine"
        )


def check_python(version: tuple[int, int] | None = None) -> None:
    """The Python version is one that EchoLM is tested with."""
    version = version or sys.version_info[:2]
    if version not in PYTHONS:
        wanted = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise ConfigurationError(
            f"Python: expected {wanted}, got {version[0]}.{version[1]} ({sys.executable}); make "
            "the virtual environment with one of these"
        )


def check_glibc(version: str | None = None) -> None:
    """The C library is one that the Triton wheel needs; ``version`` is a text like ``2.36``."""
    if version is None:
        name, version = platform.libc_ver()
        version = version if name == "glibc" else ""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < GLIBC:
        got = f"glibc {version}" if version else "another C library"
        raise ConfigurationError(
            f"C library: expected glibc {GLIBC[0]}.{GLIBC[1]} or newer, got {got}; use a newer "
            "distribution (Ubuntu 22.04, Debian 12, RHEL 10 or later)"
        )


def check_numpy(version: str | None = None) -> None:
    """numpy is version 1: with version 2 this Triton's stub crashes on BYTES tensors."""
    try:
        version = version or importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if not version.startswith("1."):
        raise ConfigurationError(
            f"numpy: expected a version below 2, got {version}; Triton's python backend crashes on "
            'text with numpy 2: `pip install "numpy<2"`'
        )


def check_stub_python(environment: Mapping[str, str]) -> None:
    """The ``python3`` on PATH has ``echolm``.

    The stub embeds Python and takes site-packages from there. It ignores PYTHONPATH, so the
    package must be installed.
    """
    program = shutil.which("python3", path=environment.get("PATH"))
    if program is None:
        raise ConfigurationError(
            f"python3: expected one on the path {environment.get('PATH')}, got none; Triton's "
            "model processes take their packages from it: run from a virtual environment"
        )
    code = "import sys; print('%d.%d' % sys.version_info[:2]); import echolm, numpy"
    probe = subprocess.run(
        [program, "-c", code],
        env={k: v for k, v in environment.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
        cwd="/",
        capture_output=True,
        text=True,
    )
    expected, got = "{}.{}".format(*sys.version_info), probe.stdout.strip()
    if got and got != expected:
        raise ConfigurationError(
            f"python3 of the model processes: expected Python {expected}, got {got} ({program}); "
            "run from a virtual environment"
        )
    if probe.returncode != 0:
        problem = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConfigurationError(
            f"python3 of the model processes ({program}): expected that it can import echolm from "
            f"site-packages (PYTHONPATH does not count), got: {problem}; run `pip install -e .` in "
            "the repository"
        )


def check_ports(host: str, ports: Mapping[str, int]) -> None:
    """The ports are free; ``ports`` maps the option that sets a port to the port."""
    taken: dict[int, str] = {}
    for option, port in ports.items():
        if port in taken:
            raise ConfigurationError(
                f"port {port}: expected {taken[port]} and {option} to differ, got the same"
            )
        taken[port] = option
        with _probe(host) as probe:
            # As for Triton, connections of a server that has just ended do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ConfigurationError(
                        f"port {port} on {host}: expected it to be free, got it in use by another "
                        f"program; stop that, or choose another port with {option}"
                    ) from error
                raise ConfigurationError(
                    f"port {port} on {host}: expected to listen there, got: "
                    f"{error.strerror or error}; choose other values for --host and {option}"
                ) from error


def check_gateway(settings: Settings) -> None:
    """The gateway can listen, and others than this machine's users need a key for it."""
    gateway = settings.gateway
    required = settings.keys_are_required
    keys = KeyFile(settings.keys_path).read(required)
    if not (keys or (gateway.open and not required) or is_loopback(gateway.host)):
        raise ConfigurationError(
            f"gateway.host {gateway.host}: expected API keys in {settings.keys_path}, got none, "
            "and everybody who reaches that address could call; make one: `echolm keys add`, or "
            "let everybody call: gateway.open = true"
        )
    for key in ("tls_certificate", "tls_key"):
        file: Path | None = getattr(gateway, key)
        if file is not None and not os.access(file, os.R_OK):
            raise ConfigurationError(f"gateway.{key}: expected a file that can be read, got {file}")
    check_ports(gateway.host, {"--gateway-port": gateway.port})


def free_ports(host: str, count: int) -> list[int]:
    """Ports that are free now; ConfigurationError if the host is no address of this machine."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(_probe(host)) for _ in range(count)]
        try:
            for probe in probes:
                probe.bind((host, 0))
        except OSError as error:
            raise ConfigurationError(
                f"address {host}: expected to listen there, got: {error.strerror or error}; "
                "choose another one with --host"
            ) from error
        return [probe.getsockname()[1] for probe in probes]


def free_port(host: str, taken: Collection[int]) -> int:
    """As :func:`free_ports`, one that is none of those, which may not be listened on yet."""
    return next(port for port in free_ports(host, len(taken) + 1) if port not in taken)


def _probe(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM)


def models_in(repositories: Iterable[Path]) -> dict[str, Path]:
    """Directories of models by name; of two models of one name Triton would serve neither."""
    models: dict[str, Path] = {}
    for repository in repositories:
        if not repository.is_dir():
            raise ConfigurationError(
                f"model repository {repository}: expected a directory, got none; give the right "
                "one with --model-repository or --repository-root"
            )
        folders = sorted(path for path in repository.iterdir() if path.is_dir())
        here = [path for path in folders if (path / model_config.CONFIG_FILE).is_file()]
        if not here:
            raise ConfigurationError(
                f"model repository {repository}: expected models (a directory with config.pbtxt "
                "each), got none; give the right one with --model-repository or --repository-root"
            )
        for folder in folders:
            if folder not in here and not folder.name.startswith("."):
                raise ConfigurationError(
                    f"model {folder.name}: expected {folder / model_config.CONFIG_FILE}, got no "
                    "such file; restore it, or move the folder out of the model repository"
                )
        for entry in here:
            if entry.name in models:
                raise ConfigurationError(
                    f"model {entry.name}: expected it in one model repository, got it in "
                    f"{models[entry.name].parent} and {repository}; remove or rename one"
                )
            models[entry.name] = entry
    return models


def check_models(models: Mapping[str, Path], settings: Settings) -> None:
    """All configured LLMs have a model and a chat template, and all models have their files."""
    for llm in settings.llms:
        if not llm.url and llm.model not in models:
            raise ConfigurationError(
                f"LLM {llm.name}: expected a Triton model {llm.model!r} in the model repositories, "
                f"got only {', '.join(sorted(models))}; add its directory with --model-repository, "
                "correct llms.triton_model in the configuration, or say with llms.url where it is"
            )
        if ROUTER.name in models and not llm.takes_messages:
            build_chat_template(llm)
    for contract in CORE_MODELS:
        if contract.name in models:
            _check_tensors(contract, models[contract.name])
    for name, directory in models.items():
        _check_files(name, directory)


def check_llm_servers(settings: Settings) -> None:
    """Keys and certificates for LLMs elsewhere can be used."""
    from echolm.llm.credentials import api_key, channel_credentials, ssl_context

    for llm in settings.llms:
        api_key(llm)
        ssl_context(llm)
        channel_credentials(llm)


def _check_tensors(contract: ModelContract, directory: Path) -> None:
    """The model has the tensors that this version speaks."""
    config = model_config.read(directory)
    for kind, expected, got in (
        ("inputs", contract.inputs, config.input),
        ("outputs", contract.outputs, config.output),
    ):
        names, found = sorted(t.name for t in expected), sorted(t.name for t in got)
        if names != found:
            raise ConfigurationError(
                f"model {contract.name}: expected the {kind} {', '.join(names)} in "
                f"{directory / model_config.CONFIG_FILE}, got {', '.join(found) or 'none'}; if "
                "another version built it, build it anew: `echolm build --force`"
            )


def _check_files(name: str, directory: Path) -> None:
    """The model has a version, its program if it is a python model, and what its engine needs.

    Triton would tell of it in its log only, and wait five minutes for a python model without one.
    """
    versions = sorted(
        (path for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()),
        key=lambda path: int(path.name),
    )
    if not versions:
        raise ConfigurationError(
            f"model {name}: expected a folder of a version, {directory / '1'}, got none; restore it"
        )
    config = model_config.read(directory)
    if config.backend != "python":
        return
    program = versions[-1] / (config.default_model_filename or "model.py")
    if not program.is_file():
        raise ConfigurationError(
            f"model {name}: expected its program {program}, got no such file; restore it (that of "
            "an LLM is one line, as in model_repository/local/small_llm/1)"
        )
    values = {key: value.string_value for key, value in config.parameters.items()}
    values = {key: value for key, value in values.items() if not key.isupper()}
    if engine := values.pop("engine", ""):
        try:
            check_engine(engine, versions[-1] / values.pop("model_dir", engine), values)
        except ConfigurationError as error:
            raise ConfigurationError(f"model {name}: {error}") from error


def python_instances(models: Mapping[str, Path]) -> int:
    """Processes that Triton will start for models of the python backend."""
    configs = [model_config.read(directory) for directory in models.values()]
    return sum(
        sum(group.count or 1 for group in config.instance_group) or 1
        for config in configs
        if config.backend == "python"
    )


def check_shared_memory(
    instances: int, bytes_per_instance: int, available: int | None = None
) -> None:
    """/dev/shm has room for the shared memory of the model processes."""
    if available is None:
        stat = os.statvfs("/dev/shm")
        available = stat.f_bavail * stat.f_frsize
    needed = instances * bytes_per_instance + _SHM_SPARE
    if available < needed:
        raise ConfigurationError(
            f"/dev/shm: expected {needed >> 20} MiB free for {instances} model processes, got "
            f"{available >> 20} MiB; in a container give more: `docker run --shm-size=1g`; "
            "else `mount -o remount,size=1G /dev/shm`"
        )


def check_backends(models: Mapping[str, Path], backends: Path) -> None:
    """Triton has the backends of all models."""
    for name, directory in models.items():
        backend = model_config.read(directory).backend
        # Triton looks for a backend's library in the model's directory first.
        own = directory / f"libtriton_{backend}.so"
        if backend == FRONT_DOOR_BACKEND and not own.is_file():
            raise ConfigurationError(
                f"model {name}: expected the front door's library {own}, got none; build it: "
                "`make install` in the checkout, or `python -m echolm.front_door.build`"
            )
        if backend and not own.is_file() and not (backends / backend).is_dir():
            raise ConfigurationError(
                f"model {name}: expected Triton's backend {backend} in {backends}, got none; "
                "take a Triton that has it (NVIDIA's image nvcr.io/nvidia/tritonserver:<release>"
                "-py3 has onnxruntime; the others can copy it from there), or another profile"
            )


def check_host(with_wheel: bool = True) -> None:
    """All that does not depend on the configuration; the Triton of the wheel asks for more."""
    check_machine()
    if with_wheel:
        check_glibc()
        check_numpy()
