"""How much an example helps: the proxy model of the paper's Example Selector (§4.1).

The log-odds that an LLM answers well are a level, which depends on the LLM and the request, plus
the gain of the examples, which depends on how they fit the request and on an effect of each example
alone. Answers without examples teach the level, answers with examples the sum, and comparisons of
two answers the difference. An example's utility is of the gain only: where good answers score 0.6,
an example that helps is as useful as where they score 1.

Ratings are of whole answers; of the examples behind one, the less known takes more of the surprise,
and answers from which an example was dropped at random (leave-one-out) tell their effects apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, Comparison, Rating, read_feedback
from echolm.learning.forgetting import Forgetting
from echolm.learning.learner import OutdatedError
from echolm.learning.logistic import (
    GaussianWeights,
    Site,
    Vector,
    joint_comparison_site,
    logit,
    rating_site,
    sigmoid,
)
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.features import (
    EXAMPLE_FEATURES,
    PRIOR,
    REQUEST_FEATURES,
    VOTE,
    FeatureBatch,
)
from echolm.retrieval.record import remember, selection_of

_VERSION = 3  # raised whenever the algorithm makes another state of the same events
_REMEMBERED = 50_000  # most pieces of feedback that can still be replaced by later ones
_CREDITED = 50_000  # most examples that have an effect
_LEAST_KEPT = 200.0  # ratings whose weight is kept, however old they are
# Standard deviations of the weights, a priori. How an example agrees with itself and with its
# neighbours is what gives a bad one away, wherever it comes from. The level may be anything, so
# that ratings at one level, or a few bad ones at the start, say little of the examples.
_DEVIATION = 0.8
_DEVIATIONS = {"consistency": 2.0, "consensus": 2.0, "support": 0.4}
_DEVIATIONS |= {"constant": 0.7, "prior": 0.3}
_LEVEL_DEVIATION, _REQUEST_DEVIATION = 1.5, 0.8
# Agreement is evidence: on Banking77 the first example has the right label in 92.2% with this
# weight and in 91.0% without, and of three 91.0% for 88.6%; on NL2Bash, where responses hardly ever
# agree, the three are as near to the right one as without.
_VOTE = 0.5
_EFFECT_VARIANCE = 0.5  # prior variance of an example's effect, in log-odds squared
_SURENESS = 1.5  # standard deviations of what was learnt that do not count in a ranking
_LEAST_PRECISION = 0.1 / _EFFECT_VARIANCE  # that rounding may leave


class UtilityModel(Protocol):
    """Scores how much an example helps the small LLM with a request."""

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Utilities FP32 [B, n] in 0..1; the values in padding mean nothing."""

    def surely(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Utilities by which a request's candidates are ranked: what feedback says of them counts
        only as far as it is surely so. FP32 [B, n], as :meth:`score`."""


class SimilarityUtility:
    """By the relevance of the request, the response's quality, and what others respond.

    It learns nothing. The log-odds are those of relevance times quality, less what it tells against
    an example that the other candidates contradict it.
    """

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        gains = batch.example[:, :, PRIOR] + _VOTE * batch.example[:, :, VOTE]
        return np.asarray(1.0 / (1.0 + np.exp(-gains)), dtype=np.float32)

    def surely(self, batch: FeatureBatch) -> NDArray[np.float32]:
        return self.score(batch)


class Effect(NamedTuple):
    """An example's effect on the log-odds, N(mean, variance), when it was last learnt.

    Attributes:
        decay: what was left then of evidence from the start.
    """

    mean: float
    variance: float
    decay: float


class _Evidence(NamedTuple):
    """What feedback says about a sum of log-odds.

    Attributes:
        x: direction in which it tells of the weights, FP64 [d].
        shares: with what factor each example's effect counts in it.
    """

    x: Vector
    shares: dict[int, float]


class _Learned(NamedTuple):
    """Feedback that was learnt, and what taking it out again needs.

    Attributes:
        value: the score, or what the first answer won.
        rank: of its kind; see :mod:`echolm.learning.feedback`.
        decay: what was left then of evidence from the start.
        site: what it said about the weights.
        effects: what it said about each example's effect.
        x: direction of a comparison; empty for a rating, whose replacement brings it along.
    """

    value: float
    rank: int
    decay: float
    site: Site
    effects: tuple[tuple[int, Site], ...]
    x: tuple[float, ...] = ()


class LearnedUtility:
    """Bayesian logistic regression with an effect of each example, online and with forgetting.

    The utility of an example is sigma(gain): where one of the two answers with and without it is
    right and the other one is wrong, the probability that the one with it is right. At 0.5 it
    changes nothing. Before any rating the utility equals that of :class:`SimilarityUtility`, whose
    weights are the prior's; all other weights of the gain are 0 a priori. The gain of a set is the
    mean of its examples' gains: an LLM follows what it is shown, so that a poor example beside a
    good one makes the answer worse.

    The posterior is Gaussian, jointly for the weights and separately for each example's effect. A
    piece of feedback, or its replacement by a later one, costs O(d^2). Forgetting leaves the
    weights' mean; the effects are deviations from it and go back to 0, so that an example that was
    once found to be bad is tried again. Scoring takes no lock, since it reads a snapshot that
    learning replaces.

    Args:
        qualities: what is expected of each LLM without examples, in (0, 1), by its name.
        half_life_ms: time in which feedback loses half of its weight.

    Attributes:
        weights: of the LLMs' levels, then of requests' and of examples' features; d in all.
        updates: pieces of feedback that were learnt.
    """

    name = "utility"
    kinds = frozenset({RATING, PREFERENCE})

    def __init__(self, qualities: Mapping[str, float], half_life_ms: float) -> None:
        deviations = [_LEVEL_DEVIATION] * len(qualities)
        deviations += [_REQUEST_DEVIATION] * len(REQUEST_FEATURES)
        deviations += [_DEVIATIONS.get(name, _DEVIATION) for name in EXAMPLE_FEATURES]
        mean = np.zeros(len(deviations))
        mean[: len(qualities)] = [logit(quality) for quality in qualities.values()]
        self._first = len(qualities) + len(REQUEST_FEATURES)  # weight of the examples
        mean[self._first + PRIOR] = 1.0
        mean[self._first + VOTE] = _VOTE
        self._levels = {llm: k for k, llm in enumerate(qualities)}
        self._prior = GaussianWeights.independent(mean, np.array(deviations))
        self._forgetting = Forgetting(half_life_ms, _LEAST_KEPT)
        self.updates = 0
        self._effects: OrderedDict[int, Effect] = OrderedDict()
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        # Keys of the comparisons in which an answer was.
        self._comparisons: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        configuration = {"version": _VERSION, "features": [*REQUEST_FEATURES, *EXAMPLE_FEATURES]}
        configuration |= {"llms": list(qualities), "effect_variance": _EFFECT_VARIANCE}
        configuration |= {"mean": self._prior.mean, "covariance": self._prior.covariance}
        self.fingerprint = fingerprint(configuration | self._forgetting.configuration)
        self._set_weights(self._prior)

    def _set_weights(self, weights: GaussianWeights) -> None:
        self.weights = weights
        mean = weights.mean[self._first :].astype(np.float32)
        covariance = weights.covariance[self._first :, self._first :].astype(np.float32)
        # What scoring reads is replaced as a whole.
        self._scoring = (mean, covariance, self._forgetting.decay)

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Utilities FP32 [B, n] of each example alone, by the posterior's mean."""
        mean, _, decay = self._scoring
        gains = batch.example @ mean
        places, effects, _ = self._effects_of(batch, decay)
        gains.ravel()[places] += effects
        return np.asarray(1.0 / (1.0 + np.exp(-gains)), dtype=np.float32)

    def surely(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Utilities FP32 [B, n] by which to rank: a priori those of nearest neighbours, and changed
        by what was learnt as far as that is more than its standard deviation.

        Of hundreds of noisy ratings a ranking by the mean follows the noise: it is worse than that
        of nearest neighbours where features tell nothing, by as much as they vary. Candidates are
        compared with the one that is best a priori, since what is unknown of both alike says
        nothing of their order.
        """
        mean, covariance, decay = self._scoring
        x, prior = batch.example, self._prior.mean[self._first :].astype(np.float32)
        gains = x @ prior
        best = np.where(batch.valid, gains, -np.inf).argmax(axis=1)
        beside = x - x[np.arange(len(x)), best][:, None]
        variance = (beside @ covariance * beside).sum(axis=2)
        gains += _sure_part(beside @ (mean - prior), variance)
        places, effects, variances = self._effects_of(batch, decay)
        gains.ravel()[places] += _sure_part(effects, variances)
        return np.asarray(1.0 / (1.0 + np.exp(-gains)), dtype=np.float32)

    def _effects_of(self, batch: FeatureBatch, decay: float) -> tuple[list[int], Vector, Vector]:
        """Where in a flat batch examples of known effect stand, and these effects' moments now."""
        # A dictionary's get() is atomic, so learning may go on meanwhile.
        get = self._effects.get
        effects = [get(i) for i in batch.ids.ravel().tolist()] if self._effects else []
        places = [k for k, effect in enumerate(effects) if effect is not None]
        known = [effect for effect in effects if effect is not None]
        # Each column is read from a list, since numpy is slow at reading tuples.
        mean = np.array([e.mean for e in known])
        variance = np.array([e.variance for e in known])
        kept = np.minimum(decay / np.array([e.decay for e in known]), 1.0)
        # The same as in effect(), for all at once.
        precision = kept / variance + (1.0 - kept) / _EFFECT_VARIANCE
        return places, kept * mean / variance / precision, 1.0 / precision

    def effect(self, example_id: int) -> tuple[float, float]:
        """Mean and variance of an example's effect now."""
        effect = self._effects.get(example_id)
        if effect is None:
            return 0.0, _EFFECT_VARIANCE
        kept = min(self._forgetting.decay / effect.decay, 1.0)
        precision = kept / effect.variance + (1.0 - kept) / _EFFECT_VARIANCE
        return kept * effect.mean / effect.variance / precision, 1.0 / precision

    def level(self, llm: str) -> float:
        """The quality that is expected of an LLM without examples; KeyError if it is unknown."""
        return sigmoid(float(self.weights.mean[self._levels[llm]]))

    def apply(self, event: Event) -> None:
        """Learn from feedback, on answers with and without examples."""
        feedback = read_feedback(event)
        if isinstance(feedback, Rating):
            evidence = self._evidence(feedback.answer)
            known = self._learned.get(feedback.request_id)
            if known is not None and len(known.effects) != len(evidence.shares):
                raise ValueError("expected the same examples as in the earlier rating")
            self._forget(event.at_ms)
            self._rate(feedback, evidence)
        else:
            first, second = (self._evidence(answer) for answer in feedback.answers)
            self._forget(event.at_ms)
            self._compare(feedback, first, second)

    def _evidence(self, answer: Mapping[str, Any]) -> _Evidence:
        """What the log-odds of an answer, by its description, consist of."""
        level = self._levels.get(answer["llm"])
        if level is None:
            raise OutdatedError(f"{answer['llm']!r} is not configured any more")
        x = np.zeros(len(self._prior.mean))
        x[level] = 1.0
        record = selection_of(answer)
        if record is None:
            return _Evidence(x, {})
        expected = (len(REQUEST_FEATURES), len(EXAMPLE_FEATURES))
        got = (len(record.request), record.features.shape[1])
        if got != expected:
            raise ValueError(f"selection: expected {expected} features, got {got}")
        x[len(self._levels) : self._first] = record.request
        share = 1.0 / max(1, len(record.ids))
        x[self._first :] = record.features.sum(axis=0) * share
        return _Evidence(x, dict.fromkeys(record.ids, share))

    def _forget(self, now_ms: int) -> None:
        keep = self._forgetting.step(now_ms)
        if keep < 1.0:
            self._set_weights(self.weights.widened(self._prior, keep))

    def _rate(self, rating: Rating, evidence: _Evidence) -> None:
        key, known = rating.request_id, self._learned.get(rating.request_id)
        if known is not None:
            if known.rank > rating.rank or known[:2] == (rating.score, rating.rank):
                return
            self._unlearn(known, evidence.x)
        for compared in self._comparisons.get(key, ()):
            other = self._learned.get(compared)
            # It gives way to a rating, which says more.
            if other is not None and other.rank < rating.rank:
                self._unlearn(self._learned.pop(compared), np.array(other.x))
        site = rating_site(*self._at(evidence), rating.score)
        learned = self._learn(evidence, site, rating.score, rating.rank)
        remember(self._learned, key, learned, _REMEMBERED)

    def _compare(self, comparison: Comparison, first: _Evidence, second: _Evidence) -> None:
        rated = map(self._learned.get, comparison.request_ids)
        if any(known is not None and known.rank > comparison.rank for known in rated):
            return
        known = self._learned.get(comparison.key)
        if known is not None:
            if known.rank > comparison.rank or known[:2] == (comparison.share, comparison.rank):
                return
            self._unlearn(known, np.array(known.x))
        means, variances = zip(*map(self._at, (first, second)), strict=True)
        common = float(first.x @ self.weights.covariance @ second.x)
        for i, share in first.shares.items():
            common += share * second.shares.get(i, 0.0) * self.effect(i)[1]
        covariance = np.array([[variances[0], common], [common, variances[1]]])
        (a, b), site = joint_comparison_site(means, covariance, comparison.share)
        ids = [*first.shares, *(i for i in second.shares if i not in first.shares)]
        shares = {i: a * first.shares.get(i, 0.0) + b * second.shares.get(i, 0.0) for i in ids}
        evidence = _Evidence(a * first.x + b * second.x, shares)
        learned = self._learn(evidence, site, comparison.share, comparison.rank)
        learned = learned._replace(x=tuple(evidence.x.tolist()))
        remember(self._learned, comparison.key, learned, _REMEMBERED)
        for id in comparison.request_ids:
            keys = (*self._comparisons.get(id, ()), comparison.key)
            remember(self._comparisons, id, tuple(dict.fromkeys(keys)), _REMEMBERED)

    def _at(self, evidence: _Evidence) -> tuple[float, float]:
        """Mean and variance of the sum that the evidence is about."""
        mean, variance = self.weights.at(evidence.x)
        for i, share in evidence.shares.items():
            m, v = self.effect(i)
            mean, variance = mean + share * m, variance + share**2 * v
        return mean, variance

    def _learn(self, evidence: _Evidence, site: Site, value: float, rank: int) -> _Learned:
        """Take in what a site says about the sum, each part as far as it is unknown."""
        effects = {i: self.effect(i) for i in evidence.shares}
        mean = sum(evidence.shares[i] * m for i, (m, _) in effects.items())
        variance = sum(evidence.shares[i] ** 2 * v for i, (_, v) in effects.items())
        weights_mean, weights_variance = self.weights.at(evidence.x)
        of_weights = _of_part(site, 1.0, mean, variance)
        decay = self._forgetting.decay
        of_effects = []
        for i, share in evidence.shares.items():
            m, v = effects[i]
            others = (weights_mean + mean - share * m, weights_variance + variance - share**2 * v)
            of_effect = _of_part(site, share, *others)
            self._move_effect(i, of_effect)
            of_effects.append((i, of_effect))
        self._forgetting.kept += 1.0
        self.updates += 1
        self._set_weights(self.weights.updated(evidence.x, of_weights))
        return _Learned(value, rank, decay, of_weights, tuple(of_effects))

    def _unlearn(self, known: _Learned, x: Vector) -> None:
        """Take out again what feedback has said, as far as it is not forgotten yet."""
        kept = self._forgetting.decay / known.decay
        for i, site in known.effects:
            if i in self._effects:
                self._move_effect(i, site.scaled(-kept))
        self._forgetting.kept = max(0.0, self._forgetting.kept - 1.0)
        self._set_weights(self.weights.updated(x, known.site.scaled(-kept)))

    def _move_effect(self, i: int, site: Site) -> None:
        mean, variance = self.effect(i)
        precision = max(1.0 / variance + site.precision, _LEAST_PRECISION)
        moved = Effect(
            (mean / variance + site.shift) / precision, 1.0 / precision, self._forgetting.decay
        )
        remember(self._effects, i, moved, _CREDITED)

    def state(self) -> dict[str, Any]:
        """The posterior, and what replacing feedback needs."""
        learned = [
            [
                key,
                e.value,
                e.rank,
                e.decay,
                list(e.site),
                [[i, *s] for i, s in e.effects],
                list(e.x),
            ]
            for key, e in self._learned.items()
        ]
        return {
            "mean": self.weights.mean,
            "covariance": self.weights.covariance,
            "updates": self.updates,
            "forgetting": self._forgetting.state(),
            "effect_ids": np.array(list(self._effects), dtype=np.int64),
            "effects": np.array(list(self._effects.values()), dtype=np.float64).reshape(-1, 3),
            "learned": learned,
            "comparisons": [[id, *keys] for id, keys in self._comparisons.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if it has another number of weights."""
        weights = self._prior.restored(state, "utility")
        rows = zip(state["effect_ids"].tolist(), state["effects"].tolist(), strict=True)
        effects = OrderedDict((i, Effect(*effect)) for i, effect in rows)
        learned: OrderedDict[str, _Learned] = OrderedDict()
        for key, value, rank, decay, site, sites, x in state["learned"]:
            of_effects = tuple((int(i), Site(*numbers)) for i, *numbers in sites)
            learned[key] = _Learned(value, rank, decay, Site(*site), of_effects, tuple(x))
        comparisons = OrderedDict((id, tuple(keys)) for id, *keys in state["comparisons"])
        self._forgetting.restore(state["forgetting"])
        self.updates = int(state["updates"])
        self._effects, self._learned, self._comparisons = effects, learned, comparisons
        self._set_weights(weights)


def _sure_part(mean: NDArray[Any], variance: NDArray[Any]) -> NDArray[Any]:
    """How far a mean is from 0 beyond its standard deviation, elementwise."""
    beyond = np.abs(mean) - _SURENESS * np.sqrt(np.maximum(variance, 0.0))
    return np.asarray(np.sign(mean) * np.maximum(beyond, 0.0))


def _of_part(site: Site, share: float, mean: float, variance: float) -> Site:
    """What a site of a sum says about one part, of which the sum has ``share`` times as much.

    Args:
        mean, variance: of the rest of the sum.
    """
    known = 1.0 / (1.0 + site.precision * variance)
    return Site(
        share**2 * site.precision * known, share * (site.shift - site.precision * mean) * known
    )
