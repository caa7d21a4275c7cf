"""A virtual environment for each peer, with the versions of a requirements file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from echolm_lab.experiments.peers.base import Bench
from echolm_lab.experiments.peers.errors import PeerUnavailableError

_REQUIREMENTS = Path(__file__).with_name("requirements")
_TAIL = 1_500  # characters of pip's output in a message


def python_of(bench: Bench, name: str) -> Path:
    """The interpreter of a peer's environment."""
    return bench.directory / name / "bin" / "python"


def installed(bench: Bench, name: str) -> Path:
    """The interpreter of an environment with ``requirements/NAME.txt``, made if there is none.

    Raises:
        PeerUnavailableError: pip could not install it.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    python, stamp = python_of(bench, name), bench.directory / name / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    bench.progress(f"installing {name} in {bench.directory / name} (once)")
    shutil.rmtree(bench.directory / name, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(bench.directory / name)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        + ["--only-binary=:all:", "-r", str(requirements)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PeerUnavailableError(
                f"{name}: expected `{' '.join(command)}` to succeed, got exit status "
                f"{done.returncode}:\n{done.stderr[-_TAIL:]}"
            )
    stamp.write_text(wanted)
    return python
