"""How much an example helps: the proxy model of the paper's Example Selector (§4.1).

P(the small LLM answers well | request, examples) is logistic in features of the request and of
each example, plus an effect of each example alone. Ratings are of whole answers; of the examples
behind one, the less known takes more of the surprise, and answers from which an example was
dropped at random (leave-one-out) tell their effects apart.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.features import EXAMPLE_FEATURES, PRIOR, REQUEST_FEATURES, FeatureBatch
from echolm.retrieval.record import SelectionRecord, read_rating, remember

_VERSION = 1  # raised whenever the algorithm makes another state of the same events
_REMEMBERED = 50_000  # most ratings that can still be replaced by a later one
_CREDITED = 50_000  # most examples that have an effect
# Standard deviations of the weights, a priori. How an example agrees with itself and with its
# neighbours is what gives a bad one away, wherever it comes from. The general level is narrow:
# a few bad ratings at the start must not put all examples under the threshold.
_DEVIATION = 0.8
_DEVIATIONS = {"consistency": 2.0, "consensus": 2.0, "support": 0.4, "length": 0.4}
_DEVIATIONS |= {"literals": 0.4, "constant": 0.3, "prior": 0.15}
_EFFECT_VARIANCE = 0.5  # prior variance of an example's effect, in log-odds squared


class UtilityModel(Protocol):
    """Scores how much an example helps the small LLM with a request."""

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Utilities FP32 [B, n] in 0..1; the values in padding mean nothing."""


class SimilarityUtility:
    """The similarity of the requests times the response's quality. It learns nothing."""

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        return np.maximum(batch.similarity, 0.0) * batch.quality


class Effect(NamedTuple):
    """An example's effect on the log-odds, N(mean, variance), when ``updates`` was ``updated``."""

    mean: float
    variance: float
    updated: int


class _Learned(NamedTuple):
    """A rating that was learnt, and what replacing it needs to know.

    Attributes:
        updated: the model's ``updates`` when it was learnt.
        gain: how much one more point of score would have added to b along x.
        effect_gains: how much it would have added to the mean of each example's effect, in the
            record's order.
    """

    score: float
    updated: int
    gain: float
    effect_gains: tuple[float, ...]


class LearnedUtility:
    """Bayesian logistic regression with an effect of each example, online and with forgetting.

    Before any rating the utility equals that of :class:`SimilarityUtility`, since the log-odds of
    that product are a feature with prior weight 1 and all other weights are 0 a priori. The
    log-odds of a set are the mean of its examples' log-odds: an LLM follows what it is shown, so
    that a poor example beside a good one makes the answer worse.

    The posterior is Gaussian: it has the exact mode and the curvature there along each rating's
    direction (Laplace), jointly for the weights and separately for each example's effect. Scoring
    takes no lock, since it reads a snapshot that learning replaces.

    Args:
        discount: weight that the past keeps at each rating, in (0, 1]; the prior replaces the rest.

    Attributes:
        A: precision of the weights, FP64 [d, d]; requests' features come before examples'.
        b: A @ mean, FP64 [d].
        updates: number of ratings seen; each is a step of forgetting.
    """

    name = "utility"
    kinds = frozenset({RATING})

    def __init__(self, discount: float = 0.999) -> None:
        features = [*REQUEST_FEATURES, *EXAMPLE_FEATURES]
        deviation = np.array([_DEVIATIONS.get(name, _DEVIATION) for name in features])
        mean = np.zeros(len(features))
        mean[len(REQUEST_FEATURES) + PRIOR] = 1.0
        self._discount = discount
        self._A0 = np.diag(deviation**-2)
        self._b0 = self._A0 @ mean
        self.A, self.b = self._A0.copy(), self._b0.copy()
        self.updates = 0
        self._effects: OrderedDict[int, Effect] = OrderedDict()
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        configuration = {"version": _VERSION, "features": features, "A0": self._A0}
        configuration |= {"effect_variance": _EFFECT_VARIANCE, "discount": discount}
        self.fingerprint = fingerprint(configuration)
        self._solve()

    def _solve(self) -> None:
        self._covariance = np.linalg.inv(self.A)
        self._mean = self._covariance @ self.b
        of_requests, of_examples = np.split(self._mean.astype(np.float32), [len(REQUEST_FEATURES)])
        # What scoring reads is replaced as a whole.
        self._weights = (of_requests, of_examples, self.updates)

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Utilities FP32 [B, n]: P(the LLM answers well | request, this example alone)."""
        of_requests, of_examples, updates = self._weights
        logits = batch.example @ of_examples
        logits += (batch.request @ of_requests)[:, None]
        if self._effects:
            # A dictionary's get() is atomic, so learning may go on meanwhile.
            get = self._effects.get
            effects = [get(i) for i in batch.ids.ravel().tolist()]
            places = [k for k, effect in enumerate(effects) if effect is not None]
            known = [effect for effect in effects if effect is not None]
            # Each column is read from a list, since numpy is slow at reading tuples.
            mean = np.array([e.mean for e in known])
            variance = np.array([e.variance for e in known])
            age = np.array([updates - e.updated for e in known])
            kept = self._discount ** np.maximum(0.0, age)
            # The same as in effect(), for all at once.
            precision = kept / variance + (1.0 - kept) / _EFFECT_VARIANCE
            logits.ravel()[places] += kept * mean / variance / precision
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float32)

    def effect(self, example_id: int) -> tuple[float, float]:
        """Mean and variance of an example's effect now."""
        effect = self._effects.get(example_id)
        if effect is None:
            return 0.0, _EFFECT_VARIANCE
        kept = self._discount ** max(0, self.updates - effect.updated)
        precision = kept / effect.variance + (1.0 - kept) / _EFFECT_VARIANCE
        return kept * effect.mean / effect.variance / precision, 1.0 / precision

    def _inputs(self, record: SelectionRecord) -> tuple[NDArray[np.float64], float]:
        """The set's features x, FP64 [d], and the share with which each example's effect counts."""
        expected = (len(REQUEST_FEATURES), len(EXAMPLE_FEATURES))
        got = (len(record.request), record.features.shape[1])
        if got != expected:
            raise ValueError(f"selection: expected {expected} features, got {got}")
        share = 1.0 / max(1, len(record.ids))
        x = np.concatenate([record.request, record.features.sum(axis=0) * share])
        return x.astype(np.float64), share

    def apply(self, event: Event) -> None:
        """Learn from a rating of an answer that had examples; other ratings teach nothing here."""
        rated = read_rating(event.body)
        if rated is None or not rated.record.ids:
            return
        request_id, score, record = rated
        earlier = self._learned.get(request_id)
        if earlier is not None and len(earlier.effect_gains) != len(record.ids):
            raise ValueError("expected the same examples as in the earlier rating")
        x, share = self._inputs(record)
        if earlier is None:
            learned = self._learn(record.ids, x, share, score)
        else:
            learned = self._replace(record.ids, x, earlier, score)
        remember(self._learned, request_id, learned, _REMEMBERED)

    def _learn(
        self, ids: tuple[int, ...], x: NDArray[np.float64], share: float, score: float
    ) -> _Learned:
        keep = self._discount
        self.updates += 1
        self.A = keep * self.A + (1 - keep) * self._A0
        self.b = keep * self.b + (1 - keep) * self._b0
        self._solve()
        effects = [self.effect(i) for i in ids]
        direction = self._covariance @ x
        weight_variance = float(x @ direction)
        variance = weight_variance + share**2 * sum(v for _, v in effects)
        logit = float(self._mean @ x) + share * sum(m for m, _ in effects)
        mode = _mode(logit, variance, score)
        p = _sigmoid(mode)
        curvature = p * (1.0 - p)
        residual = score - p
        shrink = 1.0 / (1.0 + curvature * variance)
        # As far as the examples' effects are unknown, the rating says less of the weights.
        share_of_weights = 1.0 / (1.0 + curvature * (variance - weight_variance))
        mean = self._mean + direction * residual
        self.A = self.A + curvature * share_of_weights * np.outer(x, x)
        self.b = self.A @ mean
        for i, (m, v) in zip(ids, effects, strict=True):
            narrower = v - curvature * (share * v) ** 2 * shrink
            effect = Effect(m + share * v * residual, narrower, self.updates)
            remember(self._effects, i, effect, _CREDITED)
        self._solve()
        # d(residual)/d(score) is shrink; A @ direction * shrink is then share_of_weights * x.
        gains = tuple(share * v * shrink for _, v in effects)
        return _Learned(score, self.updates, share_of_weights, gains)

    def _replace(
        self, ids: tuple[int, ...], x: NDArray[np.float64], earlier: _Learned, score: float
    ) -> _Learned:
        change = score - earlier.score
        kept = self._discount ** (self.updates - earlier.updated)
        self.b = self.b + earlier.gain * change * kept * x
        for i, gain in zip(ids, earlier.effect_gains, strict=True):
            if (effect := self._effects.get(i)) is not None:
                kept = self._discount ** (effect.updated - earlier.updated)
                self._effects[i] = effect._replace(mean=effect.mean + gain * change * kept)
        self._solve()
        return earlier._replace(score=score)

    def state(self) -> dict[str, Any]:
        """The posterior, and what replacing a rating needs."""
        return {
            "A": self.A,
            "b": self.b,
            "updates": self.updates,
            "effect_ids": np.array(list(self._effects), dtype=np.int64),
            "effects": np.array(list(self._effects.values()), dtype=np.float64).reshape(-1, 3),
            "learned": [[key, *rating] for key, rating in self._learned.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if it has another number of weights."""
        A, b = np.array(state["A"], np.float64), np.array(state["b"], np.float64)
        if A.shape != self._A0.shape or b.shape != self._b0.shape:
            raise ValueError(f"utility: expected {self._A0.shape} weights, got {A.shape}")
        rows = zip(state["effect_ids"].tolist(), state["effects"].tolist(), strict=True)
        effects = OrderedDict(
            (i, Effect(mean, variance, int(updated))) for i, (mean, variance, updated) in rows
        )
        learned = OrderedDict(
            (key, _Learned(score, updated, gain, tuple(gains)))
            for key, score, updated, gain, gains in state["learned"]
        )
        self.A, self.b, self.updates = A, b, int(state["updates"])
        self._effects, self._learned = effects, learned
        self._solve()


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700 else 0.0


def _mode(logit: float, variance: float, score: float) -> float:
    """The log-odds η with η = logit + variance · (score − σ(η)): the posterior's mode.

    The right side falls as η grows, so there is one solution. It lies between the bounds with
    which the bisection starts.
    """
    low, high = logit - variance, logit + variance
    for _ in range(60):
        middle = (low + high) / 2.0
        if middle < logit + variance * (score - _sigmoid(middle)):
            low = middle
        else:
            high = middle
    return (low + high) / 2.0
