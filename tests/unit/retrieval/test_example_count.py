from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from echolm.judges.events import Judged, JudgedAnswer, judged_events
from echolm.judges.llm import LLMJudge
from echolm.learning.event_log import Event
from echolm.learning.learner import OutdatedError
from echolm.learning.snapshot import pack, unpack
from echolm.llm.chat_template import load_chat_template
from echolm.llm.tokens import EstimatedTokens
from echolm.retrieval.count import ExampleCount, scores_of_comparison
from echolm.retrieval.features import EXAMPLE_FEATURES, REQUEST_FEATURES
from echolm.retrieval.record import SelectionRecord
from echolm.testing.llm import FakeLLM
from numpy.typing import NDArray
from selection_world import HALF_LIFE_MS, answer, preference, rating

COSTS = {"small_llm": 0.01, "large_llm": 0.05}
MOST = 5

Quality = Callable[[int, float, float], float]
"""The quality of an answer by the number of examples, and the first one's relevance, agreement."""


def counting(usual: int = 3, price: float = 0.0, exploration: float = 0.15) -> ExampleCount:
    return ExampleCount(usual, MOST, exploration, COSTS, price, HALF_LIFE_MS)


def record(count: int | None, ranked: NDArray[np.float32], tokens: int = 200) -> SelectionRecord:
    shown = count or 0
    return SelectionRecord(
        np.zeros(len(REQUEST_FEATURES), np.float32),
        tuple(range(shown)),
        np.zeros((shown, len(EXAMPLE_FEATURES)), np.float32),
        (tokens,) * shown,
        count=count,
        ranked=ranked,
    )


def ranked_ones(rng: np.random.Generator) -> NDArray[np.float32]:
    """What is known of a request's best examples: utility and agreement."""
    relevance = -np.sort(-rng.uniform(0.3, 1.0, MOST))
    return np.stack([relevance, np.full(MOST, rng.uniform(-0.5, 1.0))], axis=1).astype(np.float32)


def chosen(
    model: ExampleCount, ranked: NDArray[np.float32], rng: np.random.Generator | None = None
) -> int:
    request = np.zeros((1, len(REQUEST_FEATURES)), np.float32)
    available = np.array([len(ranked)])
    return int(model.choose(request, ranked[None], available, rng or np.random.default_rng(0))[0])


def serve(
    model: ExampleCount,
    quality: Quality,
    n: int,
    seed: int,
    first: int = 0,
    graded: bool = False,
    tokens: int = 200,
) -> NDArray[np.float64]:
    """Requests, of which all are rated; how much better each answer was than with the usual number.

    Their true qualities are compared, so that the ratings' noise is not in it.
    """
    rng = np.random.default_rng(seed)
    gains = []
    for k in range(first, first + n):
        ranked = ranked_ones(rng)
        count = chosen(model, ranked, rng)
        relevance, agreement = ranked[0].tolist()
        good = quality(count, relevance, agreement)
        gains.append(good - quality(3, relevance, agreement))
        score = float(rng.random() < good)
        if graded:
            score = float(np.clip(good + 0.25 * rng.standard_normal(), 0.0, 1.0))
        model.apply(rating(k, record(count, ranked, tokens), score))
    return np.array(gains)


def windows(gains: NDArray[np.float64], length: int = 200) -> list[float]:
    return [float(part.mean()) for part in np.split(gains, len(gains) // length)]


def half(count: int, relevance: float, agreement: float) -> float:
    """Scores around .5, .4 without examples: those that fit help, others add nothing."""
    return 0.4 + (0.15 + 0.02 * min(count, 3)) * (relevance > 0.5) * (count > 0)


def more_is_better(count: int, relevance: float, agreement: float) -> float:
    """Labels: an example more is a vote more, where the examples do not agree."""
    return 0.2 + (0.5 + 0.06 * count * (agreement < 0.5)) * (count > 0)


def harmful(count: int, relevance: float, agreement: float) -> float:
    """Examples mislead unless they fit very well."""
    return 0.6 + (0.15 if relevance > 0.85 else -0.15) * (count > 0)


def indifferent(count: int, relevance: float, agreement: float) -> float:
    return 0.6


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("quality", [half, more_is_better, harmful, indifferent])
def test_it_is_never_worse_than_the_usual_number_while_it_learns(
    quality: Quality, graded: bool
) -> None:
    """In the mean of the seeds, in which little of the dice is left."""
    runs = [windows(serve(counting(), quality, 800, s, graded=graded)) for s in range(4)]
    assert min(np.mean(runs, axis=0)) > -0.01


@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize(("quality", "least"), [(more_is_better, -0.03), (harmful, 0.002)])
def test_after_a_thousand_ratings_it_is_as_good_as_the_best_fixed_number_or_better(
    quality: Quality, least: float, graded: bool
) -> None:
    """Better where it depends on the request."""
    better = []
    for seed in range(4):
        learning, model = counting(), counting(exploration=0.0)
        serve(learning, quality, 1_000, seed, graded=graded)
        model.restore(learning.state())
        rng = np.random.default_rng([seed, 1])
        seen = [ranked_ones(rng) for _ in range(500)]
        tops = [ranked[0].tolist() for ranked in seen]
        got = np.mean([quality(chosen(model, r), *top) for r, top in zip(seen, tops, strict=True)])
        fixed = [np.mean([quality(k, *top) for top in tops]) for k in range(MOST + 1)]
        better.append(got - max(fixed))
    assert np.mean(better) > least


def test_before_any_rating_every_request_gets_the_usual_number() -> None:
    rng = np.random.default_rng(0)
    for usual in (0, 1, 3, 5, 9):
        model = counting(usual, exploration=1.0)
        for n in range(MOST + 1):
            assert chosen(model, ranked_ones(rng)[:n], rng) == min(usual, n)


def test_what_was_not_seen_is_not_dropped() -> None:
    """All answers with the usual number are bad: that says nothing of fewer or more."""
    model, rng = counting(), np.random.default_rng(0)
    for k in range(300):
        model.apply(rating(k, record(3, ranked_ones(rng)), 0.0))
    quiet = counting(exploration=0.0)
    quiet.restore(model.state())
    assert {chosen(quiet, ranked_ones(rng), rng) for _ in range(50)} == {3}


def test_only_what_may_be_better_is_tried() -> None:
    model = counting(exploration=1.0)
    serve(model, lambda count, *_: 0.4 + 0.4 * (count > 0), 400, seed=0)
    rng = np.random.default_rng(1)
    tried = np.bincount([chosen(model, ranked_ones(rng), rng) for _ in range(300)], minlength=6)
    assert tried[0] < 6
    assert (tried[1:] > 0).sum() >= 3


def test_the_share_that_is_tried_is_as_configured() -> None:
    model = counting(exploration=0.2)
    model.apply(rating(0, record(3, ranked_ones(np.random.default_rng(2))), 0.6))
    rng = np.random.default_rng(3)
    others = np.mean([chosen(model, ranked_ones(rng), rng) != 3 for _ in range(2_000)])
    assert 0.08 < others <= 0.22


def test_it_follows_a_change() -> None:
    def better_with(best: int) -> Quality:
        return lambda count, *_: 0.7 - 0.12 * abs(count - best)

    model, rng = counting(exploration=0.2), np.random.default_rng(9)
    serve(model, better_with(1), 2_000, seed=0)
    quiet = counting(exploration=0.0)
    quiet.restore(model.state())
    assert {chosen(quiet, ranked_ones(rng)) for _ in range(20)} <= {0, 1, 2}
    for k in range(8):
        # Time passes, and what was learnt counts less.
        serve(model, better_with(5), 500, seed=k + 1, first=10_000 * (k + 1))
    quiet.restore(model.state())
    assert np.mean([chosen(quiet, ranked_ones(rng)) for _ in range(50)]) > 3.5


def test_examples_that_do_not_pay_for_their_tokens_are_dropped() -> None:
    """The first example helps by 0.05: 200 tokens are worth that at 0.05 a thousand, not at 1."""
    means = []
    for price in (0.05, 1.0):
        model = counting(price=price, exploration=0.2)
        serve(model, lambda count, *_: 0.5 + 0.05 * (count > 0), 3_000, seed=2, graded=True)
        quiet = counting(price=price, exploration=0.0)
        quiet.restore(model.state())
        rng = np.random.default_rng(5)
        means.append(np.mean([chosen(quiet, ranked_ones(rng)) for _ in range(50)]))
    assert means[1] < 1.0 < means[0]


@pytest.mark.parametrize(("better", "none_are_best"), [(0.02, False), (0.1, True)])
def test_what_the_router_made_of_the_examples_counts(better: float, none_are_best: bool) -> None:
    """Without any, the large LLM answers: they are worth none if it is better by more than costs.

    It costs 0.04 more.
    """
    model, rng = counting(exploration=0.0), np.random.default_rng(0)
    for k in range(900):
        count = int(rng.integers(MOST + 1))
        llm = "small_llm" if count else "large_llm"
        selection = record(count, ranked_ones(rng))
        score = 0.8 if count else 0.8 + better
        model.apply(rating(k, selection if count else selection.of_used(()), score, llm=llm))
    counts = [chosen(model, ranked_ones(rng)) for _ in range(100)]
    share = float(np.mean([count == 0 for count in counts]))
    assert share > 0.9 if none_are_best else share < 0.1


def test_what_stands_for_no_number_teaches_nothing() -> None:
    model, fresh = counting(), counting()
    model.apply(rating(1, None, 1.0))
    model.apply(rating(2, record(None, ranked_ones(np.random.default_rng(0))), 1.0))
    assert pack(model.state()) == pack(fresh.state())


@pytest.mark.parametrize(
    ("count", "candidates", "change", "error"),
    [
        (3, MOST, {"llm": "gone"}, OutdatedError),
        (2, MOST + 1, {}, OutdatedError),
        (6, MOST, {}, ValueError),
        (3, 2, {}, ValueError),
        (3, MOST, {"score": 1.5}, ValueError),
    ],
)
def test_a_bad_or_outdated_event_changes_nothing(
    count: int, candidates: int, change: dict[str, Any], error: type[Exception]
) -> None:
    model, fresh = counting(), counting()
    ranked = np.full((candidates, 2), 0.5, np.float32)
    with pytest.raises(error):
        model.apply(rating(1, record(count, ranked), **{"score": 1.0, **change}))
    assert pack(model.state()) == pack(fresh.state())


def test_a_later_rating_replaces_the_earlier_one() -> None:
    ranked = ranked_ones(np.random.default_rng(7))

    def taught(*scores: float) -> dict[str, Any]:
        model = counting()
        serve(model, half, 20, seed=4)
        for score in scores:
            model.apply(rating(99, record(2, ranked), score, id="again"))
        return model.state()

    once, twice = taught(0.9), taught(0.1, 0.9)
    for name in ("mean", "covariance"):
        assert np.allclose(once[name], twice[name]), name


def test_comparisons_teach_it_as_ratings_do() -> None:
    model, rng = counting(exploration=0.5), np.random.default_rng(3)
    for k in range(1_500):
        ranked = ranked_ones(rng)
        counts = [chosen(model, ranked, rng), int(rng.integers(MOST + 1))]
        sides = [
            answer(k, record(c, ranked), id=f"{s}{k}") for s, c in zip("ab", counts, strict=True)
        ]
        qualities = [0.5 + 0.05 * c for c in counts]
        model.apply(preference(k, *sides, share=0.5 + (qualities[0] - qualities[1]) / 2))
    assert model.updates == 3_000
    quiet = counting(exploration=0.0)
    quiet.restore(model.state())
    assert chosen(quiet, ranked_ones(rng)) == MOST


def test_a_rating_takes_the_place_of_a_comparison_and_not_the_reverse() -> None:
    ranked = ranked_ones(np.random.default_rng(1))
    one, two = (answer(1, record(2, ranked), id=name) for name in "ab")
    model = counting(price=0.05)
    model.apply(preference(1, one, two))
    model.apply(rating(2, record(2, ranked), 0.3, id="a"))
    model.apply(preference(3, two, one))
    values = {key: value for key, value, *_ in model.state()["learned"]}
    assert values["a"] == pytest.approx(0.3 - COSTS["small_llm"] - 0.02)
    assert values["b"] == pytest.approx(1.0 - COSTS["small_llm"] - 0.02)


def test_answers_that_were_made_for_a_judgement_teach_it_nothing() -> None:
    ranked = ranked_ones(np.random.default_rng(1))
    selection, model = record(2, ranked), counting()
    model.apply(rating(1, selection, 1.0, source="judge:llm", judging={"asked": True}))
    assert pack(model.state()) == pack(counting().state())
    one, two = (answer(1, selection, id=name) for name in "ab")
    for asked in (["better"], ["worse"]):
        event = preference(1, one, two, source="judge:llm", judging={"asked": asked})
        model.apply(event)
        assert pack(model.state()) == pack(counting().state())


@pytest.mark.parametrize("large_serves", [1.0, 0.5, 0.0])
def test_a_judge_that_compares_llms_does_not_take_the_examples_away(large_serves: float) -> None:
    """The small LLM gains by examples, and is then as good as the large one, which never does.

    What is compared had the same examples, so that their number has no part in who wins.
    """
    model, rng = counting(exploration=0.5), np.random.default_rng(4)
    # A caller's rating, so that other numbers are tried.
    model.apply(rating(0, record(3, ranked_ones(rng)), 0.8))
    judge = LLMJudge(FakeLLM(), load_chat_template("chatml", None), EstimatedTokens())
    for k in range(1, 501):
        ranked = ranked_ones(rng)
        count = chosen(model, ranked, rng)
        by_large = bool(rng.random() < large_serves)
        sides = [
            JudgedAnswer(answer(k, record(count, ranked), llm, id=f"{llm}{k}"), asked)
            for llm, asked in (("small_llm", by_large), ("large_llm", not by_large))
        ]
        won = 0.5 if count else 0.1
        for kind, body in judged_events(judge, Judged(won), *sides, {"reason": "shadow"}):
            model.apply(Event(str(k), kind, body, 0))
    quiet = counting(exploration=0.0)
    quiet.restore(model.state())
    assert np.mean([chosen(quiet, ranked_ones(rng)) for _ in range(50)]) >= 2.5


def test_a_comparison_says_how_far_answers_are_apart() -> None:
    assert scores_of_comparison(1.0, 0.9, 0.9) == (1.0, 0.0)
    assert scores_of_comparison(0.5, 0.9, 0.7) == pytest.approx((0.8, 0.8))
    assert scores_of_comparison(0.4, 0.5, 0.5) == pytest.approx((0.4, 0.6))


def test_a_restored_one_goes_on_as_the_saved_one() -> None:
    saved, restored = counting(), counting()
    serve(saved, half, 300, seed=5)
    restored.restore(unpack(pack(saved.state())))
    for model in (saved, restored):
        serve(model, half, 300, seed=6, first=1_000)
    assert pack(saved.state()) == pack(restored.state())
    other = ExampleCount(3, MOST + 1, 0.1, COSTS, 0.0, HALF_LIFE_MS)
    with pytest.raises(ValueError, match="example count"):
        other.restore(saved.state())
