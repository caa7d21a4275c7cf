"""Dialogues whose follow-ups only their history tells apart."""

from __future__ import annotations

from echolm_lab.tasks.conversations import KINDS, Dialogues, past_requests
from echolm_lab.tasks.second_workload import SecondWorkload

WORKLOAD = SecondWorkload()
SOURCE = Dialogues(WORKLOAD)


def test_same_seed_gives_the_same_dialogues() -> None:
    assert SOURCE.stream(50, seed=1) == SOURCE.stream(50, seed=1)
    assert SOURCE.stream(50, seed=1) != SOURCE.stream(50, seed=2)


def test_the_same_words_have_another_answer_after_another_request() -> None:
    past = [item for item in past_requests(SOURCE, SOURCE.stream(400, seed=1)) if item.history]
    answers: dict[str, set[str]] = {}
    for item in past:
        answers.setdefault(item.text, set()).add(item.answer)
    assert all(len(different) > 1 for different in answers.values())
    by_intent = {item.intent: item.answer for item in past}
    assert all(item.answer == by_intent[item.intent] for item in past)
    assert len(set(by_intent.values())) == len(by_intent)


def test_an_intent_of_a_follow_up_tells_how_its_dialogue_began() -> None:
    for dialogue in SOURCE.stream(50, seed=3):
        for kind, text in dialogue.follow_ups:
            item = SOURCE.follow_up(dialogue.first, kind, text, ())
            assert 0 <= kind < KINDS
            assert SOURCE.first(item.intent) == dialogue.first.intent
        assert SOURCE.first(dialogue.first.intent) == dialogue.first.intent


def test_look_alikes_end_in_the_same_words_after_requests_about_other_things() -> None:
    for one, other in SOURCE.look_alikes(20, seed=1):
        assert one.text == other.text
        assert WORKLOAD.topic(SOURCE.first(one.intent)) != WORKLOAD.topic(
            SOURCE.first(other.intent)
        )
        assert one.answer != other.answer


def test_long_requests_differ_at_one_end_only() -> None:
    for k, (one, other) in enumerate(SOURCE.long_pairs(4, seed=1)):
        a, b = one.text.split(), other.text.split()
        if k % 2:
            a, b = a[::-1], b[::-1]
        same = sum(x == y for x, y in zip(a[:300], b[:300], strict=True))
        assert same == 300
        assert one.intent != other.intent
