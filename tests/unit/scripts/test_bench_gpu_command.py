"""The GPU benchmark's command line, as far as it needs neither GPU nor server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_nothing_is_begun_for_which_there_is_no_time(tmp_path: Path) -> None:
    done = run("all", f"--work={tmp_path}", "--minutes=0")
    assert done.returncode == 3, done.stderr
    assert "no time left for export (about 0.5 minutes): call again to go on" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_made_again(tmp_path: Path) -> None:
    for role in ("small", "large"):
        for stage in ("pair", "grown"):
            (tmp_path / stage / role).mkdir(parents=True)
            (tmp_path / stage / role / "config.json").write_text("{}")
    done = run("all", f"--work={tmp_path}", "--minutes=0")
    assert done.returncode == 3, done.stderr
    assert "no time left for evaluate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grow", "--small-shape=4b"], "expected one of 0.5b, 1.5b, 3b, 7b, 14b, 24b, 32b"),
        (["shapes", "3b", "--counts=0,2"], "expected some of 0,1,3,5, got '0,2'"),
        (["shapes", "3b", "--repeats=0"], "expected a whole number from 1, got '0'"),
        (["shapes", "3b", "--set=gpus"], "expected KEY=VALUE, got 'gpus'"),
        (["train", "medium"], "invalid choice: 'medium'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_pair_that_is_missing_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    done = run("grow", f"--work={tmp_path}")
    assert done.returncode == 1
    assert str(tmp_path / "pair" / "small" / "config.json") in done.stderr
    assert "Traceback" not in done.stderr
