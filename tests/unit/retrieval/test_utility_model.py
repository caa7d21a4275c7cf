from __future__ import annotations

import base64
import threading
from dataclasses import replace

import numpy as np
import pytest
from echolm.learning.event_log import Event
from echolm.learning.learner import Learner, OutdatedError
from echolm.learning.snapshot import pack, unpack
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Candidate
from echolm.retrieval.count import ExampleCount
from echolm.retrieval.features import (
    EXAMPLE_FEATURES,
    REQUEST_FEATURES,
    ExampleTexts,
    FeatureBatch,
)
from echolm.retrieval.record import RANK_FEATURES, SelectionRecord
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility
from echolm.settings import RetrievalSettings, Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.retrieval import build_selector
from hypothesis import given
from hypothesis import strategies as st
from selection_world import (
    HALF_LIFE_MS,
    LLMS,
    World,
    answer,
    auc,
    featurize,
    preference,
    rating,
    untaught,
)

R, E = len(REQUEST_FEATURES), len(EXAMPLE_FEATURES)


def record(*ids: int, seed: int = 0) -> SelectionRecord:
    """A selection of these examples, with features that tell nothing of them."""
    rng = np.random.default_rng(seed)
    features = np.zeros((len(ids), E), dtype=np.float32)
    features[:, 1:4] = rng.normal(0, 0.1, (len(ids), 3))
    tokens, ranked = (50,) * len(ids), np.full((len(ids), RANK_FEATURES), 0.5, np.float32)
    request = np.zeros(R, np.float32)
    return SelectionRecord(request, ids, features, tokens, count=len(ids), ranked=ranked)


def batch(*ids: int) -> FeatureBatch:
    found = [Candidate(i, "ask", "answer", "public", 1.0, 0.8) for i in ids]
    return featurize(["ask"], [found], ExampleTexts(EstimatedTokens()))


def typical(*ids: int) -> SelectionRecord:
    """A selection of these examples, whose requests are as near as nearest ones are."""
    features = batch(*ids).example[0] if ids else np.zeros((0, E), np.float32)
    return SelectionRecord(np.zeros(R, np.float32), ids, features, (50,) * len(ids))


def same_weights(one: LearnedUtility, two: LearnedUtility) -> bool:
    return np.array_equal(one.weights.covariance, two.weights.covariance)


def same(one: LearnedUtility, two: LearnedUtility) -> bool:
    return pack(one.state()) == pack(two.state())


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_before_any_rating_utility_and_ranking_are_those_of_similarity(
    values: list[tuple[float, float]],
) -> None:
    found = [
        Candidate(i, f"ask {i}", f"answer {i}", "public", quality, similarity)
        for i, (similarity, quality) in enumerate(values)
    ]
    features = featurize(["ask 7"], [found], ExampleTexts(EstimatedTokens()))
    cold = SimilarityUtility().score(features)
    assert untaught().score(features) == pytest.approx(cold, abs=1e-4)
    assert untaught().surely(features) == pytest.approx(cold, abs=1e-4)


def test_a_ranking_is_changed_by_what_is_sure_and_not_by_noise() -> None:
    """Ratings that are dice leave the nearest in front; a bad example falls behind."""
    found = [
        Candidate(i, f"restart server {i}", f"svc restart {i}", "public", 1.0, 0.9 - i / 50)
        for i in range(6)
    ]
    features = featurize(["restart server 9"], [found], ExampleTexts(EstimatedTokens()))
    for seed in range(4):
        model, rng = untaught(), np.random.default_rng(seed)
        for n in range(200):
            taken = SelectionRecord(
                features.request[0], (10 + n,), features.example[0, [n % 6]], (20,)
            )
            model.apply(rating(n, taken, float(rng.random() < 0.6)))
        assert np.argsort(-model.surely(features)[0]).tolist() == list(range(6))
        for n in range(200, 260):
            first = SelectionRecord(features.request[0], (0,), features.example[0, [0]], (20,))
            model.apply(rating(n, first, 0.0))
        assert model.surely(features)[0].argmax() != 0


def test_that_some_requests_are_harder_says_nothing_of_their_examples() -> None:
    """Requests with long candidates score less, with whichever of these."""
    k, rng = EXAMPLE_FEATURES.index("length_deviation"), np.random.default_rng(0)
    model = untaught()
    for n in range(800):
        example, request = np.zeros((1, E), np.float32), np.zeros(R, np.float32)
        hard = rng.random()
        request[REQUEST_FEATURES.index("mean_length_deviation")] = hard
        example[0, k] = hard + 0.3 * rng.standard_normal()
        score = float(rng.random() < 0.8 - 0.5 * hard)
        model.apply(rating(n, SelectionRecord(request, (n,), example, (20,)), score))
    assert abs(model.weights.mean[-E + k]) < 0.5
    level = len(LLMS) + REQUEST_FEATURES.index("mean_length_deviation")
    assert model.weights.mean[level] < -1.0


@pytest.mark.parametrize("seed", range(4))
def test_ratings_of_whole_answers_tell_sound_examples_from_corrupted_ones(seed: int) -> None:
    """20% of the examples are corrupted, 10% of the ratings are dice, 300 are given."""
    world = World(seed, num_examples=1_000)
    retrieval = RetrievalSettings(min_similarity=0.45, adaptive_num_examples=False)
    selector = build_selector(
        Settings(retrieval=retrieval), EstimatedTokens(), np.random.default_rng(seed), dimension=384
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
    model = untaught()
    for n in range(300):
        ids = (1, 2) if rng.random() < 0.8 else ((1,) if rng.random() < 0.5 else (2,))
        p = {(1, 2): 0.5, (1,): 0.9, (2,): 0.1}[ids]
        model.apply(rating(n, record(*ids, seed=n), float(rng.random() < p)))
    good, bad, unknown = model.score(batch(1, 2, 3))[0]
    assert bad + 0.2 < unknown < good - 0.03


def test_of_a_set_the_less_known_example_takes_more_of_the_credit() -> None:
    model = untaught()
    for n in range(60):
        model.apply(rating(n, record(1, seed=n), 1.0))
    known = model.effect(1)
    model.apply(rating(60, record(1, 2), 0.0))
    assert known[0] - model.effect(1)[0] < 0.0 - model.effect(2)[0]
    assert model.effect(1)[1] < model.effect(2)[1] < model.effect(3)[1]


def test_a_few_bad_ratings_at_the_start_do_not_end_the_use_of_examples() -> None:
    model = untaught()
    found = [
        Candidate(i, f"restart server {i}", f"svc restart {i} --now", "public", 0.95, 0.85)
        for i in range(8)
    ]
    features = featurize(["restart server 9"], [found], ExampleTexts(EstimatedTokens()))
    for n in range(4):
        taken = SelectionRecord(features.request[0], (n,), features.example[0, [n]], (20,))
        model.apply(rating(n, taken, 0.0))
    rated, unrated = np.split(model.score(features)[0], 2)
    assert rated.max() < unrated.min()
    assert unrated.min() > 0.5


def test_answers_without_examples_teach_what_the_llm_does_without_them() -> None:
    """And the more of that is known, the more do ratings with examples say of the examples."""
    model, unrelated = untaught(), untaught()
    for n in range(30):
        model.apply(rating(n, typical() if n % 2 else None, float(n % 10 < 3)))
        unrelated.apply(rating(n, None, float(n % 10 < 3), llm="large_llm"))
    assert model.level("small_llm") == pytest.approx(0.35, abs=0.08)
    assert model.level("large_llm") == pytest.approx(LLMS["large_llm"], abs=0.01)
    before = model.score(batch(9))[0, 0]
    assert before == pytest.approx(untaught().score(batch(9))[0, 0], abs=0.02)
    for n in range(30, 50):
        for one in (model, unrelated):
            one.apply(rating(n, typical(n), 0.35))
    # With examples it is as good as without: these do not help.
    assert model.score(batch(9))[0, 0] < unrelated.score(batch(9))[0, 0] - 0.05


@pytest.mark.parametrize(
    ("without", "with_examples", "kept"),
    [
        (0.55, 0.65, True),
        (0.15, 0.35, True),
        (0.75, 0.9, True),
        (0.8, 0.55, False),
        (0.35, 0.15, False),
    ],
)
def test_examples_that_help_are_kept_at_whatever_level_answers_are(
    without: float, with_examples: float, kept: bool
) -> None:
    model, rng = untaught(), np.random.default_rng(0)
    for n in range(400):
        ids = (n % 40,) if rng.random() < 0.7 else ()
        p = with_examples if ids else without
        model.apply(rating(n, typical(*ids), float(rng.random() < p)))
    assert (model.score(batch(99))[0, 0] >= 0.5) == kept


def test_comparisons_tell_of_the_gain_and_not_of_the_level() -> None:
    """The same LLM has answered twice, with an example and without."""
    better, tied, worse = untaught(), untaught(), untaught()
    for n in range(100):
        for model in (better, tied, worse):
            model.apply(rating(n, typical(), float(n % 10 < 7), id=f"alone-{n}"))
    level = better.level("small_llm")
    for n in range(60):
        one = answer(n, typical(n), id=f"with-{n}")
        two = answer(n, typical(), id=f"without-{n}")
        better.apply(preference(n, one, two, share=0.64, source="judge:llm"))
        tied.apply(preference(n, one, two, share=0.5, source="judge:llm"))
        worse.apply(preference(n, two, one, share=0.75, source="judge:llm"))
    scores = [float(model.score(batch(99))[0, 0]) for model in (better, tied, worse)]
    for model in (better, tied, worse):
        assert model.level("small_llm") == pytest.approx(level, abs=0.15)
    assert scores[0] > 0.9
    assert scores[1] == pytest.approx(0.5, abs=0.2)
    assert scores[2] < 0.25


def test_comparisons_of_two_llms_tell_of_the_gain_what_the_level_of_one_does_not() -> None:
    """The small LLM with examples ties with a large one that is known to be good."""
    model = untaught()
    for n in range(40):
        model.apply(rating(n, None, float(n % 10 > 0), llm="large_llm"))
        model.apply(rating(n, None, float(n % 10 > 6), id=f"alone-{n}"))
    for n in range(40):
        small = answer(n, typical(n), id=f"small-{n}")
        model.apply(preference(n, answer(n, None, "large_llm", f"large-{n}"), small, share=0.5))
    gain = float(model.score(batch(99))[0, 0])
    level = model.level("small_llm")
    odds = level / (1 - level) * gain / (1 - gain)
    assert odds / (1 + odds) == pytest.approx(0.9, abs=0.12)


def test_the_same_comparison_counts_once_and_a_rating_takes_its_place() -> None:
    one, two = answer(1, record(1, 2), id="a"), answer(2, record(), id="b")
    once, often = untaught(), untaught()
    once.apply(preference(1, one, two))
    for event in (preference(1, one, two), preference(2, two, one, share=0.0)):
        often.apply(event)
    assert same(once, often)
    once.apply(rating(3, record(1, 2), 0.4, id="a"))
    alone = untaught()
    alone.apply(rating(3, record(1, 2), 0.4, id="a"))
    assert once.weights.mean == pytest.approx(alone.weights.mean, abs=0.05)
    for changed in (preference(4, one, two), preference(5, two, one)):
        rated = pack(once.state())
        once.apply(changed)
        assert pack(once.state()) == rated


def test_a_caller_takes_precedence_over_a_judge() -> None:
    one, two = answer(1, record(1), id="a"), answer(2, record(), id="b")
    model, judge = untaught(), {"source": "judge:llm"}
    model.apply(rating(1, record(1), 1.0, id="a"))
    rated = pack(model.state())
    model.apply(rating(2, record(1), 0.0, id="a", **judge))
    model.apply(preference(3, two, one, **judge))
    assert pack(model.state()) == rated
    model = untaught()
    model.apply(preference(3, two, one, **judge))
    model.apply(preference(3, one, two))
    alone = untaught()
    alone.apply(preference(3, one, two))
    assert model.weights.mean == pytest.approx(alone.weights.mean, abs=0.05)


def test_an_llm_that_is_gone_and_a_former_record_are_outdated() -> None:
    model = untaught()
    with pytest.raises(OutdatedError, match="gone"):
        model.apply(rating(1, record(1), 1.0, llm="gone"))
    old = base64.urlsafe_b64decode(record(1).dump() + "==")
    text = base64.urlsafe_b64encode(b"\x01" + old[1:]).decode()
    with pytest.raises(OutdatedError, match="version 1"):
        model.apply(rating(1, None, 1.0, selection=text))
    assert same(model, untaught())


def test_rating_again_counts_once() -> None:
    once, often = untaught(), untaught()
    for model, times in ((once, 1), (often, 5)):
        for _ in range(times):
            model.apply(rating(1, record(1, 2), 1.0, id="a"))
    assert same(once, often)


def test_a_later_rating_nearly_replaces_the_earlier_one() -> None:
    changed, right, wrong = untaught(), untaught(), untaught()
    for model, first in ((changed, 0.0), (right, 1.0), (wrong, 0.0)):
        model.apply(rating(0, typical(1, 2), first, id="a"))
        for n in range(1, 6):
            model.apply(rating(n, typical(n, n + 1), 1.0))
    changed.apply(rating(9, typical(1, 2), 1.0, id="a"))
    scores = [m.score(batch(1, 2, 3, 4))[0] for m in (changed, right, wrong)]
    assert np.abs(scores[0] - scores[1]).max() < 0.2 * np.abs(scores[2] - scores[1]).max()


def test_what_is_long_past_is_forgotten() -> None:
    """Of the examples; what was learnt of all examples stays, but gives way more easily."""
    model = untaught()
    for n in range(400):
        model.apply(rating(n, record(1 + n % 2, seed=n), float(n % 2)))
    known, mean = model.effect(1)[0], model.weights.mean
    for n in range(400, 2_000):
        at_ms = int((n - 399) * HALF_LIFE_MS)
        model.apply(rating(n, record(), 0.5, at_ms=at_ms))
    assert known < -0.5
    assert model.effect(1)[0] == pytest.approx(0.0, abs=0.01)
    examples = slice(-E, None)
    assert model.weights.mean[examples] == pytest.approx(mean[examples], abs=0.2)


def test_time_without_many_ratings_forgets_nothing() -> None:
    model, later = untaught(), untaught()
    for n in range(100):
        model.apply(rating(n, record(1, seed=n), 0.0))
        later.apply(rating(n, record(1, seed=n), 0.0, at_ms=n * int(HALF_LIFE_MS)))
    assert same_weights(model, later)


def test_it_follows_an_example_that_has_become_bad() -> None:
    model = untaught()
    for n in range(300):
        model.apply(rating(n, record(1 + n % 2, seed=n), 1.0))
    for n in range(300, 500):
        at_ms = int(HALF_LIFE_MS * n)
        model.apply(rating(n, record(1 + n % 2, seed=n), float(n % 2), at_ms=at_ms))
    good, bad = model.score(batch(2, 1))[0]
    assert good - bad > 0.3


BAD = [
    {"score": 1.5},
    {"score": float("nan")},
    {"score": "good"},
    {"selection": "AAAA"},
    {"selection": record(1).dump()[:-4]},
    {"selection": replace(record(1), features=np.zeros((1, E + 1), np.float32)).dump()},
    {"request_id": None},
    {"selection": 3},
]


@pytest.mark.parametrize("change", BAD)
def test_a_bad_event_changes_nothing(change: dict[str, object]) -> None:
    model = untaught()
    good = rating(1, record(1), 0.5)
    with pytest.raises((ValueError, TypeError)):
        model.apply(replace(good, body={**good.body, **change}))
    assert same(model, untaught())


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

    def follow() -> tuple[Learner, LearnedUtility, ExampleCount]:
        models = (
            untaught(),
            ExampleCount(3, 5, 0.1, dict.fromkeys(LLMS, 0.0), 0.0, HALF_LIFE_MS),
        )
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
    saved, restored = untaught(), untaught()
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
    assert LearnedUtility(LLMS, 1.0).fingerprint != LearnedUtility(LLMS, 2.0).fingerprint
    with pytest.raises(ValueError, match="weights"):
        untaught().restore({**untaught().state(), "mean": np.zeros(2)})


def test_scoring_goes_on_while_it_learns() -> None:
    model, found = untaught(), batch(*range(30))
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
