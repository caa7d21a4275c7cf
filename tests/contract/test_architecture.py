"""The structure of the product: layers, no circles, no laboratory, the field's words."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "python_backends"
CLIENT = ROOT / "client"

LAYERS = (
    {
        *("echolm", "errors", "clock", "contracts", "conversation", "internal_calls"),
        *("private", "sqlite", "words"),
    },
    {"primitives", "telemetry"},
    {"settings"},
    {"embedding", "engines", "front_door", "learning", "llm", "load", "store"},
    {"retrieval"},
    {"bandit"},
    {"judges", "router"},
    {"examples"},
    {"past_traffic"},
    {"wiring"},
    {"gateway"},
    {"serving", "triton"},
    {"cli"},
    {"__main__"},
    {"testing"},
)
"""Rooms of ``python_backends/echolm``, from the lowest layer to the highest."""

PRIVATE_TERMS = re.compile(
    r"dearest|\bdear llms?\b|exchange_rate|\bexchanges?\b|\bledger|\bjournal(?!_mode)"
    r"|succession|housekeep|neutralis|\bleft_out\b|\bcoverage\b|\bhand(s|ed)? ?_?over\b|\btidy"
    r"|(load|prompt)_?board|spoil|\brivals?\b|verdict|\binstant\b|fit_ceiling|neutralise"
    r"|first_token_seconds(?<!time_to_first_token_seconds)|\brequest_seconds|\blikewise\b",
    re.IGNORECASE,
)
"""Words that a colleague from another project would not know; each has one of the field's."""


TEXTS = ("json", "md", "pbtxt", "py", "sh", "svg", "toml", "tpl", "txt", "yaml")
"""Suffixes of the files whose words count."""

EARLIER_NAMES = (
    "examples/events.py",
    "examples/statistics.py",
    "examples/write_ahead_log.py",
    "settings/loading.py",
    "test_reference.py",
    "test_settings.py",
    "test_statistics.py",
    "test_write_ahead_log.py",
)
"""Files that read what was written under earlier names, and their tests."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its name."""
    found = {}
    for path in sorted((PRODUCT / "echolm").rglob("*.py")):
        parts = path.relative_to(PRODUCT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The product's modules that a module imports, wherever in its code."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(modules()[module].read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    yield inner if inner in modules() else node.module

    return frozenset(name for name in names() if name in modules())


def layer_of(module: str) -> int:
    room = module.split(".")[1] if "." in module else module
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


def test_every_room_has_a_layer() -> None:
    for module in modules():
        layer_of(module)


def test_no_module_imports_from_a_higher_layer() -> None:
    upwards = [
        f"{module} -> {other}"
        for module in modules()
        for other in imports(module)
        if layer_of(other) > layer_of(module)
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A package's own __init__ runs before each of its modules, so it counts where it is named.
    try:
        TopologicalSorter({m: imports(m) - {m} for m in modules()}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")


def test_no_rooms_import_each_other_in_a_circle() -> None:
    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module in modules():
        others = {room(other) for other in imports(module)} - {room(module), "echolm"}
        graph.setdefault(room(module), set()).update(others)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of rooms: {' -> '.join(reversed(error.args[1]))}")


def test_the_product_does_not_know_the_laboratory() -> None:
    knows = [
        path
        for base in (PRODUCT, CLIENT, ROOT / "model_repository")
        for path in base.rglob("*.py")
        if re.search(r"echolm_lab|(from|import) scripts\b", path.read_text())
    ]
    assert knows == []


def test_triton_is_imported_at_the_edge_only() -> None:
    inside = [
        module
        for module, path in modules().items()
        if re.search(r"^\s*(import|from) triton_python_backend_utils", path.read_text(), re.M)
        and not module.startswith("echolm.triton")
    ]
    assert inside == []


def test_the_fields_words_are_used() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *(f"*.{suffix}" for suffix in TEXTS), "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    private = []
    for name in filter(None, tracked):
        path = ROOT / name
        # Texts of the workload and of tokenizers are data, and this file names what it forbids.
        if (
            "echolm_lab/tasks" in name
            or "openvino" in name
            or path == Path(__file__)
            or not path.exists()
        ):
            continue
        if name.endswith(EARLIER_NAMES):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if PRIVATE_TERMS.search(line):
                private.append(f"{name}:{number}: {line.strip()[:80]}")
    assert private == []
