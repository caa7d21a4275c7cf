"""What scripts/perf_analyzer.py gives to perf_analyzer."""

from __future__ import annotations

from pathlib import Path

import perf_analyzer
import pytest


def test_the_admin_key_is_that_of_the_configurations_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOLM_DATA_DIR", str(tmp_path))
    assert perf_analyzer.admin_headers(None) == []
    (tmp_path / "admin.key").write_text("k3y\n")
    headers = perf_analyzer.admin_headers(None)
    assert headers[:2] == ["-H", "echolm-admin-key:k3y"]
    (tmp_path / "other").write_text("another")
    assert perf_analyzer.admin_headers(tmp_path / "other")[1] == "echolm-admin-key:another"
