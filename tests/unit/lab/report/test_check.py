"""Checks of measured values against targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from echolm_lab.report.check import Check, summarise


def test_a_check_holds_on_the_right_side_of_its_target() -> None:
    assert Check("a", 0.9, 0.9).holds
    assert not Check("a", 0.9, 0.89).holds
    assert Check("a", 3.0, 2.0, "at_most").holds
    assert not Check("a", 3.0, 3.1, "at_most").holds
    assert not Check("a", 3.0, math.nan, "at_most").holds


def test_a_summary_has_mean_spread_and_every_seed() -> None:
    [row] = summarise([[Check("a", 0.9, 0.8)], [Check("a", 0.9, 1.0)]])
    assert (row["value"], row["holds"], row["holds_in"]) == (pytest.approx(0.9), True, 1)
    assert row["std"] == pytest.approx(np.std([0.8, 1.0], ddof=1))
    assert row["seeds"] == [0.8, 1.0]
    [row] = summarise([[Check("a", 0.9, math.inf)]])
    assert (row["value"], row["holds"]) == (None, True)
