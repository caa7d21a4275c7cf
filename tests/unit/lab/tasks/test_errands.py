"""Dialogues in which each turn changes a part of what is asked."""

from __future__ import annotations

from echolm_lab.tasks.conversations import past_requests
from echolm_lab.tasks.errands import Errands

SOURCE = Errands()


def test_same_seed_gives_the_same_dialogues() -> None:
    assert SOURCE.stream(50, seed=1) == SOURCE.stream(50, seed=1)
    assert SOURCE.stream(50, seed=1) != SOURCE.stream(50, seed=2)


def test_what_is_right_does_not_depend_on_the_way_to_it() -> None:
    past = list(past_requests(SOURCE, SOURCE.stream(600, seed=1)))
    answers = {item.intent: item.answer for item in past}
    assert all(item.answer == answers[item.intent] for item in past)
    assert len(set(answers.values())) == len(answers)
    at_once = {item.intent for item in past if not item.history}
    later = {item.intent for item in past if item.history}
    assert at_once & later


def test_the_same_words_have_another_answer_after_other_turns() -> None:
    answers: dict[str, set[str]] = {}
    for item in past_requests(SOURCE, SOURCE.stream(600, seed=1)):
        answers.setdefault(item.text, set()).add(item.answer)
    assert len(answers["And the fee?"]) > 10
    assert len(answers["Thank you."]) == 1


def test_look_alikes_end_in_the_same_words_and_have_other_answers() -> None:
    for one, other in SOURCE.look_alikes(50, seed=1):
        assert one.text == other.text
        assert one.history[0].text != other.history[0].text
        assert SOURCE.first(one.intent) != SOURCE.first(other.intent)


def test_long_requests_differ_at_one_end_only() -> None:
    for one, other in SOURCE.long_pairs(10, seed=1):
        assert len(one.text.split()) > 320
        assert one.text != other.text
        assert one.text.split()[:100] == other.text.split()[:100] or (
            one.text.split()[-100:] == other.text.split()[-100:]
        )
