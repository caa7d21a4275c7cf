from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from echolm.learning.snapshot import pack, unpack
from echolm.retrieval.features import EXAMPLE_FEATURES, REQUEST_FEATURES
from echolm.retrieval.record import SelectionRecord, ThresholdDraw
from echolm.retrieval.threshold import GRID, AdaptiveThreshold, nearest, scores_of_comparison
from hypothesis import given
from hypothesis import strategies as st
from selection_world import HALF_LIFE_MS, answer, preference, rating

COSTS = {"small_llm": 0.01, "large_llm": 0.05}


def threshold(
    start: float = 0.5, exploration: float = 0.2, price: float = 0.05
) -> AdaptiveThreshold:
    return AdaptiveThreshold(start, exploration, COSTS, price, HALF_LIFE_MS)


def record(kept: int, draw: ThresholdDraw | None, tokens: int = 200) -> SelectionRecord:
    return SelectionRecord(
        np.zeros(len(REQUEST_FEATURES), np.float32),
        tuple(range(kept)),
        np.zeros((kept, len(EXAMPLE_FEATURES)), np.float32),
        (tokens,) * kept,
        draw=draw,
    )


Quality = Callable[[list[float]], float]


def serve(
    model: AdaptiveThreshold, quality: Quality, n: int, seed: int, first: int = 0, tokens: int = 200
) -> None:
    """Requests with four candidates each; a rating of every answer."""
    rng = np.random.default_rng(seed)
    for k in range(first, first + n):
        utilities = rng.random(4).tolist()
        drawn = model.draw(rng)
        kept = [u for u in utilities if u >= GRID[drawn]]
        selection = record(len(kept), model.stands_for(drawn, utilities), tokens)
        score = min(1.0, max(0.0, quality(kept) + 0.1 * float(rng.standard_normal())))
        model.apply(rating(k, selection, score))


def useful_above(bound: float) -> Quality:
    """Examples of at least this utility help a little, others harm a little."""
    return lambda kept: 0.6 + sum(0.08 if u >= bound else -0.08 for u in kept)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("start", "best"), [(0.2, 0.6), (0.9, 0.4)])
def test_it_finds_the_best_threshold(start: float, best: float, seed: int) -> None:
    model = threshold(start)
    serve(model, useful_above(best), 3_000, seed)
    assert model.value == pytest.approx(best, abs=0.16)


def test_it_follows_a_change() -> None:
    model = threshold(0.5)
    serve(model, useful_above(0.3), 2_500, seed=0)
    before = model.value
    serve(model, useful_above(0.75), 4_000, seed=1, first=10_000)
    assert before == pytest.approx(0.3, abs=0.16)
    assert model.value == pytest.approx(0.75, abs=0.16)


def test_examples_that_do_not_pay_for_their_tokens_are_dropped() -> None:
    """Each example helps by 0.02, which 200 tokens are worth at 0.05 but not at 0.3 a thousand."""
    for price, expected in ((0.05, 0.2), (0.3, 0.7)):
        model = threshold(0.5, price=price)
        serve(model, lambda kept: 0.5 + 0.02 * len(kept), 6_000, seed=2)
        assert (model.value < 0.5) == (expected < 0.5)


def test_where_all_are_equal_it_stays() -> None:
    model = threshold(0.5, price=0.0)
    serve(model, lambda kept: 0.7, 3_000, seed=3)
    assert model.value == 0.5


@given(st.lists(st.floats(0, 1), max_size=5), st.integers(0, len(GRID) - 1), st.floats(0.01, 1))
def test_the_probability_is_that_of_drawing_one_of_the_equivalent_thresholds(
    utilities: list[float], drawn: int, exploration: float
) -> None:
    model = threshold(exploration=exploration)

    def kept(k: int) -> list[float]:
        return [u for u in utilities if u >= GRID[k]]

    draw = model.stands_for(drawn, utilities)
    same = [k for k in range(len(GRID)) if kept(k) == kept(drawn)]
    assert (draw.low, draw.high) == (same[0], same[-1])
    expected = exploration * len(same) / len(GRID) + (1 - exploration) * (model.current in same)
    assert draw.probability == pytest.approx(expected)


def test_thresholds_are_drawn_as_often_as_their_probability_says() -> None:
    model, rng = threshold(exploration=0.4), np.random.default_rng(0)
    counts = np.bincount([model.draw(rng) for _ in range(8_000)], minlength=len(GRID)) / 8_000
    assert counts[model.current] == pytest.approx(0.62, abs=0.03)
    assert np.delete(counts, model.current) == pytest.approx(np.full(len(GRID) - 1, 0.02), abs=0.01)


def test_what_stands_for_no_threshold_teaches_nothing() -> None:
    model, fresh = threshold(), threshold()
    model.apply(rating(1, None, 1.0))
    model.apply(rating(2, record(1, None), 1.0))
    assert pack(model.state()) == pack(fresh.state())


@pytest.mark.parametrize(
    ("draw", "llm", "score"),
    [
        (ThresholdDraw(3, len(GRID), 0.5), "small_llm", 1.0),
        (ThresholdDraw(3, 4, 0.5), "gone", 1.0),
        (ThresholdDraw(3, 4, 0.5), "small_llm", 1.5),
    ],
)
def test_a_bad_event_changes_nothing(draw: ThresholdDraw, llm: str, score: float) -> None:
    model, fresh = threshold(), threshold()
    with pytest.raises((ValueError, KeyError)):
        model.apply(rating(1, record(1, draw), score, llm=llm))
    assert pack(model.state()) == pack(fresh.state())


def test_a_later_rating_replaces_the_earlier_one() -> None:
    def taught(*scores: float) -> AdaptiveThreshold:
        model = threshold()
        serve(model, useful_above(0.5), 20, seed=4)
        for score in scores:
            event = rating(99, record(1, ThresholdDraw(2, 4, 0.1)), score, id="again")
            model.apply(event)
        return model

    once, twice = taught(0.9).state(), taught(0.1, 0.9).state()
    for name in ("difference", "square", "compared", "mean"):
        assert np.allclose(once[name], twice[name]), name


def test_comparisons_teach_it_as_ratings_do() -> None:
    """Answers with little useful examples lose against those with useful ones."""
    model, rng = threshold(0.2), np.random.default_rng(3)
    quality = useful_above(0.6)
    for k in range(2_000):
        sides, qualities = [], []
        for side in "ab":
            utilities = rng.random(4).tolist()
            drawn = model.draw(rng)
            kept = [u for u in utilities if u >= GRID[drawn]]
            selection = record(len(kept), model.stands_for(drawn, utilities))
            sides.append(answer(k, selection, id=f"{side}{k}"))
            qualities.append(quality(kept))
        share = 0.5 + (qualities[0] - qualities[1]) / 2
        model.apply(preference(k, *sides, share=share))
    assert model.value == pytest.approx(0.6, abs=0.2)
    assert model.updates == 4_000


def test_a_rating_takes_the_place_of_a_comparison_and_not_the_reverse() -> None:
    draw = ThresholdDraw(2, 4, 0.1)
    one, two = (answer(1, record(1, draw), id=name) for name in "ab")
    compared, rated = threshold(), threshold()
    compared.apply(preference(1, one, two))
    rated.apply(rating(1, record(1, draw), 1.0, id="a"))
    rated.apply(rating(1, record(1, draw), 0.0, id="b"))
    for model in (compared, rated):
        model.apply(rating(2, record(1, draw), 0.3, id="a"))
    for name in ("difference", "square", "compared", "mean"):
        assert np.allclose(compared.state()[name], rated.state()[name]), name
    compared.apply(preference(2, two, one))
    values = {key: value for key, value, *_ in compared.state()["learned"]}
    assert values["a"] == pytest.approx(0.3 - COSTS["small_llm"] - 0.01)
    assert values["b"] == pytest.approx(1.0 - COSTS["small_llm"] - 0.01)


def test_answers_that_were_made_for_a_judgement_teach_it_nothing() -> None:
    draw, model = ThresholdDraw(2, 4, 0.1), threshold()
    model.apply(rating(1, record(1, draw), 1.0, source="judge:llm", judging={"asked": True}))
    assert pack(model.state()) == pack(threshold().state())
    one, two = (answer(1, record(1, draw), id=name) for name in "ab")
    for better, worse, asked in ((one, two, "worse"), (two, one, "better")):
        model = threshold()
        model.apply(preference(1, better, worse, source="judge:llm", judging={"asked": [asked]}))
        assert [key for key, *_ in model.state()["learned"]] == ["a"]


def test_a_comparison_says_how_far_answers_are_apart() -> None:
    assert scores_of_comparison(1.0, 0.9, 0.9) == (1.0, 0.0)
    assert scores_of_comparison(0.5, 0.9, 0.7) == pytest.approx((0.8, 0.8))
    assert scores_of_comparison(0.4, 0.5, 0.5) == pytest.approx((0.4, 0.6))


def test_a_restored_one_goes_on_as_the_saved_one() -> None:
    saved, restored = threshold(), threshold()
    serve(saved, useful_above(0.7), 500, seed=5)
    restored.restore(unpack(pack(saved.state())))
    for model in (saved, restored):
        serve(model, useful_above(0.7), 500, seed=6, first=1_000)
    assert pack(saved.state()) == pack(restored.state())
    with pytest.raises(ValueError, match="threshold"):
        threshold().restore({**saved.state(), "current": len(GRID)})


def test_a_threshold_is_moved_to_the_grid() -> None:
    assert GRID[nearest(0.52)] == 0.5
    assert threshold(1.0).value == GRID[-1]
    assert threshold(0.0).value == 0.0
