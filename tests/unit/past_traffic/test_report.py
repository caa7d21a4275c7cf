from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from echolm.bandit.features import DIMENSION, HAS_EXAMPLES, SCALARS
from echolm.past_traffic.report import Outcomes, ServedPairs, outcomes
from echolm.settings import LLMSettings, Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.routing import build_bandit

SETTINGS = Settings(
    llms=(
        LLMSettings(name="small_llm", cost=0.1, takes_examples=True),
        LLMSettings(name="large_llm", cost=1.0, takes_examples=False),
    )
)


def two_arms(small: list[float], shares: list[float]) -> Outcomes:
    n = len(small)
    qualities = np.column_stack([small, np.full(n, 0.9)])
    pair_shares = np.column_stack([shares, np.full(n, 0.5)])
    costs = np.column_stack([np.full(n, 2.0), np.full(n, 10.0)])
    return Outcomes(
        ("small", "large"), "large", qualities, pair_shares, costs, np.array([0.1, 1.0])
    )


def test_requests_go_to_the_small_llm_where_it_loses_less_than_it_saves() -> None:
    known = two_arms([0.95, 0.88, 0.7, 0.5], [0.6, 0.5, 0.4, 0.1])
    assert known.at(0.0)["offload"]["value"] == 0.25
    here = known.at(0.05)  # which is worth a loss of 0.045
    assert here["offload"]["value"] == 0.5
    assert here["quality"]["value"] == pytest.approx((0.6 + 0.5 + 0.5 + 0.5) / 4)
    assert here["cost"]["value"] == pytest.approx((2 + 2 + 10 + 10) / 4)
    assert here["cost_of_reference"] == {"value": 10.0, "standard_error": 0.0}
    assert known.at(1.0)["quality"]["value"] == pytest.approx(0.4)
    errors = np.std([0.6, 0.5, 0.5, 0.5], ddof=1) / 2
    assert here["quality"]["standard_error"] == pytest.approx(errors)


def test_the_cost_weight_for_a_quality_offloads_as_much_as_that_allows() -> None:
    known = two_arms([0.95, 0.88, 0.7, 0.5], [0.6, 0.5, 0.4, 0.1])
    found = known.for_quality(0.49)
    assert found is not None
    assert found["offload"]["value"] == 0.75 and found["quality"]["value"] == pytest.approx(0.5)
    assert known.at(found["cost_weight"]) == found
    everything = known.for_quality(0.4)
    assert everything is not None and everything["offload"]["value"] == 1.0
    assert known.for_quality(0.6) is None


def test_of_several_llms_the_best_for_its_cost_is_taken() -> None:
    qualities = np.array([[0.5, 0.8, 0.9]] * 3)
    shares = np.array([[0.1, 0.45, 0.5]] * 3)
    relative = np.array([0.05, 0.3, 1.0])
    known = Outcomes(("s", "m", "l"), "l", qualities, shares, np.tile(relative, (3, 1)), relative)
    costs = [known.at(weight)["cost"]["value"] for weight in (0.0, 0.3, 2.0)]
    assert costs == pytest.approx([1.0, 0.3, 0.05])
    found = known.for_quality(0.45)
    assert found is not None and found["quality"]["value"] == pytest.approx(0.45)


def decision(id: str, llm: str, x: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "request_id": id,
        "llm": llm,
        "context": x.tolist(),
        "statistics": 0,
        "revision": "",
        "example_ids": [1],
    }


def judged_requests(
    log: MemoryEventLog, count: int, share_of: Mapping[bool, float]
) -> list[ServedPairs]:
    """Requests of which the first topic suits the small LLM and the second does not."""
    served = []
    rng = np.random.default_rng(0)
    for _ in range(count):
        id = f"{int(rng.integers(2**62)):016x}"
        x = np.zeros(DIMENSION, np.float32)
        x[HAS_EXAMPLES] = 1.0
        suits = bool(rng.random() < 0.5)
        x[SCALARS.index("best_utility")] = 1.0 if suits else -1.0
        small, large = (
            decision(f"past-{id}-small_llm-1", "small_llm", x),
            decision(f"past-{id}", "large_llm", x),
        )
        share = share_of[suits]
        body = {"better": small, "worse": large, "share": share, "source": "judge:llm"}
        log.append("preference", body)
        body = {"candidate": small, "reference": large, "served": True, "share": share}
        tokens = {"read": 100, "written": 10, "reference_read": 50, "reference_written": 20}
        served.append(ServedPairs(id, {"small_llm": {**body, **tokens}}))
    return served


def test_the_bandit_is_judged_by_what_it_has_not_learnt() -> None:
    log = MemoryEventLog()
    served = judged_requests(log, 200, {True: 0.5, False: 0.0})
    known = outcomes(served, log, lambda: build_bandit(SETTINGS), "large_llm", None)
    assert known is not None and len(known) == 200
    here = known.at(0.05)
    suited = np.mean([p.bodies["small_llm"]["share"] == 0.5 for p in served])
    assert here["offload"]["value"] == pytest.approx(suited, abs=0.1)
    assert here["quality"]["value"] > 0.47
    assert here["cost"]["value"] == pytest.approx(1 - 0.9 * here["offload"]["value"])

    def money(llm: str, read: float, written: float) -> float:
        return (read + written) * (1 if llm == "small_llm" else 3)

    priced = outcomes(served, log, lambda: build_bandit(SETTINGS), "large_llm", money)
    assert priced is not None
    assert priced.at(100.0)["cost"]["value"] == 110
    assert priced.at(100.0)["cost_of_reference"]["value"] == 210


def test_noise_is_not_learnt_by_heart() -> None:
    # Shares that nothing in the context tells: a bandit that knew its requests would say 0.75.
    log, rng = MemoryEventLog(), np.random.default_rng(1)
    served = []
    for pairs in judged_requests(MemoryEventLog(), 150, {True: 1.0, False: 1.0}):
        body = {**pairs.bodies["small_llm"], "share": float(rng.integers(2))}
        parts = {"better": body["candidate"], "worse": body["reference"], "share": body["share"]}
        log.append("preference", {**parts, "source": "judge:llm"})
        served.append(ServedPairs(pairs.id, {"small_llm": body}))
    known = outcomes(served, log, lambda: build_bandit(SETTINGS), "large_llm", None)
    assert known is not None
    for weight in (0.0, 0.05):
        here = known.at(weight)["quality"]
        assert abs(here["value"] - 0.5) < 3 * max(here["standard_error"], 0.01)


def test_nothing_is_said_of_few_requests_or_of_unfinished_ones() -> None:
    log = MemoryEventLog()
    served = judged_requests(log, 30, {True: 0.5, False: 0.0})
    unfinished = [ServedPairs(p.id, {}) for p in served[:15]] + served[15:]
    build = lambda: build_bandit(SETTINGS)  # noqa: E731
    assert outcomes(served, log, build, "large_llm", None) is not None
    assert outcomes(unfinished, log, build, "large_llm", None) is None
    assert not math.isnan(two_arms([0.9], [0.5]).at(0.1)["offload"]["value"])
