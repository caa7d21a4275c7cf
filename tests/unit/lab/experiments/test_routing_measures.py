"""Measures of routers on public sets."""

from __future__ import annotations

import numpy as np
import pytest
from echolm_lab.experiments.routing_measures import (
    apgr,
    calibration_error,
    cost_weights,
    frozen_apgr,
    regret,
)
from echolm_lab.tasks.routing_sets import RoutingSet


def test_frozen_apgr_is_what_routellms_own_code_computes() -> None:
    # By routellm.evals.benchmarks.GSM8K.evaluate and routellm.evals.evaluate.generate_results,
    # ten results, lm-sys/RouteLLM 0b64fda.
    k = np.arange(200)
    gains = np.sin(k * 1.7)
    weak = (gains + 0.8 * np.cos(k * 0.9) < 0.3).astype(float)
    assert frozen_apgr(gains, weak, (k % 7 > 0).astype(float)) == pytest.approx(0.890426, abs=1e-6)
    gains, weak, strong = np.cos(k * 2.3), (k % 3 > 0).astype(float), (k % 11 > 0).astype(float)
    assert frozen_apgr(gains, weak, strong) == pytest.approx(0.49375, abs=1e-6)


def test_a_straight_line_between_both_llms_is_a_coins_apgr() -> None:
    shares = np.array([1.0, 0.0, 0.3])
    assert apgr(shares, 0.5 + 0.4 * shares, 0.5, 0.9) == pytest.approx(0.5)


def test_a_router_that_knows_recovers_most_of_the_gap_with_few_calls() -> None:
    curve = apgr(np.array([0.0, 0.2, 1.0]), np.array([0.5, 0.9, 0.9]), 0.5, 0.9)
    assert curve == pytest.approx(0.9)


def test_calibration_error_is_the_mean_distance_of_bins() -> None:
    predicted = np.array([0.91, 0.95, 0.15, 0.15, 1.0])
    scores = np.array([1.0, 1.0, 0.0, 0.3, 1.0])
    assert calibration_error(predicted, scores) == pytest.approx(0.14 / 5)


def four_llms() -> RoutingSet:
    """``never`` costs more than ``middle`` and is worse."""
    means, costs = [0.5, 0.8, 0.7, 0.9], [0.01, 0.1, 0.2, 1.0]
    names = ("cheap", "middle", "never", "strong")
    return RoutingSet("s", ("a", "b"), names, np.array([means, means]), np.array(costs))


def test_cost_weights_make_each_llm_the_best_once_that_can_be() -> None:
    data = four_llms()
    best = [int(np.argmax(data.means - w * data.costs)) for w in cost_weights(data)]
    assert best == [3, 1, 0]


def test_an_llm_that_is_cheapest_and_best_is_so_at_any_weight() -> None:
    data = four_llms().take(np.array([0]))
    data = RoutingSet("s", data.prompts, data.llms[:1], data.scores[:, :1], data.costs[:1])
    assert cost_weights(data) == [0.0]


def test_regret_is_negative_for_a_router_better_than_every_fixed_llm() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    data = RoutingSet("s", ("a", "b"), ("x", "y"), scores, np.array([1.0, 1.0]))
    assert regret(data, np.array([0, 1]), 0.1) == pytest.approx(-0.5)
    assert regret(data, np.array([0, 0]), 0.1) == pytest.approx(0.0)
    assert regret(data, np.array([1, 0]), 0.1) == pytest.approx(0.5)
