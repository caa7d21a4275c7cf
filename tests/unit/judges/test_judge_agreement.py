"""How far a judge agrees with callers is told by the order of answers."""

from __future__ import annotations

from typing import Any

import pytest
from echolm.judges.agreement import JudgeAgreement
from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING
from echolm.learning.learner import Learner
from echolm.learning.snapshot import pack, unpack
from echolm.testing.event_log import MemoryEventLog

JUDGE = {"source": "judge:llm"}


def rated(request_id: str, score: float, llm: str = "small_llm", **more: str) -> tuple[str, Any]:
    return RATING, {"request_id": request_id, "llm": llm, "score": score, **more}


def preferred(better: str, worse: str, share: float | None = None, **more: str) -> tuple[str, Any]:
    """Of an answer by the small LLM over one by the large one."""
    sides = {
        "better": {"request_id": better, "llm": "small_llm"},
        "worse": {"request_id": worse, "llm": "large_llm"},
    }
    return PREFERENCE, {**sides, **({} if share is None else {"share": share}), **more}


def counts(*events: tuple[str, Any]) -> dict[str, int]:
    agreement = JudgeAgreement()
    for number, (kind, body) in enumerate(events):
        agreement.apply(Event(str(number), kind, body, 0))
    return {name: number for name, number in agreement.counts.items() if number}


def test_nothing_is_known_where_only_one_side_has_rated() -> None:
    assert counts(rated("a", 1.0), rated("b", 0.0, **JUDGE), preferred("c", "d")) == {}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.9, 0.2, "same"), (0.2, 0.9, "opposite"), (0.7, 0.7, "tie")],
)
def test_two_answers_that_callers_rate_differently_are_ordered_by_the_judge(
    first: float, second: float, expected: str
) -> None:
    by_judge = [rated("a", first, **JUDGE), rated("b", second, **JUDGE)]
    by_callers = [rated("a", 1.0), rated("b", 0.0)]
    for events in ([*by_judge, *by_callers], [*by_callers, *by_judge]):
        assert counts(*events) == {expected: 1}
    assert counts(*by_judge, rated("a", 1.0), rated("b", 1.0)) == {}


def test_what_an_answer_won_in_a_comparison_is_what_the_judge_says_of_it() -> None:
    compared = [preferred("a", "x", 1.0, **JUDGE), preferred("b", "y", 0.5, **JUDGE)]
    assert counts(*compared, rated("a", 1.0), rated("b", 0.4)) == {"same": 1}
    # What one LLM wins against another says nothing of what that one wins.
    assert counts(*compared, rated("a", 1.0), rated("x", 0.4, "large_llm")) == {}
    assert counts(*compared, rated("x", 0.2, "large_llm"), rated("y", 0.1, "large_llm")) == {
        "opposite": 1
    }


def test_a_callers_preference_is_compared_with_what_the_judge_says_of_both() -> None:
    judged = [preferred("a", "x", 1.0, **JUDGE), preferred("b", "y", 0.5, **JUDGE)]
    assert counts(*judged, preferred("a", "y")) == {"same": 1}
    assert counts(*judged, preferred("b", "a")) == {"opposite": 1}


def test_an_answer_counts_once_and_old_ones_are_forgotten() -> None:
    assert counts(*[rated("a", 1.0), rated("b", 0.0)] * 3, *[rated("a", 0.9, **JUDGE)] * 3) == {}
    events = [
        event for k in range(200) for event in (rated(f"{k}", k % 2), rated(f"{k}", k % 2, **JUDGE))
    ]
    assert counts(*events)["same"] == sum(min(k, 64) - min(k, 64) // 2 for k in range(200))


def test_a_snapshot_goes_on_where_it_was() -> None:
    log = MemoryEventLog()
    for k in range(20):
        log.append(*rated(f"{k}", k % 3 / 2))
        log.append(*rated(f"{k}", k % 5 / 4, **JUDGE))
    whole, saved, resumed = JudgeAgreement(), JudgeAgreement(), JudgeAgreement()
    Learner(log, [saved]).catch_up()
    resumed.restore(unpack(pack(saved.state())))
    for k in range(20, 30):
        log.append(*rated(f"{k}", k % 3 / 2))
        log.append(*rated(f"{k}", k % 5 / 4, **JUDGE))
    Learner(log, [whole]).catch_up()
    for event in log.read("40", 100):
        resumed.apply(event)
    assert resumed.state() == whole.state()
    assert sum(whole.counts.values()) > 100


def test_a_damaged_event_changes_nothing() -> None:
    agreement, log = JudgeAgreement(), MemoryEventLog()
    before = agreement.state()
    log.append(RATING, {"score": 1.0})
    better = {"request_id": "a", "llm": "small_llm"}
    log.append(PREFERENCE, {"better": better, "worse": {}, **JUDGE})
    learner = Learner(log, [agreement])
    learner.catch_up()
    assert learner.skipped == 2
    assert agreement.state() == before
