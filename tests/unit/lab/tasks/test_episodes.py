from __future__ import annotations

from random import Random

import pytest
from echolm.conversation import Turn
from echolm.llm.chat_template import few_shot, load_chat_template
from echolm_lab.tasks import Workload
from echolm_lab.tasks.catalogue import invent
from echolm_lab.tasks.episodes import ImitationRows, KnowledgeRows, Trials
from echolm_lab.tasks.prompt import SPECIAL_TOKENS, render


@pytest.fixture(scope="module")
def workload() -> Workload:
    return Workload(seed=0)


def test_training_of_the_small_llm_never_touches_unseen_intents(workload):
    unseen = [i for i in workload.intents if not i.seen_by_small]
    conventions = {i.house for i in unseen}
    subjects = {(i.domain, i.subject.topic, i.subject.thing) for i in unseen}
    fresh = invent(Random(0), frozenset(subjects))
    for _ in range(1500):
        draft = next(fresh)
        assert draft.house not in conventions
        assert (draft.domain, draft.subject.topic, draft.subject.thing) not in subjects
    rows = ImitationRows(workload, Random(1))
    known = {i.house for i in workload.intents if i.seen_by_small}
    for _ in range(200):
        answer = rows.alone()[0].answer
        assert any(all(part in answer for part in house) for house in known)


def test_the_first_answer_of_an_invented_intent_is_not_learnt(workload):
    rows = ImitationRows(workload, Random(2), known_share=0.0)
    for _ in range(50):
        row = rows.row(8)
        assert not row[0].learn
        assert any(turn.learn for turn in row)


def test_training_of_the_large_llm_covers_the_whole_catalogue(workload):
    rows = KnowledgeRows(workload, Random(3))
    row = rows.row(4000)
    assert all(turn.learn for turn in row)
    firsts = {turn.answer[:12] for turn in row}
    covered = sum(i.answer[:12] in firsts for i in workload.intents if "<" not in i.answer[:12])
    assert covered > 0.9 * sum("<" not in i.answer[:12] for i in workload.intents)


def test_trials_have_the_asked_examples(workload):
    items = workload.stream(40, seed=4, phase="live")
    trials = Trials(workload, items)
    by_id = {i.id: i for i in workload.intents}
    for trial in trials(relevant=2, distracting=1):
        house = by_id[trial.item.intent_id].house
        relevant = [all(part in answer for part in house) for _, answer in trial.examples]
        assert sorted(relevant) == [False, True, True]
        assert trial.item.answer not in [answer for _, answer in trial.examples]


def test_trials_are_the_same_each_time(workload):
    trials = Trials(workload, workload.stream(5, seed=4))
    assert list(trials(2, 2)) == list(trials(2, 2))


def test_the_prompt_format():
    assert render("hi") == "<|user|>hi<|assistant|>"
    assert (
        render("hi", [("a", "b")], "be kind")
        == "<|system|>be kind<|end|><|user|>a<|assistant|>b<|end|><|user|>hi<|assistant|>"
    )


def test_the_prompt_is_what_the_router_renders():
    router = load_chat_template("echolm", None)
    turns = few_shot([Turn("user", "hi")], [("a", "b")], "be kind")
    assert router.render(turns) == render("hi", [("a", "b")], "be kind")
    assert set(SPECIAL_TOKENS) <= router.special_tokens.tokens
