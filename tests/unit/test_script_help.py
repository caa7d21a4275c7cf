"""Every script says what it does and how it is called, also where its own needs are missing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
# What only training and conversion need; no machine that serves has to have it.
NOT_INSTALLED = ("torch", "transformers", "optimum", "nncf")
# Runs a script as __main__ where importing those packages fails, wherever they are installed.
WITHOUT = """
import runpy, sys
for name in {packages!r}:
    sys.modules[name] = None
sys.argv = [{script!r}, "--help"]
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_help_works_without_training_packages_and_describes_the_script(script: Path) -> None:
    code = WITHOUT.format(packages=NOT_INSTALLED, script=str(script), folder=str(SCRIPTS))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("usage: ")
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert docstring, "a script begins by saying what it does"
    # argparse breaks lines where it likes.
    shown = " ".join(done.stdout.split())
    assert " ".join(docstring.splitlines()[0].split()) in shown


def test_every_script_is_executable() -> None:
    files = [path for path in SCRIPTS.iterdir() if path.suffix in (".py", ".sh")]
    assert files
    assert [path.name for path in files if not path.stat().st_mode & 0o100] == []
