"""Asking an engine many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from echolm.engines import LLMEngine, create_engine
from echolm.errors import UnavailableError
from echolm.primitives import Sampling
from echolm_lab.experiments.engine_load import answer_all

PROMPTS = [f"prompt {number}" for number in range(40)]


@pytest.fixture
def echoing(tmp_path) -> Iterator[LLMEngine]:
    engine = create_engine("dummy", tmp_path, {"echo_prompt": True, "delay_s": 0.001})
    yield engine
    engine.close()


@pytest.mark.parametrize("concurrency", [1, 7, 100])
def test_answers_come_in_the_order_of_the_prompts(echoing, concurrency):
    assert answer_all(echoing, PROMPTS, Sampling(), concurrency) == PROMPTS


def test_one_failure_is_raised_and_leaves_nothing_in_flight(tmp_path):
    engine = create_engine(
        "dummy", tmp_path, {"fail": "out of order", "fail_if_contains": "prompt 13"}
    )
    with pytest.raises(UnavailableError, match="out of order"):
        answer_all(engine, PROMPTS, Sampling(), 4)
    assert engine.stats().in_flight == 0
    engine.close()
