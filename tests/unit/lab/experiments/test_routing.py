"""The product's router on a set of requests with known scores."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from echolm.errors import ConfigurationError
from echolm_lab.experiments.routing import (
    MEASURED_AT,
    OnlineRouter,
    labelled_apgr,
    online,
    paretobandit_regrets,
    settings_for,
)
from echolm_lab.tasks.routing_sets import RoutingSet
from numpy.typing import NDArray

N = 600


@pytest.fixture(scope="module")
def topics() -> tuple[RoutingSet, NDArray[np.float32]]:
    """Two topics; the cheap LLM is good at one of them only."""
    rng = np.random.default_rng(5)
    topic = rng.integers(2, size=N)
    embeddings = rng.normal(scale=0.1, size=(N, 32))
    embeddings[:, 0] += 2.0 * topic - 1.0
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = np.column_stack([rng.random(N) < 0.9 - 0.7 * topic, rng.random(N) < 0.9])
    prompts = tuple(f"request {k}" for k in range(N))
    data = RoutingSet("topics", prompts, ("a", "b"), scores.astype(float), np.array([0.1, 1.0]))
    return data, embeddings.astype(np.float32)


def test_the_router_learns_which_topic_the_cheap_llm_is_good_at(
    topics: tuple[RoutingSet, NDArray[np.float32]],
) -> None:
    data, embeddings = topics
    settings = settings_for(data, 0.2)
    # Before topics are measured the cheap LLM is poor on the mean, and must go on being tried.
    routing = settings.routing.model_copy(update={"exploration": 1.0})
    run = online(data, embeddings, settings.model_copy(update={"routing": routing}), 0)
    late = np.arange(N) >= N // 2
    to_strong, hard = run.chosen == 1, embeddings[:, 0] > 0
    assert to_strong[late & hard].mean() > 0.9
    assert to_strong[late & ~hard].mean() < 0.2
    assert run.rated.all()
    assert abs(run.predicted[late].mean() - data.scores_of(run.chosen)[late].mean()) < 0.05


@pytest.mark.parametrize("rated", ["solicited", "random"])
def test_only_a_share_is_rated(topics: tuple[RoutingSet, NDArray[np.float32]], rated: str) -> None:
    data, embeddings = topics
    run = online(data, embeddings, settings_for(data, 0.2), 0, rated)
    assert 0.0 < run.rated.mean() < 0.1


def test_both_llms_labels_rank_the_requests_that_come_after(
    topics: tuple[RoutingSet, NDArray[np.float32]],
) -> None:
    data, embeddings = topics
    figures = labelled_apgr(data, embeddings, 200, 0)
    assert figures["echolm"] > 0.65
    assert figures["logistic"] > 0.65


def test_a_rating_survives_new_statistics_of_requests(
    topics: tuple[RoutingSet, NDArray[np.float32]],
) -> None:
    data, embeddings = topics
    router = OnlineRouter(data, embeddings, settings_for(data, 0.2), 0)
    for k in range(MEASURED_AT[0]):
        router.rate(k, 1)
    before = router.bandit.qualities(router.contexts)[:, 1].mean()
    router.measure(MEASURED_AT[0])
    assert router.bandit.qualities(router.contexts)[:, 1].mean() == pytest.approx(before, abs=0.05)
    assert before > 0.8


def test_an_interpreter_without_paretobandit_is_refused(
    topics: tuple[RoutingSet, NDArray[np.float32]],
) -> None:
    data, embeddings = topics
    with pytest.raises(ConfigurationError, match="pareto_bandit"):
        paretobandit_regrets(data, embeddings, [np.arange(N)], Path(sys.executable), "none")
