"""The router on public sets, as a server runs it: it chooses, is rated, and learns online.

The bandit, its features, its learning from the log, the statistics of requests and the choice of
whose rating is asked for are the product's own, with its default settings; of an LLM it is told
the cost. No request gets examples, and a rating is learnt before the next request comes.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from echolm.bandit.learning import BanditLearning
from echolm.errors import ConfigurationError
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING, describe
from echolm.learning.request_statistics import REQUEST_STATISTICS, fit
from echolm.primitives import Choice, Decision
from echolm.router.solicitation import Solicitor
from echolm.settings import LLMSettings, Settings
from echolm.wiring.routing import build_bandit
from numpy.typing import NDArray

from echolm_lab.experiments.routing_measures import (
    apgr,
    calibration_error,
    cost_weights,
    frozen_apgr,
    regret,
)
from echolm_lab.policies.linucb import LinUCB
from echolm_lab.policies.static_router import StaticRouter
from echolm_lab.tasks.routing_sets import RoutingSet

SWEEP = tuple(np.linspace(0.0, 0.6, 25).tolist())
"""Cost weights between which two LLMs divide the requests in every way."""

MEASURED_AT = (64, 256, 1_024)
"""Requests after which the statistics of requests are measured."""

_PARETOBANDIT = Path(__file__).with_name("paretobandit_stream.py")
_START_MS = 1_790_000_000_000
_EVERY_MS = 1_000  # between two requests


@dataclass(frozen=True)
class OnlineRun:
    """What a router did with a stream of requests.

    Attributes:
        chosen: index of the LLM of each request, INT [n].
        predicted: the quality that was expected of its answer, FP64 [n].
        rated: whether it was rated, BOOL [n].
    """

    chosen: NDArray[np.intp]
    predicted: NDArray[np.float64]
    rated: NDArray[np.bool_]


def settings_for(data: RoutingSet, cost_weight: float, solicit_share: float = 0.05) -> Settings:
    """The default settings, with the set's LLMs."""
    llms = [
        LLMSettings(name=f"llm{k}", cost=cost, takes_examples=False)
        for k, cost in enumerate(data.costs.tolist())
    ]
    return Settings(llms=llms, routing={"cost_weight": cost_weight, "solicit_share": solicit_share})


class OnlineRouter:
    """The product's bandit and all that it learns from.

    Args:
        data: requests in the order of the stream.
        embeddings: theirs, FP32 [n, D].
    """

    def __init__(
        self, data: RoutingSet, embeddings: NDArray[np.float32], settings: Settings, seed: int
    ) -> None:
        self._data = data
        self._embeddings = embeddings
        self._featurizer, self.bandit = build_bandit(settings)
        self._learning = BanditLearning(self.bandit, self._featurizer)
        self._rng = np.random.default_rng(seed)
        self._events = 0
        self._version = 0
        self.contexts = self._contexts()

    def _contexts(self) -> NDArray[np.float32]:
        n = len(self._data)
        return self._featurizer.many(self._data.prompts, list(self._embeddings), [()] * n)

    def choose(self, k: int) -> Choice:
        """Draw an LLM for request ``k``."""
        return self.bandit.choose_many(self.contexts[k : k + 1], {}, self._rng)[0]

    def rate(self, k: int, llm: int, choice: Choice | None = None) -> None:
        """Learn the score of an LLM's answer to request ``k``."""
        propensity, quality = (choice.propensity, choice.quality) if choice else (1.0, 0.5)
        decision = Decision(
            f"{k}-{llm}",
            "public",
            f"llm{llm}",
            self.contexts[k],
            propensity,
            quality,
            (),
            statistics=self._version,
        )
        self._apply(RATING, {**describe(decision), "score": float(self._data.scores[k, llm])}, k)

    def measure(self, count: int) -> None:
        """Measure the statistics of the first ``count`` requests."""
        self._version += 1
        lengths = np.array([len(prompt) for prompt in self._data.prompts[:count]], np.float32)
        none = np.zeros(0, np.float32)
        statistics = fit(self._embeddings[:count], none, self._version, lengths=lengths)
        self._apply(REQUEST_STATISTICS, statistics.body(), count)
        self.contexts = self._contexts()

    def _apply(self, kind: str, body: dict[str, object], k: int) -> None:
        self._events += 1
        event = Event(str(self._events), kind, body, _START_MS + k * _EVERY_MS)
        self._learning.apply(event)


def online(
    data: RoutingSet,
    embeddings: NDArray[np.float32],
    settings: Settings,
    seed: int,
    rated: str = "all",
) -> OnlineRun:
    """Route a stream of requests.

    Args:
        data: the requests in their order; ``embeddings``: theirs, FP32 [n, D].
        rated: which answers are rated: ``all``, those that the router ``solicited``, or as many
            at ``random``.
    """
    router = OnlineRouter(data, embeddings, settings, seed)
    solicitor = Solicitor(
        settings.routing.solicit_share, settings.routing.solicit_random, random.Random(seed)
    )
    dice = np.random.default_rng(seed)
    n = len(data)
    chosen, predicted = np.zeros(n, dtype=np.intp), np.zeros(n)
    were_rated = np.zeros(n, dtype=np.bool_)
    for k in range(n):
        if k in MEASURED_AT:
            router.measure(k)
        choice = router.choose(k)
        chosen[k], predicted[k] = int(choice.arm[3:]), choice.quality
        if rated == "solicited":
            arms = sum(p > 0.0 for p in choice.probabilities.values())
            ask = solicitor.should_solicit(choice.rating_value, choice.propensity, arms)
            were_rated[k] = bool(ask.reason)
        else:
            were_rated[k] = rated == "all" or dice.random() < settings.routing.solicit_share
        if were_rated[k]:
            router.rate(k, int(chosen[k]), choice)
    return OnlineRun(chosen, predicted, were_rated)


def online_apgr(
    data: RoutingSet, embeddings: NDArray[np.float32], seed: int, rated: str
) -> dict[str, float]:
    """APGR of a router that learns, over a sweep of the cost weight; the set has two LLMs.

    The LLMs alone, which need no router, are the ends of the curve.

    Returns:
        ``apgr``, and means over the sweep: ``calibration_error`` and the share ``rated``.
    """
    shares, qualities, errors, ratings = [0.0, 1.0], data.means.tolist(), [], []
    for cost_weight in SWEEP:
        run = online(data, embeddings, settings_for(data, cost_weight), seed, rated)
        scores = data.scores_of(run.chosen)
        shares.append(float(run.chosen.mean()))
        qualities.append(float(scores.mean()))
        errors.append(calibration_error(run.predicted, scores))
        ratings.append(float(run.rated.mean()))
    return {
        "apgr": apgr(np.array(shares), np.array(qualities), *data.means.tolist()),
        "calibration_error": float(np.mean(errors)),
        "rated": float(np.mean(ratings)),
    }


def labelled_apgr(
    data: RoutingSet, embeddings: NDArray[np.float32], labels: int, seed: int
) -> dict[str, float]:
    """APGR on the other requests after ``labels`` of them with both LLMs' scores, then frozen.

    Returns:
        For ``echolm``, and for ``logistic``: offline logistic regression on the embedding and the
        logarithm of the length, an LLM each.
    """
    router = OnlineRouter(data, embeddings, settings_for(data, 0.0), seed)
    for k in range(labels):
        if k in MEASURED_AT:
            router.measure(k)
        for llm in range(len(data.llms)):
            router.rate(k, llm)
    qualities = router.bandit.qualities(router.contexts[labels:])
    lengths = np.log1p([len(prompt) for prompt in data.prompts])
    x = np.column_stack([embeddings, (lengths - lengths.mean()) / lengths.std()])
    offline = []
    for llm in range(len(data.llms)):
        regression = StaticRouter()
        regression.fit(x[:labels], (data.scores[:labels, llm] > 0.5).tolist())
        offline.append(regression.predict(x[labels:]))
    weak, strong = data.scores[labels:].T
    return {
        "echolm": frozen_apgr(qualities[:, 1] - qualities[:, 0], weak, strong),
        "logistic": frozen_apgr(offline[1] - offline[0], weak, strong),
    }


def online_regrets(
    data: RoutingSet, embeddings: NDArray[np.float32], seed: int
) -> tuple[list[float], float]:
    """Regret at each of the set's cost weights, and the mean calibration error."""
    regrets, errors = [], []
    for cost_weight in cost_weights(data):
        run = online(data, embeddings, settings_for(data, cost_weight), seed)
        regrets.append(regret(data, run.chosen, cost_weight))
        errors.append(calibration_error(run.predicted, data.scores_of(run.chosen)))
    return regrets, float(np.mean(errors))


def linucb_regrets(data: RoutingSet, embeddings: NDArray[np.float32], alpha: float) -> list[float]:
    """LinUCB's regret at each cost weight; its features are a PCA of the whole set."""
    components = fit(embeddings, np.zeros(0, np.float32), 1).project(embeddings)
    x = np.column_stack([np.ones(len(data)), components]).astype(np.float64)
    regrets = []
    for cost_weight in cost_weights(data):
        bandit = LinUCB(len(data.llms), x.shape[1], alpha, cost_weight * data.costs)
        chosen = np.zeros(len(data), dtype=np.intp)
        for k in range(len(data)):
            chosen[k] = bandit.choose(x[k])
            bandit.learn(int(chosen[k]), x[k], float(data.scores[k, chosen[k]]))
        regrets.append(regret(data, chosen, cost_weight))
    return regrets


def paretobandit_regrets(
    data: RoutingSet,
    embeddings: NDArray[np.float32],
    orders: Sequence[NDArray[np.intp]],
    python: Path,
    priors: str,
) -> NDArray[np.float64]:
    """The regret of ParetoBandit's own code, FP64 [orders, cost weights].

    Args:
        data, embeddings: in their own order; each of ``orders`` is one stream.
        python: interpreter in which ``pareto_bandit`` can be imported.
        priors: ``none``; or ``warmup``: those that it ships, of offline ratings of three of the
            LLMs on other requests of this kind.

    Raises:
        ConfigurationError: the interpreter fails.
    """
    weights = cost_weights(data)
    with tempfile.TemporaryDirectory() as directory:
        given, chosen = Path(directory) / "given.npz", Path(directory) / "chosen.npy"
        np.savez(
            given,
            prompts=np.array(data.prompts),
            llms=np.array(data.llms),
            embeddings=embeddings,
            scores=data.scores,
            costs=data.costs,
            cost_weights=np.array(weights),
            orders=np.stack(orders),
        )
        command = [str(python), str(_PARETOBANDIT), str(given), str(chosen), priors]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            expected = "an interpreter with pareto_bandit"
            raise ConfigurationError(f"{python}: expected {expected}, got: {said}") from error
        choices = np.load(chosen)
    return np.array(
        [
            [regret(data.take(order), row[w], weight) for w, weight in enumerate(weights)]
            for order, row in zip(orders, choices, strict=True)
        ]
    )
