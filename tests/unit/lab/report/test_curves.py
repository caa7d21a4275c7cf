from __future__ import annotations

import math

import numpy as np
import pytest
from echolm_lab.report.curves import auc, ratings_until, recovered_after, rolling


def test_auc_is_the_share_of_ordered_pairs() -> None:
    assert auc([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert auc([0.1], [0.9, 0.8]) == 0.0
    assert auc([0.5, 0.5], [0.5]) == 0.5
    rng = np.random.default_rng(0)
    high, low = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 40).round(1)
    pairs = [(h > w) + 0.5 * (h == w) for h in high for w in low]
    assert auc(high.tolist(), low.tolist()) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc([], [1.0]))


def test_rolling_means_use_what_there_is() -> None:
    assert rolling([1, 0, 1, 1], 2).tolist() == [1, 0.5, 0.5, 1]


def test_ratings_until_a_level() -> None:
    scores = [0.0] * 20 + [1.0] * 60
    ratings = [k // 2 for k in range(80)]
    # The window is at 0.95 once it holds no 0 any more.
    assert ratings_until(scores, ratings, 0.95, 10) == ratings[29]
    assert ratings_until(scores, ratings, 0.5, 10) == ratings[24]
    assert ratings_until([0.0] * 80, ratings, 0.95, 10) is None


def test_recovery_counts_the_window() -> None:
    scores = [0.0] * 30 + [1.0] * 30
    assert recovered_after(scores, 1.0, 10) == 40
    assert recovered_after(scores, 0.5, 10) == 35
    assert recovered_after(scores, 0.0, 10) == 10
    assert recovered_after([0.0] * 30, 0.5, 10) is None
