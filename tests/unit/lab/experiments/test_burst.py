"""What the burst makes of the offload share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from echolm_lab.experiments.burst import time_to_return


def test_return_of_the_offload_share() -> None:
    at = np.arange(0, 50, 0.1)
    assert time_to_return(at, at < 20, calm_share=0.5) == pytest.approx(14.0)
    assert time_to_return(at, at < 20, calm_share=0.9) == 0.0
    assert time_to_return(at, np.ones(len(at), dtype=bool), calm_share=0.5) == math.inf
