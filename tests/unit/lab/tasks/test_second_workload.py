from collections import Counter

from echolm_lab.tasks.second_workload import Popularity, SecondWorkload


def test_same_seed_gives_the_same_requests() -> None:
    streams = [SecondWorkload().stream(50, seed=3) for _ in range(2)]
    assert streams[0] == streams[1]
    assert streams[0] != SecondWorkload().stream(50, seed=4)


def test_there_are_hundreds_of_intents_of_all_abilities() -> None:
    workload = SecondWorkload()
    items = workload.stream(2_000, seed=1)
    assert len(workload) > 260
    assert {item.ability for item in items} == {"alone", "examples", "hard"}
    assert len({item.intent for item in items}) > 150


def test_right_answers_of_two_intents_differ() -> None:
    intents: dict[str, int] = {}
    for item in SecondWorkload().stream(3_000, seed=1):
        assert intents.setdefault(item.answer, item.intent) == item.intent


def test_requests_of_an_intent_are_worded_differently() -> None:
    items = SecondWorkload().stream(2_000, seed=1)
    intent, count = Counter(item.intent for item in items).most_common(1)[0]
    assert len({item.text for item in items if item.intent == intent}) > count / 2


def test_some_intents_come_up_late_only() -> None:
    items = SecondWorkload(popularity=Popularity(late=0.5)).stream(4_000, seed=1)
    first, last = ({item.intent for item in half} for half in (items[:2_000], items[2_000:]))
    assert len(last - first) > 20
