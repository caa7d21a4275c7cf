from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from echolm.learning.event_log import Event
from echolm.learning.learner import Learner
from echolm.learning.snapshot import pack, unpack
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Candidate
from echolm.retrieval.features import (
    EXAMPLE_FEATURES,
    REQUEST_FEATURES,
    ExampleTexts,
    FeatureBatch,
    featurize,
)
from echolm.retrieval.record import SelectionRecord
from echolm.retrieval.threshold import AdaptiveThreshold
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility
from echolm.settings import RetrievalSettings, Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.retrieval import build_selector
from hypothesis import given
from hypothesis import strategies as st
from selection_world import World, auc, rating

R, E = len(REQUEST_FEATURES), len(EXAMPLE_FEATURES)


def record(*ids: int, seed: int = 0) -> SelectionRecord:
    """A selection of these examples, with features that tell nothing of them."""
    rng = np.random.default_rng(seed)
    features = np.zeros((len(ids), E), dtype=np.float32)
    features[:, 1:4] = rng.normal(0, 0.1, (len(ids), 3))
    return SelectionRecord(np.zeros(R, np.float32), ids, features, (50,) * len(ids))


def batch(*ids: int) -> FeatureBatch:
    found = [Candidate(i, "ask", "answer", "public", 1.0, 0.8) for i in ids]
    return featurize(["ask"], [found], ExampleTexts(EstimatedTokens()))


def same(one: LearnedUtility, two: LearnedUtility) -> bool:
    return pack(one.state()) == pack(two.state())


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_before_any_rating_utility_is_similarity_times_quality(
    values: list[tuple[float, float]],
) -> None:
    found = [
        Candidate(i, f"ask {i}", f"answer {i}", "public", quality, similarity)
        for i, (similarity, quality) in enumerate(values)
    ]
    features = featurize(["ask 7"], [found], ExampleTexts(EstimatedTokens()))
    cold = SimilarityUtility().score(features)
    assert LearnedUtility().score(features) == pytest.approx(cold.clip(0.005, 0.995), abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_ratings_of_whole_answers_tell_sound_examples_from_corrupted_ones(seed: int) -> None:
    """20% of the examples are corrupted, 10% of the ratings are dice, 300 are given."""
    world = World(seed, num_examples=1_000)
    retrieval = RetrievalSettings(
        min_similarity=0.45, adaptive_utility_threshold=False, utility_threshold=0.0
    )
    selector = build_selector(
        Settings(retrieval=retrieval), EstimatedTokens(), np.random.default_rng(seed)
    )
    assert isinstance(selector.utility, LearnedUtility)
    number = 0
    for item in world.requests(600, seed):
        [selection] = selector.select([item.text], [world.search(item.text)])
        used = [e.id for e in selection.examples]
        if used and number < 300:
            score = world.rate(item, used)
            selector.utility.apply(rating(number, selection.record, score))
            number += 1
    assert number == 300
    others = world.requests(120, 500 + seed)
    features = featurize(
        [item.text for item in others],
        [world.search(item.text) for item in others],
        ExampleTexts(EstimatedTokens()),
        0.45,
    )
    # Only candidates of the request's own intent: similarity cannot tell these apart.
    rows, columns = np.nonzero(features.valid)
    own = [
        (r, k)
        for r, k in zip(rows.tolist(), columns.tolist(), strict=True)
        if world.intents[int(features.ids[r, k])] == others[r].intent_id
    ]
    sound = [world.helps[int(features.ids[at])] for at in own]
    learnt = selector.utility.score(features)
    assert auc([float(features.similarity[at]) for at in own], sound) == pytest.approx(0.5, abs=0.1)
    assert auc([float(learnt[at]) for at in own], sound) >= 0.9


def test_examples_that_look_alike_are_told_apart_by_leaving_one_out() -> None:
    """Nothing but the ratings tells that 1 is good and 2 is bad; sets alone could not."""
    rng = np.random.default_rng(0)
    model = LearnedUtility()
    for n in range(300):
        ids = (1, 2) if rng.random() < 0.8 else ((1,) if rng.random() < 0.5 else (2,))
        p = {(1, 2): 0.5, (1,): 0.9, (2,): 0.1}[ids]
        model.apply(rating(n, record(*ids, seed=n), float(rng.random() < p)))
    good, bad, unknown = model.score(batch(1, 2, 3))[0]
    assert bad + 0.2 < unknown < good - 0.05


def test_of_a_set_the_less_known_example_takes_more_of_the_credit() -> None:
    model = LearnedUtility()
    for n in range(60):
        model.apply(rating(n, record(1, seed=n), 1.0))
    known = model.effect(1)
    model.apply(rating(60, record(1, 2), 0.0))
    assert known[0] - model.effect(1)[0] < 0.0 - model.effect(2)[0]
    assert model.effect(1)[1] < model.effect(2)[1] < model.effect(3)[1]


def test_a_few_bad_ratings_at_the_start_do_not_end_the_use_of_examples() -> None:
    """Under the threshold none would be used, and so none be rated."""
    model = LearnedUtility()
    found = [
        Candidate(i, f"restart server {i}", f"svc restart {i} --now", "public", 0.95, 0.85)
        for i in range(8)
    ]
    features = featurize(["restart server 9"], [found], ExampleTexts(EstimatedTokens()))
    for n in range(4):
        taken = SelectionRecord(features.request[0], (n,), features.example[0, [n]], (20,))
        model.apply(rating(n, taken, 0.0))
    rated, unrated = np.split(model.score(features)[0], 2)
    assert rated.max() < 0.81 * 0.9
    assert unrated.min() > RetrievalSettings().utility_threshold


def test_answers_without_examples_teach_nothing() -> None:
    model = LearnedUtility()
    model.apply(rating(1, None, 0.0, llm="large_llm"))
    model.apply(rating(2, record(), 0.0))
    assert same(model, LearnedUtility())


def test_rating_again_counts_once() -> None:
    once, often = LearnedUtility(), LearnedUtility()
    for model, times in ((once, 1), (often, 5)):
        for _ in range(times):
            model.apply(rating(1, record(1, 2), 1.0, id="a"))
    assert same(once, often)


def test_a_later_rating_nearly_replaces_the_earlier_one() -> None:
    changed, right, wrong = LearnedUtility(), LearnedUtility(), LearnedUtility()
    for model, first in ((changed, 0.4), (right, 0.6), (wrong, 0.4)):
        model.apply(rating(0, record(1, 2), first, id="a"))
        for n in range(1, 6):
            model.apply(rating(n, record(n, n + 1, seed=n), 1.0))
    changed.apply(rating(9, record(1, 2), 0.6, id="a"))
    scores = [m.score(batch(1, 2, 3, 4))[0] for m in (changed, right, wrong)]
    assert np.abs(scores[0] - scores[1]).max() < 0.2 * np.abs(scores[2] - scores[1]).max()


def test_what_is_long_past_is_forgotten() -> None:
    model = LearnedUtility(discount=0.95)
    for n in range(20):
        model.apply(rating(n, record(1, seed=n), 0.0))
    low = float(model.score(batch(1))[0, 0])
    for n in range(20, 220):
        model.apply(rating(n, record(2, seed=n), 1.0))
    assert model.effect(1)[0] == pytest.approx(0.0, abs=0.01)
    assert float(model.score(batch(1))[0, 0]) > low + 0.2


def test_it_follows_an_example_that_has_become_bad() -> None:
    model = LearnedUtility(discount=0.98)
    for n in range(100):
        model.apply(rating(n, record(1 + n % 2, seed=n), 1.0))
    for n in range(100, 200):
        model.apply(rating(n, record(1 + n % 2, seed=n), float(n % 2)))
    bad, good = model.score(batch(1, 2))[0]
    assert good - bad > 0.3


BAD = [
    {"score": 1.5},
    {"score": float("nan")},
    {"score": "good"},
    {"selection": "AAAA"},
    {"selection": record(1).dump()[:-4]},
    {"selection": replace(record(1), features=np.zeros((1, E + 1), np.float32)).dump()},
    {"request_id": None},
]


@pytest.mark.parametrize("change", BAD)
def test_a_bad_event_changes_nothing(change: dict[str, object]) -> None:
    model = LearnedUtility()
    good = rating(1, record(1), 0.5)
    with pytest.raises((ValueError, TypeError)):
        model.apply(replace(good, body={**good.body, **change}))
    assert same(model, LearnedUtility())


def history(n: int) -> list[Event]:
    rng = np.random.default_rng(5)
    events = []
    for k in range(n):
        ids = tuple(int(i) for i in rng.choice(30, rng.integers(1, 4), replace=False))
        again = f"r{rng.integers(k + 1)}" if rng.random() < 0.1 else ""
        events.append(rating(k, record(*ids, seed=k), round(float(rng.random()), 3), id=again))
    return events


def test_replicas_and_a_restart_from_a_snapshot_reach_the_same_state() -> None:
    log = MemoryEventLog()

    def follow() -> tuple[Learner, LearnedUtility, AdaptiveThreshold]:
        models = LearnedUtility(), AdaptiveThreshold(0.5, 0.1, {"small_llm": 0.0}, 0.0)
        return Learner(log, models, snapshot_every=60), *models

    first, *models = follow()
    for k, event in enumerate(history(200)):
        log.append(event.kind, event.body)
        if k % 7 == 0:
            first.catch_up()
    first.catch_up()
    second, *others = follow()
    second.catch_up()
    assert first.applied == second.applied > 100
    for one, two in zip(models, others, strict=True):
        assert pack(one.state()) == pack(two.state())


def test_a_restored_model_goes_on_as_the_saved_one() -> None:
    events = history(120)
    saved, restored = LearnedUtility(), LearnedUtility()
    for k, event in enumerate(events):
        if k == 80:
            restored.restore(unpack(pack(saved.state())))
        for model in (saved, restored) if k >= 80 else (saved,):
            try:
                model.apply(event)
            except ValueError:  # another set under an id that was rated: refused by both
                continue
    assert same(saved, restored)
    assert saved.updates > 90


def test_another_configuration_has_another_fingerprint() -> None:
    assert LearnedUtility(0.99).fingerprint != LearnedUtility(0.999).fingerprint
    with pytest.raises(ValueError, match="weights"):
        LearnedUtility().restore({**LearnedUtility().state(), "A": np.eye(2)})


def test_scoring_goes_on_while_it_learns() -> None:
    model, found = LearnedUtility(), batch(*range(30))
    done = threading.Event()

    def learn() -> None:
        for event in history(300):
            try:
                model.apply(event)
            except ValueError:
                continue
        done.set()

    thread = threading.Thread(target=learn)
    thread.start()
    rounds = 0
    while not done.is_set():
        scores = model.score(found)
        assert ((scores > 0) & (scores < 1)).all()
        rounds += 1
    thread.join()
    assert rounds > 1
