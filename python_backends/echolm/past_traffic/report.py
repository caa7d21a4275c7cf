"""What routing would do with requests like the log's: offload, quality and cost.

The bandit is judged by requests that it has not learnt from: of several bandits each learns all
events but those of one part of the sample, and predicts that part (cross-fitting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import Featurizer
from echolm.bandit.learning import BanditLearning
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.event_log import START, EventLog
from echolm.learning.learner import OutdatedError

_PARTS = 5
_WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_MOST_WEIGHTS = 500  # that are tried to find the one for a quality
_LEAST = 20  # requests without which nothing is said

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What is known of judged requests; the reference LLM is one of the arms.

    Attributes:
        arms: names.
        qualities: what a bandit that does not know the request expects, FP64 [n, arms].
        shares: what each arm's answer won against the logged one; 0.5 for the reference.
        costs: of each answer, in money or in answers of the strongest LLM.
        relative_costs: by which the bandit routes, FP64 [arms].
    """

    arms: tuple[str, ...]
    reference: str
    qualities: Float
    shares: Float
    costs: Float
    relative_costs: Float

    def __len__(self) -> int:
        return len(self.qualities)

    def at(self, cost_weight: float) -> dict[str, Any]:
        """Offload, quality (win rate against the reference) and cost with their standard errors."""
        scores = self.qualities - cost_weight * self.relative_costs
        chosen = scores.argmax(axis=1)
        rows, reference = np.arange(len(self)), self.arms.index(self.reference)
        return {
            "cost_weight": cost_weight,
            "offload": _mean(chosen != reference),
            "quality": _mean(self.shares[rows, chosen]),
            "cost": _mean(self.costs[rows, chosen]),
            "cost_of_reference": _mean(self.costs[:, reference]),
        }

    def table(self) -> list[dict[str, Any]]:
        """:meth:`at` several cost weights."""
        return [self.at(weight) for weight in _WEIGHTS]

    def for_quality(self, quality: float) -> dict[str, Any] | None:
        """:meth:`at` the largest cost weight up to which the quality is reached; None: none is."""
        found = None
        for weight in self._changes():
            here = self.at(weight)
            if here["quality"]["value"] < quality:
                return found
            found = here
        return found

    def _changes(self) -> list[float]:
        """Cost weights between those at which a request goes to another LLM, ascending."""
        gaps: list[Float] = []
        for a in range(len(self.arms)):
            cheaper = self.relative_costs[a] - self.relative_costs
            for b in np.flatnonzero(cheaper > 0):
                gaps.append((self.qualities[:, a] - self.qualities[:, b]) / cheaper[b])
        changes = np.unique(np.concatenate([np.zeros(1), *gaps]).clip(0.0))
        weights = np.append((changes[1:] + changes[:-1]) / 2.0, changes[-1] + 0.01)
        if len(weights) > _MOST_WEIGHTS:
            weights = weights[np.linspace(0, len(weights) - 1, _MOST_WEIGHTS).astype(int)]
        return [0.0, *(round(float(weight), 4) for weight in weights)]


def _mean(values: NDArray[Any]) -> dict[str, float]:
    """Mean and its standard error."""
    n = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return {"value": float(np.mean(values)), "standard_error": error}


@dataclass(frozen=True)
class ServedPairs:
    """The pairs of one interaction in the way the router would have asked, by LLM."""

    id: str
    bodies: Mapping[str, Mapping[str, Any]]

    @property
    def part(self) -> int:
        """The part of the sample to which it belongs."""
        return int(self.id, 16) % _PARTS


def outcomes(
    served: Sequence[ServedPairs],
    log: EventLog,
    build: Callable[[], tuple[Featurizer, ThompsonSampling]],
    reference: str,
    cost_of: Callable[[str, float, float], float] | None,
) -> Outcomes | None:
    """What is known of the requests of which every LLM's answer was judged.

    Args:
        build: makes a bandit that knows its priors only.
        cost_of: money for tokens that an LLM reads and writes; None: relative costs count.

    Returns:
        None if there are too few to say anything.

    Raises:
        UnavailableError: the learning log cannot be read.
    """
    bandits = [build() for _ in range(_PARTS)]
    arms = tuple(bandits[0][1].arms)
    candidates = set(arms) - {reference}
    usable = [
        one
        for one in served
        if {name for name, body in one.bodies.items() if body.get("share") is not None}
        == candidates
    ]
    if len(usable) < _LEAST:
        return None
    _teach(bandits, {one.id: one.part for one in usable}, log)
    relative = np.array([bandits[0][1].costs[name] for name in arms])
    qualities = np.zeros((len(usable), len(arms)))
    shares, costs = np.full_like(qualities, 0.5), np.tile(relative, (len(usable), 1))
    for k, one in enumerate(usable):
        featurizer, bandit = bandits[one.part]
        decision = next(iter(one.bodies.values()))["candidate"]
        x = np.asarray(decision["context"], dtype=np.float32)
        x = featurizer.convert(x, int(decision["statistics"]))
        qualities[k] = bandit.qualities(x[None])[0]
        for name, body in one.bodies.items():
            arm = arms.index(name)
            shares[k, arm] = body["share"]
            if cost_of is not None:
                costs[k, arm] = cost_of(name, body["read"], body["written"])
                tokens = (body["reference_read"], body["reference_written"])
                costs[k, arms.index(reference)] = cost_of(reference, *tokens)
    return Outcomes(arms, reference, qualities, shares, costs, relative)


def _teach(
    bandits: Sequence[tuple[Featurizer, ThompsonSampling]], parts: Mapping[str, int], log: EventLog
) -> None:
    """Let each bandit learn all events of the log but those of its own part."""
    learners = [BanditLearning(bandit, featurizer) for featurizer, bandit in bandits]
    position = START
    while events := log.read(position, 1_000):
        for event in events:
            position = event.position
            if event.kind not in learners[0].kinds:
                continue
            held_out = parts.get(_id_in(event.body))
            for part, learner in enumerate(learners):
                if part != held_out:
                    try:
                        learner.apply(event)
                    except (OutdatedError, ValueError, KeyError, TypeError):
                        continue  # as the servers do, which count it


def _id_in(body: Mapping[str, Any]) -> str:
    """The id of the logged interaction that an event is about; empty if of none."""
    for decision in (body, body.get("better")):
        request_id = decision.get("request_id") if isinstance(decision, Mapping) else None
        if isinstance(request_id, str) and request_id.startswith("past-"):
            return request_id.split("-")[1]
    return ""
