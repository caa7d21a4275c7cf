"""Figures from perf_analyzer's times of each request."""

from __future__ import annotations

from pathlib import Path

import pytest
from echolm_lab.experiments.perf_analyzer import read_export, times_of

MS = 1_000_000


def test_requests_a_second_are_those_of_the_time_that_it_took() -> None:
    # 100 requests, one begun every 15 ms and each answered after 5 to 14 ms.
    requests = [
        {"timestamp": k * 15 * MS, "response_timestamps": [(k * 15 + 5 + k % 10) * MS]}
        for k in range(100)
    ]
    requests.insert(50, {"timestamp": 750 * MS, "response_timestamps": []})  # which failed
    figures = times_of({"experiments": [{"requests": requests}]})
    assert figures["requests_per_s"] == pytest.approx(100 / (99 * 0.015 + 0.014))
    assert figures["p50_ms"] == pytest.approx(9.5)
    assert figures["p90_ms"] == pytest.approx(13.0, abs=0.2)
    assert figures["p99_ms"] == pytest.approx(14.0)


def test_bytes_of_tensors_are_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_bytes(b'{"experiments": [{"requests": [{"outputs": "\xf8\x00\n"}]}]}')
    assert len(read_export(file)["experiments"][0]["requests"]) == 1
