"""Runs ``echolm`` as a person's shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ECHOLM = (sys.executable, "-m", "echolm")
ON_FAKE_STORE = (sys.executable, str(Path(__file__).with_name("echolm_on_fake_store.py")))


def environment(**changes: str | None) -> dict[str, str]:
    """This process's, with variables set, or removed where None."""
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command to its end, with what it wrote."""
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, **options}
    return subprocess.run(command, text=True, check=False, **merged)


def assert_message(error: str, *parts: str) -> None:
    """It is one message of ``echolm``, without a traceback, that has these parts."""
    assert "Traceback" not in error and "Exception ignored" not in error, error
    lines = [line for line in error.splitlines() if line.startswith("echolm: ")]
    assert len(lines) == 1, error
    for part in parts:
        assert part in lines[0], error
