"""The laboratory's packages: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[3] / "scripts" / "echolm_lab"
ROOMS = ("tasks", "models", "report", "policies", "experiments")
"""From the lowest; a module may import from its own room and from lower ones."""
TRAINING = ("tasks.episodes", "tasks.grader", "tasks.prompt", "models.tokenizer")
# Runs what trains the pair where importing the product fails.
WITHOUT_PRODUCT = """
import importlib, sys
sys.modules["echolm"] = None
sys.path.insert(0, {scripts!r})
for name in {names!r}:
    importlib.import_module("echolm_lab." + name)
import echolm_lab.models.checkpoints
"""


def imported_rooms(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("echolm_lab.")}


def test_every_module_is_in_a_room() -> None:
    assert [file.name for file in LAB.glob("*.py")] == ["__init__.py"]
    assert {file.parent.name for file in LAB.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_lower_ones(room: str) -> None:
    lower = set(ROOMS[: ROOMS.index(room) + 1])
    for file in (LAB / room).rglob("*.py"):
        assert imported_rooms(file) <= lower, file.name


def test_training_needs_nothing_of_the_product() -> None:
    code = WITHOUT_PRODUCT.format(scripts=str(LAB.parent), names=TRAINING)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
