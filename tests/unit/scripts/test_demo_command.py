"""The demo's command line, as far as it needs no server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "demo.py"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), f"--data-dir={folder / 'data'}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--small=a"], "--small, --large: expected both or none"),
        (["--small=a", "--large=b", "--config=c"], "or --small and --large, got both"),
        (["--requests=a.jsonl"], "--requests: expected --small and --large, or --config"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_what_cannot_be_used_is_told_before_anything_is_written(tmp_path: Path) -> None:
    done = run(tmp_path, "--small=nowhere", "--large=nowhere", "--requests=none.jsonl")
    assert done.returncode == 1
    assert "expected the folder of an OpenVINO model" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []
