"""Where Triton is: in the ``nvidia-pytriton`` wheel, or in an image of NVIDIA's.

The wheel is only the carrier: its Python code is never imported.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from echolm.errors import ConfigurationError
from echolm.serving.process import package_directory

SYSTEM_ROOT = Path("/opt/tritonserver")
"""Where NVIDIA's images have Triton."""
STUB = "triton_python_backend_stub"
"""Name of the program in which the python backend runs a model."""
_PYTHON = "{}.{}".format(*sys.version_info)


@dataclass(frozen=True)
class TritonInstallation:
    """Where the parts of Triton are.

    Attributes:
        root: ``pytriton/tritonserver`` in site-packages, or where an image has Triton.
        libraries: the shared libraries that the wheel brings along; None: the system's.
        libpython_dir: holds the libpython to which the wheel's backend stub is linked; None: the
            system finds it.
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
            return self.root / "python_backend_stubs" / _PYTHON / STUB
        return self.backends / "python" / STUB


def libpython_name() -> str:
    """File name of the shared library of the running Python."""
    return f"libpython{_PYTHON}.so.1.0"


def libpython_candidates() -> Iterable[Path]:
    """Directories in which the shared libpython can be; that of the running Python comes first."""
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
    """Directory of the shared libpython; ConfigurationError if there is none.

    A statically linked Python runs everything but the backend stub.
    """
    directories = list(dict.fromkeys(candidates or libpython_candidates()))
    for directory in directories:
        if (directory / libpython_name()).is_file():
            return directory
    raise ConfigurationError(
        f"shared Python library: expected {libpython_name()}, got none in "
        f"{', '.join(map(str, directories))}; Triton's python backend needs it: "
        f"`apt-get install libpython{_PYTHON}`, or a Python built with --enable-shared "
        f'(pyenv: `PYTHON_CONFIGURE_OPTS="--enable-shared" pyenv install {_PYTHON}`), '
        "then make the virtual environment anew"
    )


def find_triton(*, prefer_system: bool = False) -> TritonInstallation:
    """The Triton of the installed wheel; an image's if there is no wheel, or it is preferred.

    ConfigurationError if there is none, or its stub for this Python or libpython is missing.
    """
    package = package_directory("pytriton")
    system = _system_triton()
    if system is not None and (prefer_system or package is None):
        return system
    if package is None:
        raise ConfigurationError(
            f"Triton: expected the package nvidia-pytriton in {sys.prefix}, or tritonserver in "
            f"{SYSTEM_ROOT} or on the path, got none; install it: `pip install nvidia-pytriton`, "
            "or run in an image of NVIDIA's (nvcr.io/nvidia/tritonserver)"
        )
    libraries = package.parent / "nvidia_pytriton.libs"
    installation = TritonInstallation(package / "tritonserver", libraries, find_libpython())
    for part in (installation.server, installation.backends / "python", libraries):
        if not part.exists():
            raise ConfigurationError(
                f"Triton: expected {part}, which nvidia-pytriton carries, got nothing there; "
                "install it again: `pip install --force-reinstall nvidia-pytriton`"
            )
    if not installation.stub.is_file():
        versions = sorted(path.name for path in installation.stub.parents[1].glob("*"))
        raise ConfigurationError(
            f"Triton's python backend: expected a stub for Python {_PYTHON}, got stubs for "
            f"{', '.join(versions)}; use one of these Python versions"
        )
    return installation


def _system_triton() -> TritonInstallation | None:
    """The Triton of an image: a directory with ``bin/tritonserver`` and ``backends``."""
    in_image = shutil.which("tritonserver", path=str(SYSTEM_ROOT / "bin"))
    program = in_image or shutil.which("tritonserver")
    if program is None:
        return None
    installation = TritonInstallation(Path(program).resolve().parent.parent)
    try:
        linked = re.search(rb"libpython([0-9.]+)\.so", installation.stub.read_bytes())
    except OSError:
        raise ConfigurationError(
            f"Triton in {installation.root}: expected its python backend as {installation.stub}, "
            "got nothing there; take an image that has it"
        ) from None
    version = linked[1].decode() if linked else _PYTHON
    if version != _PYTHON:
        raise ConfigurationError(
            f"Triton's python backend in {installation.root}: expected it for Python {_PYTHON}, "
            f"got one for {version}; run EchoLM with Python {version}"
        )
    return installation
