from __future__ import annotations

import pytest
from echolm_lab.tasks import PastInteraction, Workload, grade
from echolm_lab.tasks.corruption import KINDS, corrupt


@pytest.fixture(scope="module")
def interactions() -> list[PastInteraction]:
    return [PastInteraction(item, item.answer) for item in Workload(seed=0).stream(300, seed=5)]


def test_the_share_is_corrupted_in_all_ways_and_the_rest_stays(
    interactions: list[PastInteraction],
) -> None:
    corrupted = corrupt(interactions, 0.2, seed=1)
    changed = [new for new in corrupted if new.corruption is not None]
    assert len(changed) == 60
    assert {new.corruption for new in changed} == set(KINDS)
    for old, new in zip(interactions, corrupted, strict=True):
        assert new.item == old.item
        assert (new.response == old.response) == (new.corruption is None)


def test_corrupted_answers_are_wrong(interactions: list[PastInteraction]) -> None:
    corrupted = [e for e in corrupt(interactions, 1.0, seed=1) if e.corruption]
    assert len(corrupted) == len(interactions)
    for interaction in corrupted:
        assert grade(interaction.item, interaction.response) < 0.95


def test_an_answer_of_another_intent_is_of_the_same_domain(
    interactions: list[PastInteraction],
) -> None:
    of_domain: dict[str, set[str]] = {}
    for interaction in interactions:
        of_domain.setdefault(interaction.item.domain, set()).add(interaction.response)
    swapped = [e for e in corrupt(interactions, 0.5, 2) if e.corruption == "other_intent"]
    assert swapped
    assert all(e.response in of_domain[e.item.domain] for e in swapped)


def test_changed_values_keep_their_look(interactions: list[PastInteraction]) -> None:
    by_text = {e.item.text: e for e in interactions}
    for new in corrupt(interactions, 0.5, seed=3):
        if new.corruption == "changed_values":
            old = by_text[new.item.text].response
            assert len(new.response) == len(old)
            assert any(value not in new.response for value in new.item.slot_values)


def test_it_is_the_same_for_the_same_seed_only(interactions: list[PastInteraction]) -> None:
    assert corrupt(interactions, 0.2, 1) == corrupt(interactions, 0.2, 1)
    assert corrupt(interactions, 0.2, 1) != corrupt(interactions, 0.2, 2)
