"""Other people's clients for tests, as they are, in an environment of their own.

They are installed once, into ``build/clients``: LiteLLM, LangChain, AIPerf and GenAI-Perf, whose
versions are in ``other_clients/requirements.lock``. GenAI-Perf finds the program perf_analyzer
on its path.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import venv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from echolm_lab.experiments import perf_analyzer

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = Path(__file__).parent / "other_clients"
TOKENIZER = REPOSITORY / "model_repository" / "local" / "small_llm" / "1" / "openvino"
"""Of which they count tokens and make requests: none that a hub would have to give."""


@cache
def installed() -> Path:
    """The environment's directory of programs."""
    lock = PROGRAMS / "requirements.lock"
    version = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    directory = REPOSITORY / "build" / "clients"
    programs, mark = directory / "bin", directory / f"installed-{version}"
    if not mark.exists():
        venv.create(directory, with_pip=True, clear=True)
        # --no-deps: the lock is complete. --no-compile: of most packages nothing is imported.
        command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-compile", "--requirement", str(lock)]
        subprocess.run(command, check=True)
        mark.touch()
    binary = perf_analyzer.install(REPOSITORY / "build" / "perf_analyzer")
    link = programs / "perf_analyzer"
    link.unlink(missing_ok=True)
    link.symlink_to(binary)
    return programs


def run(
    program: str, arguments: Sequence[str | Path], directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in a directory; AssertionError if it fails."""
    programs = installed()
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": str(REPOSITORY / "build" / "perf_analyzer"),
        "HOME": str(directory),
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [str(programs / program), *map(str, arguments)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{program}: {done.stdout[-4_000:]}\n{done.stderr[-4_000:]}"
    return done
