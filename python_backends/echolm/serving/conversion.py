"""Converts LLMs for the CPU, in an environment of its own: serving needs none of its packages.

``echolm build`` makes that environment once, in the user's cache directory, unless it is told the
interpreter of one (``--converter``).
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from echolm.errors import ConfigurationError
from echolm.serving import converter

Weights = Literal["int8", "int4"]

TORCH, CPU_BUILD = "torch==2.13.0", "+cpu"
"""The usual build converts as well, but brings gigabytes of CUDA."""
PACKAGES = (
    TORCH,
    "transformers==5.0.0",
    "optimum==2.3.0",
    "openvino==2026.4.1",
    "openvino-tokenizers==2026.4.1.0",
    "nncf==3.4.0",
    "gguf==0.19.0",
    "sentencepiece==0.2.3",
    "requests>=2,<3",
    "setuptools<81",
)
WITHOUT_DEPENDENCIES = ("optimum-intel==2.2.0",)
"""It asks for torchvision, of which it uses nothing here and which does not fit torch for CPUs."""
_MODULES = "torch, transformers, optimum.intel, openvino_tokenizers, nncf, gguf"
_DONE = "complete"
_LOG_LINES = 3


def install_commands(python: str) -> list[list[str]]:
    """What installs the packages into the environment of an interpreter."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [
        [*pip, TORCH + CPU_BUILD],
        [*pip, *PACKAGES],
        [*pip, "--no-deps", *WITHOUT_DEPENDENCIES],
    ]


def find_converter(python: Path | None, say: Callable[[str], None]) -> Path:
    """The interpreter that converts; the environment is made if there is none yet.

    Args:
        python: one whose environment has the packages; None: that of the cache directory.

    Raises:
        ConfigurationError: the environment lacks a package, or could not be made.
    """
    if python is not None:
        # Its links are not followed: by its path it finds its environment.
        python = Path(os.path.abspath(python.expanduser()))
        _check(str(python), f"--converter {python}")
        return python
    version = "{}.{}".format(*sys.version_info)
    pins = "\n".join((version, *PACKAGES, *WITHOUT_DEPENDENCIES))
    name = f"converter-{hashlib.sha256(pins.encode()).hexdigest()[:8]}"
    folder = Path.home() / ".cache" / "echolm" / name
    if not (folder / _DONE).is_file():
        _make(folder, say)
    return folder / "bin" / "python"


def convert(
    source: Path, output: Path, weights: Weights, python: Path, say: Callable[[str], None]
) -> None:
    """Write an OpenVINO folder.

    Args:
        source: folder of a checkpoint, or a GGUF file.
        python: see :func:`find_converter`.

    Raises:
        ConfigurationError: the checkpoint cannot be converted.
    """
    say(f"converting {source} to {weights.upper()} (a minute for each billion parameters or so)")
    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.parent / "conversion.log"
    command = [str(python), "-I", converter.__file__, str(source), str(output)]
    with open(log, "w", encoding="utf-8") as stream:
        done = subprocess.run(
            [*command, f"--weights={weights}"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=output.parent,
        )
    if done.returncode:
        shutil.rmtree(output, ignore_errors=True)
        got = "it was killed" if done.returncode < 0 else _last(log.read_text(errors="replace"))
        raise ConfigurationError(
            f"checkpoint {source}: expected that transformers and optimum-intel can convert it, "
            f"got: {got}; see {log}" + (", more memory may help" if done.returncode < 0 else "")
        )
    log.unlink()


def _make(folder: Path, say: Callable[[str], None]) -> None:
    say(f"installing what converts LLMs (torch for CPUs and others) into {folder} (once)")
    # What an earlier attempt has installed there is taken over.
    python = str(folder / "bin" / "python")
    cpu_build, *rest = install_commands(python)
    _run([sys.executable, "-m", "venv", str(folder)], python)
    if subprocess.run(cpu_build, capture_output=True).returncode:
        say(
            f"pip finds no {TORCH}{CPU_BUILD} and takes the build for GPUs, gigabytes larger; to "
            "avoid it, stop this and set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds"
        )
    for command in rest:
        _run(command, python)
    try:
        _check(python, str(folder))
    except ConfigurationError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / _DONE).touch()


def _check(python: str, what: str) -> None:
    """The interpreter's environment has all packages; ConfigurationError if not."""
    try:
        probe = subprocess.run(
            [python, "-I", "-c", f"import {_MODULES}"], capture_output=True, text=True
        )
    except OSError as error:
        raise _not_installed(what, python, error.strerror or str(error)) from error
    if probe.returncode:
        raise _not_installed(what, python, _last(probe.stderr))


def _run(command: Sequence[str], python: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise _not_installed(f"`{shlex.join(command)}`", python, _last(done.stderr))


def _not_installed(what: str, python: str, got: str) -> ConfigurationError:
    commands = "\n".join(f"  {shlex.join(command)}" for command in install_commands(python))
    return ConfigurationError(
        f"{what}: expected an environment that can convert LLMs, got: {got}; make one by hand and "
        f"name its interpreter with --converter:\n  python -m venv ENVIRONMENT\n{commands}"
    )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-_LOG_LINES:])[-500:] or "no output"
