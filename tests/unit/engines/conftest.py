"""Stand-ins of libraries that need a GPU, for this process and its workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STANDINS = Path(__file__).resolve().parents[2] / "standins"


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-ins' folder; they are found first."""
    path = str(STANDINS) + os.pathsep + os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(STANDINS))
    before = set(sys.modules)
    yield STANDINS
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("vllm", "tensorrt_llm", "standin_lm"):
            del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that the stand-ins take for a checkpoint."""
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    return tmp_path
