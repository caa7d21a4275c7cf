"""The edge's modules import Triton's module, which is in Triton's own processes only."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import fake_pb_utils
import pytest


@pytest.fixture(autouse=True)
def pb_utils(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_pb_utils)
    before = {name for name in sys.modules if name.startswith("echolm.triton.")}
    yield
    # Modules that have imported the fake must not outlive it.
    for name in [n for n in sys.modules if n.startswith("echolm.triton.") and n not in before]:
        del sys.modules[name]
