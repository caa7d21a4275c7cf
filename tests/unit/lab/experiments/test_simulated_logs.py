"""The simulated logs on which off-policy estimates are checked."""

from __future__ import annotations

import pytest
from echolm_lab.experiments.off_policy import Comparison, simulate


@pytest.fixture(scope="module")
def compared() -> dict[str, Comparison]:
    return {one.policy: one for one in simulate(3, 8_000, 0.2, seed=3)}


def test_fixed_policies_and_a_changed_cost_weight_are_compared(
    compared: dict[str, Comparison],
) -> None:
    fixed = {"always small_llm", "always medium_llm", "always large_llm"}
    assert set(compared) == fixed | {"greedy", "cost weight 0.2", "0.2, greedy"}
    for one in compared.values():
        robust = one.estimates["doubly robust"]
        assert abs(robust.value - one.truth) < 4 * robust.standard_error


def test_counting_all_ratings_alike_is_worse(compared: dict[str, Comparison]) -> None:
    fixed = [(one.truth, one.naive) for one in compared.values() if one.naive is not None]
    truth, naive = max(fixed, key=lambda pair: pair[1].effective_sample_size)
    assert naive.value < truth - 0.05  # bad ratings come unasked
