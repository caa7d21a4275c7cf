"""What is made of the answers under a trace."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from echolm_lab.experiments.load import Record, Run
from echolm_lab.experiments.trace_load import Row, checks, peak_rate
from echolm_lab.policies.base import Reply
from echolm_lab.report.tables import print_trace
from echolm_lab.tasks import Workload
from rich.console import Console

ITEMS = Workload(seed=0).stream(4, seed=1, phase="live")


def run(llm: str, *latencies_s: float | None) -> Run:
    """Right answers with these latencies; None: a request that failed."""
    records = [
        Record(item, None, "UnavailableError: gone", 0.1)
        if latency is None
        else Record(item, Reply(item.answer, llm), "", latency)
        for item, latency in zip(ITEMS, latencies_s, strict=True)
    ]
    return Run(tuple(records), 10.0)


def test_a_row_tells_what_became_of_the_requests() -> None:
    row = Row.of("echolm", run("small_llm", 1.0, 11.0, 2.0, None), [1.0] * 4)
    assert (row.requests, row.failed, row.over_10_s, row.p50_s) == (4, 1, 1, 2.0)
    assert row.win_rate == pytest.approx(3 * 0.5 / 4)
    assert (row.mean_score, row.offload_share) == (0.75, 1.0)


def test_the_reduction_of_p99_is_checked_at_equal_quality() -> None:
    reference = [1.0] * 4
    large = Row.of("always_large", run("large_llm", 4.0, 4.0, 4.0, 4.0), reference)
    fast = Row.of("echolm", run("small_llm", 1.0, 1.0, 1.0, 1.0), reference)
    assert [check.holds for check in checks([large, fast])] == [True, True, True]
    assert checks([large, fast])[0].value == pytest.approx(0.75)
    lossy = Row.of("echolm", run("small_llm", 2.0, 2.0, 2.0, None), reference)
    assert [check.holds for check in checks([large, lossy])] == [False, False, False]


def test_the_peak_is_that_of_the_busiest_five_seconds() -> None:
    assert peak_rate([0.0, 1.0, 5.0, 5.5, 6.0, 9.9, 12.0]) == 4 / 5


def test_the_table_has_mean_and_spread_of_the_seeds_in_80_columns() -> None:
    def seed(latency_s: float) -> dict[str, object]:
        row = Row.of("always_large", run("large_llm", *[latency_s] * 4), [1.0] * 4)
        return {"policies": [asdict(row)]}

    console = Console(width=80, record=True)
    print_trace(console, {"1": seed(13.0), "2": seed(15.0)})
    text = console.export_text()
    assert "14.0 ± 1.4" in text
    assert "4 ± 0" in text
    assert "0.500 ± 0.000" in text
    assert "0.00 ± 0.00" in text
