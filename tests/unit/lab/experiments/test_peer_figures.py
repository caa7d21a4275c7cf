"""Figures and requests of the bench with peers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from echolm_lab.experiments.load import Record, Run
from echolm_lab.experiments.peers.base import Running
from echolm_lab.experiments.peers.direct import Direct
from echolm_lab.experiments.peers.measure import (
    Phase,
    Round,
    figures_of,
    load_of,
    results_of,
    with_repeats,
)
from echolm_lab.experiments.peers.table import rows
from echolm_lab.policies.base import AnswerPolicy, Reply
from echolm_lab.tasks import WorkItem, Workload

ITEMS = Workload(seed=0).stream(400, seed=1, phase="live")


def run_of(latencies_s: Sequence[float], gap_s: float) -> Run:
    """A run whose answers end ``gap_s`` apart."""
    records = tuple(
        Record(ITEMS[number], Reply("ok", ""), "", latency, number * gap_s)
        for number, latency in enumerate(latencies_s)
    )
    return Run(records, len(records) * gap_s)


def round_of(gap_s: float, core_ms: float, latency_s: float = 0.01) -> Round:
    saturated = Phase(run_of([0.1] * 100, gap_s), {"proxy": core_ms, "embedder": 2.0}, 0.1, 0.2, 1)
    at_rate = Phase(run_of([latency_s] * 100, 0.05), {"proxy": 9.0, "embedder": 3.0}, 0.1, 0.2, 1)
    return Round(saturated, at_rate, memory_mib=100.0, idle_share=0.01)


@contextlib.asynccontextmanager
async def unused() -> AsyncIterator[AnswerPolicy]:
    raise AssertionError("nothing is sent")
    yield


def test_the_share_of_requests_that_repeat_an_earlier_one_is_as_asked_for() -> None:
    stream = with_repeats(ITEMS, 0.25, seed=0)

    repeated = sum(item in stream[:place] for place, item in enumerate(stream))
    assert repeated / len(stream) == pytest.approx(0.25, abs=0.05)
    assert with_repeats(ITEMS, 0.0, seed=0) == ITEMS


def test_every_round_has_requests_and_arrivals_of_its_own_that_a_seed_repeats() -> None:
    def made() -> tuple[Sequence[Sequence[WorkItem]], Sequence[Sequence[float]]]:
        load = load_of(
            rounds=2,
            requests=30,
            history=5,
            concurrency=4,
            rate=10.0,
            seconds=2.0,
            repeats=0.0,
            seed=3,
        )
        assert len(load.history) == 5
        return [*load.saturating, *load.arriving], load.arrivals_s

    items, arrivals = made()
    assert [len(part) for part in items] == [30, 30, 20, 20]
    assert len({item.text for part in items for item in part}) == 100
    assert [len(times) for times in arrivals] == [20, 20]
    assert arrivals[0] != arrivals[1]
    assert made() == (items, arrivals)


def test_figures_are_the_mean_over_the_rounds_and_half_of_their_range() -> None:
    figures = figures_of([round_of(0.01, 6.0), round_of(0.02, 8.0)], rate=20.0)

    assert figures["requests_per_s"] == {"mean": pytest.approx(75.0), "spread": pytest.approx(25.0)}
    assert figures["core_ms"] == {"mean": 9.0, "spread": 1.0}
    assert figures["core_ms_at_rate"]["mean"] == 12.0
    assert figures["idle_percent"]["mean"] == 1.0
    assert figures["parts_core_ms"] == {"proxy": 7.0, "embedder": 2.0}
    assert figures["p99_ms"]["mean"] == pytest.approx(10.0)
    assert not figures["overloaded"]


def test_a_rate_near_what_a_peer_can_serve_marks_it_as_overloaded() -> None:
    rounds = [round_of(0.05, 6.0)]  # 20 requests/s

    assert figures_of(rounds, rate=19.0)["overloaded"]
    assert not figures_of(rounds, rate=17.0)["overloaded"]


def test_a_missing_peer_is_a_row_that_says_why() -> None:
    results = results_of([Direct()], {}, {"direct": "not to be had"}, {}, rate=20.0)

    assert results["direct"]["missing"] == "not to be had"
    [(name, *cells)] = rows(results)
    assert name == "direct"
    assert set(cells) == {"-"}


def test_calls_of_the_llm_are_told_only_of_peers_that_call_the_benchs_own() -> None:
    rounds = {"direct": [round_of(0.01, 6.0)]}

    shared = results_of([Direct()], {"direct": Running({"direct": unused}, {})}, {}, rounds, 20.0)
    own = results_of(
        [Direct()], {"direct": Running({"direct": unused}, {}, own_llm=True)}, {}, rounds, 20.0
    )

    assert rows(shared)[0][-1] == "1.00"
    assert rows(own)[0][-1] == "-"


def test_the_table_has_no_latency_where_the_rate_was_too_much() -> None:
    running = {"direct": Running({"direct": unused}, {})}
    results = results_of([Direct()], running, {}, {"direct": [round_of(0.05, 6.0)]}, rate=20.0)

    [cells] = rows(results)
    assert cells[2:4] == ("overloaded", "overloaded")
    assert cells[4] == "8.00 ±0.00"
