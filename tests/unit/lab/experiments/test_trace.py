from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from echolm.errors import ConfigurationError
from echolm_lab.experiments.trace import read_trace, rescaled, window

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(path: Path, *times: str, header: str = HEADER) -> Path:
    file = path / "trace.csv"
    file.write_text(header + "".join(f"{time},1,2\n" for time in times), encoding="utf-8")
    return file


def test_times_count_from_the_first_arrival(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "2023-11-16 18:15:46.6805900",
        "2023-11-16 18:15:50.9951690",
        "2023-11-16 18:16:00",
    )
    assert read_trace(file) == pytest.approx([0.0, 4.314579, 13.31941], abs=1e-5)


def test_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    file = written(tmp_path, "2023-11-16 18:15:50.5", "2023-11-16 18:15:46")
    assert read_trace(file) == pytest.approx([0.0, 4.5])


def test_wrong_files_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="readable"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="GeneratedTokens"):
        read_trace(written(tmp_path, header="TIMESTAMP,ContextTokens\n"))
    with pytest.raises(ConfigurationError, match="yesterday"):
        read_trace(written(tmp_path, "yesterday"))
    with pytest.raises(ConfigurationError, match="two times"):
        read_trace(written(tmp_path, "2023-11-16 18:15:46"))


def test_a_rescaled_trace_has_the_rate_and_keeps_its_bursts() -> None:
    trace = [0.0, 1.0, 2.0, 10.0, 11.0]
    arrivals = rescaled(trace, 4, rate=2.0)
    assert arrivals[-1] == pytest.approx(4 / 2.0)
    gaps = np.diff([0.0, *arrivals])
    assert gaps / gaps[0] == pytest.approx([1, 1, 8, 1])


def test_a_trace_that_ends_goes_on_from_its_start() -> None:
    arrivals = rescaled([0.0, 1.0, 3.0], 5, rate=1.0, start=1)
    assert len(arrivals) == 5
    assert arrivals == sorted(arrivals)
    gaps = np.diff([0.0, *arrivals])
    assert gaps / gaps[1] == pytest.approx([2, 1, 2, 1, 2])


def test_a_window_keeps_the_busy_minutes_of_a_trace_with_the_rate() -> None:
    quiet, busy = np.arange(0, 500, 1.0), np.arange(500, 1_000, 0.25)
    trace = [*quiet, *busy]
    whole = len(trace) / 5.0  # seconds at 5 a second
    for seed in range(20):
        arrivals = window(trace, whole / 8, rate=5.0, seed=seed)
        assert arrivals == sorted(arrivals)
        assert arrivals[0] >= 0
        assert arrivals[-1] <= whole / 8
        rates = 1 / np.diff(arrivals)
        assert np.logical_or(np.isclose(rates, 2, rtol=0.01), np.isclose(rates, 8, rtol=0.01)).all()
    counts = [len(window(trace, whole / 8, rate=5.0, seed=seed)) for seed in range(200)]
    assert np.mean(counts) / (whole / 8) == pytest.approx(5.0, rel=0.15)
    assert window(trace, 9.0, 5.0, seed=3) == window(trace, 9.0, 5.0, seed=3)


def test_a_trace_without_such_a_window_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"for 10 s at 1.0 a second, got 5, .* last 4 s"):
        window([0.0, 1.0, 2.0, 3.0, 4.0], 10.0, rate=1.0, seed=0)
    with pytest.raises(ConfigurationError, match="expected an arrival within 1 s, got none"):
        window([0.0, 100.0], 1.0, rate=0.01, seed=1)
