"""Grades of a run's answers."""

from __future__ import annotations

from echolm_lab.experiments.load import Record, Run, scores
from echolm_lab.policies.base import Reply
from echolm_lab.tasks import grade
from workload_items import items


def test_scores_are_grades_in_the_order_of_the_requests() -> None:
    asked = items(3)
    texts = (asked[0].answer, "nonsense", f"{asked[2].answer} and more")
    run = Run(
        tuple(
            Record(item, Reply(text, "small_llm"), "", 0.1)
            for item, text in zip(asked, texts, strict=True)
        ),
        1.0,
    )
    assert scores(run) == [grade(item, text) for item, text in zip(asked, texts, strict=True)]
    assert scores(run)[0] == 1.0
    assert 0 < scores(run)[2] < 1


def test_a_request_without_an_answer_scores_nothing() -> None:
    asked = items(2)
    right = Record(asked[0], Reply(asked[0].answer, "small_llm"), "", 0.1)
    assert scores(Run((right, Record(asked[1], None, "down", 0.1)), 1.0)) == [1.0, 0.0]
