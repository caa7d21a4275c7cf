"""Logs of a simulated router whose policies' true qualities are known, and estimates from them.

Requests have topics (Zipf), embeddings around their topic, and mostly examples. Each LLM is right
with a probability that no model of the product can express: a sine across the embedding and an
interaction of topic and similarity. Everything that decides what is logged is the product's: the
context, the bandit, which learns while it serves, the solicitor, the judging's sampler. Callers
answer some of the questions, and rate of their own accord mostly what is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from echolm.bandit.features import Featurizer
from echolm.bandit.learning import BanditLearning
from echolm.cli.estimate import bandit_policies, learnt_bandit, read_decisions
from echolm.judges.events import rated_propensity
from echolm.judges.service import Sampler
from echolm.learning.event_log import Event
from echolm.learning.feedback import JUDGE_SOURCE, RATING, describe
from echolm.learning.off_policy import (
    Estimate,
    LoggedDecisions,
    Probabilities,
    doubly_robust,
    fit_reward_model,
    ips,
    snips,
)
from echolm.learning.request_statistics import REQUEST_STATISTICS, fit
from echolm.primitives import Decision, Selected
from echolm.router.solicitation import Solicitor
from echolm.settings import Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.routing import build_bandit
from numpy.typing import NDArray

_BATCH = 32
_TOPICS, _DIMENSION = 40, 48
_MEASURED_AT = (512, 8_192)  # requests after which their statistics are measured
_MS_PER_REQUEST = 500
ESTIMATORS = ("IPS", "SNIPS", "doubly robust")


@dataclass(frozen=True)
class Behaviour:
    """What callers and the judge do.

    Attributes:
        answered: probability that a caller answers when a rating is asked for.
        volunteered: probability that one comes unasked, of an answer that is right, and wrong.
    """

    answered: float = 0.6
    volunteered: tuple[float, float] = (0.01, 0.06)


@dataclass(frozen=True)
class Requests:
    """Requests with what is known of them and what would be true of every answer.

    Attributes:
        qualities: probability that an LLM's answer is right, FP64 [n, LLMs].
    """

    texts: list[str]
    embeddings: NDArray[np.float32]
    examples: Sequence[Sequence[Selected]]
    qualities: NDArray[np.float64]


class World:
    """Topics, and how good each LLM is at them.

    Args:
        levels: log-odds of a right answer without examples, for each LLM from the cheapest.
    """

    def __init__(self, settings: Settings, levels: Sequence[float], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._centres = rng.normal(size=(_TOPICS, _DIMENSION))
        self._centres /= np.linalg.norm(self._centres, axis=1, keepdims=True)
        popularity = 1.0 / np.arange(1, _TOPICS + 1)
        self._popularity = popularity / popularity.sum()
        self._takes_examples = np.array([llm.takes_examples for llm in settings.llms])
        self._levels = np.array(levels) + rng.normal(0, 0.8, (_TOPICS, len(levels)))
        self._gains = rng.uniform(0.0, 3.0, _TOPICS)
        self._waves = rng.normal(size=(len(levels), _DIMENSION))

    def draw(self, n: int, rng: np.random.Generator) -> Requests:
        topics = rng.choice(_TOPICS, n, p=self._popularity)
        vectors = self._centres[topics] + rng.normal(0, 0.09, (n, _DIMENSION))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        similarities = np.where(rng.random(n) < 0.8, 0.5 + 0.45 * rng.beta(2, 2, n), 0.0)
        helps = self._gains[topics] * np.maximum(0.0, similarities - 0.6) / 0.2
        logits = self._levels[topics] + np.sin(4.0 * vectors @ self._waves.T)
        logits += helps[:, None] * self._takes_examples
        examples: list[tuple[Selected, ...]] = [
            (Selected(1, "how", "so", float(s), float(u)),) if s else ()
            for s, u in zip(similarities, rng.beta(4, 2, n), strict=True)
        ]
        texts = ["x" * int(length) for length in rng.lognormal(4.5, 0.7, n).clip(5, 4_000)]
        return Requests(texts, vectors.astype(np.float32), examples, 1.0 / (1.0 + np.exp(-logits)))


def serve(
    settings: Settings, requests: Requests, behaviour: Behaviour, seed: int
) -> tuple[MemoryEventLog, Featurizer]:
    """Let the router answer the requests; gives its log, and the featurizer in its last state."""
    rng, dice = np.random.default_rng([seed, 1]), random.Random(seed)
    now = [1_790_000_000_000]
    log = MemoryEventLog(now_ms=lambda: now[0])
    featurizer, bandit = build_bandit(settings)
    learning = BanditLearning(bandit, featurizer)
    solicitor = Solicitor(settings.routing.solicit_share, settings.routing.solicit_random, dice)
    judging = settings.judging
    sampler = Sampler(judging.sample_share, judging.solicited_share, dice)
    names, reference = [llm.name for llm in settings.llms], settings.strongest_llm.name

    def record(kind: str, body: Mapping[str, object]) -> None:
        position = log.append(kind, body)
        learning.apply(Event(position, kind, body, now[0]))

    for start in range(0, len(requests.texts), _BATCH):
        if any(start - _BATCH < at <= start for at in _MEASURED_AT):
            nearest = [e[0].similarity for e in requests.examples[:start] if e]
            version = featurizer.statistics.version + 1
            statistics = fit(requests.embeddings[:start], np.array(nearest, np.float32), version)
            record(REQUEST_STATISTICS, statistics.body())
        rows = slice(start, start + _BATCH)
        X = featurizer.many(
            requests.texts[rows], list(requests.embeddings[rows]), requests.examples[rows]
        )
        version = featurizer.statistics.version
        for k, (x, choice) in enumerate(zip(X, bandit.choose_many(X, {}, rng), strict=True)):
            now[0] += _MS_PER_REQUEST
            right = rng.random(len(names)) < requests.qualities[start + k]
            ask = solicitor.should_solicit(choice.rating_value, choice.propensity, len(names))
            request_id = str(start + k)
            decision = Decision(
                request_id, "t", choice.arm, x, choice.propensity, choice.quality, (), "", "",
                version, ask.reason, ask.probability,
            )  # fmt: skip
            score = float(right[names.index(choice.arm)])
            unasked = behaviour.volunteered[0 if score else 1]
            if rng.random() < (behaviour.answered if ask.reason else unasked):
                record(RATING, {**describe(decision), "score": score})
            reason = sampler.draw(bool(ask.reason)) if judging.kind != "none" else ""
            if not reason:
                continue
            other, share = reference, 1.0
            if choice.arm == reference:
                candidates = [name for name in names if name != reference]
                weights = [choice.probabilities[name] for name in candidates]
                [other] = dice.choices(candidates, weights)
                share = choice.probabilities[other] / sum(weights)
            asked = replace(decision, request_id=f"{request_id}b", llm=other, propensity=share)
            for side in (decision, asked):
                sampled = {
                    "probability": sampler.probability if reason == "random" else 0.0,
                    "propensity": rated_propensity(
                        choice.probabilities, side.llm, reference, names
                    ),
                }
                kind = {"solicited": reason == "solicited", "asked": side is asked}
                body = {**describe(side), "score": float(right[names.index(side.llm)])}
                body["source"] = f"{JUDGE_SOURCE}grader"
                body["judging"] = {**kind, "request_id": request_id, **sampled}
                record(RATING, body)
    return log, featurizer


@dataclass(frozen=True)
class Comparison:
    """One policy's true quality and what is estimated of it.

    Attributes:
        naive: of a fixed policy, the self-normalised estimate that counts all ratings by callers
            alike, asked for or not.
    """

    policy: str
    truth: float
    estimates: Mapping[str, Estimate]
    naive: Estimate | None = None


def compare(
    settings: Settings,
    log: MemoryEventLog,
    featurizer: Featurizer,
    population: Requests,
    cost_weight: float,
    holdout: float = 0.5,
) -> list[Comparison]:
    """Estimates of fixed policies and of a changed cost weight, beside the truth.

    Args:
        featurizer: as :func:`serve` has left it.
        population: other requests of the same world, on which the truth is measured.
    """
    decisions, _ = read_decisions(settings, log)
    alike, _ = read_decisions(settings, log, "all")
    alike = alike.part(alike.kinds != alike.kind_names.index("judged"))
    arms, rewards = decisions.arms, fit_reward_model(decisions)
    fixed = {f"always {arm}": row for arm, row in zip(arms, np.eye(len(arms)), strict=True)}
    if len(arms) == 2:
        fixed["evenly"] = np.full(2, 0.5)
    found = []
    for name, row in fixed.items():
        truth = float((population.qualities @ row).mean())
        estimates = _estimates(decisions, np.tile(row, (len(decisions), 1)), rewards)
        naive = snips(alike, np.tile(row, (len(alike), 1)))
        found.append(Comparison(name, truth, estimates, naive))
    first = len(decisions) - round(holdout * len(decisions))
    newest = decisions.part(slice(first, None))
    bandit = learnt_bandit(settings, log, int(newest.order.min()))
    embeddings = list(population.embeddings)
    X = featurizer.many(population.texts, embeddings, population.examples).astype(np.float64)
    targets = bandit_policies(bandit, newest.contexts, arms, [cost_weight])
    true = bandit_policies(bandit, X, arms, [cost_weight])
    for name, target in targets.items():
        truth = float((true[name] * population.qualities).sum(axis=1).mean())
        found.append(Comparison(name, truth, _estimates(newest, target, rewards[first:])))
    return found


def _estimates(
    log: LoggedDecisions, target: Probabilities, rewards: NDArray[np.float64]
) -> dict[str, Estimate]:
    values = (ips(log, target), snips(log, target), doubly_robust(log, target, rewards))
    return dict(zip(ESTIMATORS, values, strict=True))


LLMS = {
    2: {"small_llm": (0.1, 0.6), "large_llm": (1.0, 2.0)},
    3: {"small_llm": (0.1, 0.6), "medium_llm": (0.4, 1.4), "large_llm": (1.0, 2.0)},
}
"""Cost of each LLM, and its log-odds of a right answer without examples, by how many there are."""


def simulate(llms: int, requests: int, cost_weight: float, seed: int) -> list[Comparison]:
    """A world, its log and the estimates; the default settings with judging."""
    settings = Settings.model_validate(
        {
            "llms": [
                {"name": name, "cost": cost, "takes_examples": name != "large_llm"}
                for name, (cost, _) in LLMS[llms].items()
            ],
            "judging": {"kind": "grader", "grader": "simulated:grade"},
        }
    )
    world = World(settings, [level for _, level in LLMS[llms].values()], seed)
    served = world.draw(requests, np.random.default_rng([seed, 0]))
    population = world.draw(20_000, np.random.default_rng([seed, 2]))
    log, featurizer = serve(settings, served, Behaviour(), seed)
    return compare(settings, log, featurizer, population, cost_weight)
