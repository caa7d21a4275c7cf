from __future__ import annotations

from random import Random

import pytest
from echolm_lab.tasks import Workload, grade


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(seed=0)


@pytest.fixture(scope="module")
def items(workload):
    return workload.stream(600, seed=1, phase="live")


def test_the_right_answer_scores_one(items):
    assert all(grade(item, item.answer) == 1.0 for item in items)


def test_white_space_does_not_matter(items):
    for item in items[:50]:
        assert grade(item, "  " + item.answer.replace(" ", " \n ") + "\n") == 1.0


def test_scores_stay_between_zero_and_one_and_only_exact_answers_get_one(items):
    rng = Random(0)
    for item in items:
        words = item.answer.split(" ")
        words[rng.randrange(len(words))] += "x"
        assert 0.0 <= grade(item, " ".join(words)) < 1.0


def test_no_answer_scores_zero(items):
    assert grade(items[0], "") == 0.0
    assert grade(items[0], "I cannot help with that.") == 0.0


def test_another_intents_answer_scores_about_zero(items):
    rng = Random(1)
    scores = [grade(item, rng.choice(items).answer) for item in items]
    assert sum(scores) / len(scores) < 0.02


def test_a_lookalikes_answer_scores_about_zero_even_with_the_right_slots(workload):
    rng = Random(2)
    for intent in workload.intents:
        if intent.lookalike_of is None:
            continue
        item = workload.item(intent, rng)
        wrong = workload.intents[intent.lookalike_of].answer
        for slot, value in zip(intent.slots, item.slot_values, strict=True):
            wrong = wrong.replace(slot.mark, value)
        assert grade(item, wrong) < 0.3


def test_the_nearest_past_answer_scores_well_below_half(workload, items):
    rng = Random(3)
    scores = [
        grade(item, workload.item(workload.intents[item.intent_id], rng).answer) for item in items
    ]
    assert sum(scores) / len(scores) < 0.2


def test_one_wrong_slot_gets_part_of_the_credit(items):
    for item in items:
        if len(item.slot_values) == 2:
            wrong = item.answer.replace(item.slot_values[1], "?")
            if all(part in wrong for part in item.house):
                assert 0.2 < grade(item, wrong) < 0.5


def test_one_wrong_convention_costs_much_but_not_all(items):
    for item in items:
        score = grade(item, item.answer.replace(item.house[0], "?"))
        assert score < 0.7


def test_piling_up_guesses_does_not_pay(items):
    item = items[0]
    pile = " ".join(other.answer for other in items[:20])
    assert grade(item, pile) < 0.1
