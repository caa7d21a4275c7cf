"""How many examples a prompt gets, which for some requests is none (paper §4.1).

The paper adapts a global threshold of utility by what its values turn out to be worth. A threshold
can only drop examples, and one for all requests cannot tell those that need several from those that
need none. So what is learnt here is the worth of each *number* of a request's best examples, as far
as the request and the examples tell it; both sides of every choice, none at all included, are
served now and then, and measured, before anything follows from them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, Rating, read_feedback
from echolm.learning.forgetting import Forgetting
from echolm.learning.learner import OutdatedError
from echolm.learning.logistic import GaussianWeights, Site, Vector
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.features import REQUEST_FEATURES
from echolm.retrieval.record import RANK_FEATURES, SelectionRecord, remember, selection_of

_VERSION = 2  # raised whenever the algorithm makes another state of the same events
_REMEMBERED = 50_000  # most answers of which feedback can still be replaced by later feedback
_LEAST_KEPT = 500.0  # ratings whose weight is kept, however old they are
_SURENESS = 0.7  # standard deviations by which another number must be better than the usual one

# What is expected of the scores, a priori: their noise, and for how many ratings that counts.
_NOISE_VARIANCE, _NOISE_RATINGS = 0.15, 5.0
_LEAST_NOISE_VARIANCE = 0.04  # ratings that hardly vary do not make anything else surer
_LEVEL = 0.6
_FIRST_GAIN = 0.15  # by which the first example is expected to raise the score
_FURTHER_GAIN = 0.01  # that of the j-th one, times j: examples say less and less that is new
# Standard deviations of the weights, a priori, in those of the noise. The level is any, so that
# what is common to all numbers says nothing of their differences.
_LEVEL_DEVIATION, _CONTEXT_DEVIATION = 2.0, 0.3
_FIRST_DEVIATION, _FURTHER_DEVIATION = 0.6, 0.2
_FIRST_SLOPE_DEVIATION, _FURTHER_SLOPE_DEVIATION = 0.6, 0.15
_TYPICAL_UTILITY = 0.8

_CONTEXT = 1 + len(REQUEST_FEATURES) + RANK_FEATURES
_SLOPES = 3 * RANK_FEATURES


class _Learned(NamedTuple):
    """Feedback that was learnt.

    Attributes:
        value: the score, less the cost of the LLM and the price of example tokens.
        decay: what was left then of feedback from the start.
        rank: of its kind; see :mod:`echolm.learning.feedback`.
    """

    value: float
    decay: float
    rank: int


class ExampleCount:
    """Learns the value of each number of examples. Value = score - cost of the LLM - token price.

    Bayesian linear regression, whose noise is learnt: the value of a request is a level, which
    depends on the request and its best candidate, plus a step for each example. A step has a weight
    of its own, so that the mean gain of each number is learnt whatever it is, and depends on the
    example's utility and agreement with the other candidates, and on those of the best one. The
    value is that of the whole service: a rating counts whichever LLM the router chose for the
    examples that it was shown, so that the router's choices do not distort it.

    The usual number is taken unless another one is surely better for the request, by its posterior
    mean and standard deviation. A share of the requests gets the number that is best by weights
    drawn from the posterior (Thompson sampling): what may well be better is tried, what is surely
    worse is not, and before the first rating nothing is tried at all.

    A comparison counts as ratings of both answers, around the middle of the qualities that were
    expected of them and as far apart as it says. One with an answer that was made for a judgement
    says how two LLMs differ with the same examples, and so nothing of their number.

    Args:
        usual: the number of examples as long as no other is known to be better.
        most: the largest number.
        exploration: share of requests whose number is drawn.
        costs: what an answer of each LLM costs, in quality.
        price_per_1k_tokens: what 1,000 tokens of examples cost, in quality.
        half_life_ms: time in which feedback loses half of its weight.

    Attributes:
        updates: number of answers of which feedback was learnt.
    """

    name = "example_count"
    kinds = frozenset({RATING, PREFERENCE})

    def __init__(
        self,
        usual: int,
        most: int,
        exploration: float,
        costs: Mapping[str, float],
        price_per_1k_tokens: float,
        half_life_ms: float,
    ) -> None:
        self._usual, self._most = min(usual, most), most
        self._exploration = exploration
        self._costs = dict(costs)
        self._price = price_per_1k_tokens
        self._forgetting = Forgetting(half_life_ms, _LEAST_KEPT)
        self.updates = 0
        further = 1.0 / np.arange(2, most + 1)
        steps = [_FIRST_DEVIATION, *_FURTHER_DEVIATION * further][:most]
        gains = [_FIRST_GAIN, *_FURTHER_GAIN * further][:most]
        slopes = [_FIRST_SLOPE_DEVIATION] * RANK_FEATURES
        slopes += [_FURTHER_SLOPE_DEVIATION] * (_SLOPES - RANK_FEATURES)
        context = [_LEVEL_DEVIATION] + [_CONTEXT_DEVIATION] * (_CONTEXT - 1)
        deviations = np.array([*context, *slopes, *steps])
        mean = np.array([_LEVEL, *[0.0] * (_CONTEXT - 1 + _SLOPES), *gains])
        self._prior = self._weights = GaussianWeights.independent(mean, deviations)
        # Of the values around their prediction: sum of squares, and how many it is of.
        self._scatter, self._scattered = _NOISE_RATINGS * _NOISE_VARIANCE, _NOISE_RATINGS
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        configuration = {"version": _VERSION, "usual": self._usual, "mean": mean}
        configuration |= {"deviations": deviations, "costs": self._costs, "price": self._price}
        self.fingerprint = fingerprint(configuration | self._forgetting.configuration)
        self._publish()

    def _publish(self) -> None:
        """Replace what choosing reads, as a whole."""
        noise = max(_LEAST_NOISE_VARIANCE, self._scatter / self._scattered)
        self._posterior = (self._weights, noise)

    def choose(
        self,
        request: NDArray[np.float32],
        ranked: NDArray[np.float32],
        available: NDArray[np.intp],
        rng: np.random.Generator,
    ) -> NDArray[np.intp]:
        """How many of its best examples each request of a batch gets, [B].

        Args:
            request: their features, FP32 [B, len(REQUEST_FEATURES)].
            ranked: what is known of each one's best examples, FP32 [B, n, RANK_FEATURES]; see
                :class:`~echolm.retrieval.record.SelectionRecord`.
            available: how many each one has, [B].
        """
        rows = np.arange(len(ranked))
        usual = np.minimum(self._usual, available)
        x = _contexts(request, ranked, self._most)
        x -= x[rows, usual][:, None]
        weights, noise = self._posterior
        means = x @ weights.mean
        covariances = noise * (x @ weights.covariance) @ x.transpose(0, 2, 1)
        variances = np.maximum(np.diagonal(covariances, axis1=1, axis2=2), 0.0)
        values = means - _SURENESS * np.sqrt(variances)
        # Where nobody rates, nothing comes of trying.
        if self.updates:
            for row in np.flatnonzero(rng.random(len(rows)) < self._exploration):
                values[row] = rng.multivariate_normal(means[row], covariances[row], method="eigh")
        values[np.arange(x.shape[1]) > available[:, None]] = -np.inf
        return np.asarray(values.argmax(axis=1))

    def apply(self, event: Event) -> None:
        """Learn from feedback on answers whose selection says how many examples were chosen.

        Raises:
            OutdatedError: it is of an LLM that is not configured any more, or of more examples.
            KeyError, TypeError, ValueError: the event is damaged.
        """
        feedback = read_feedback(event)
        if isinstance(feedback, Rating):
            # What an LLM that was not routed to makes of a selection says nothing of the service.
            if feedback.asked:
                return
            rows = [(feedback.request_id, feedback.answer, feedback.score)]
        else:
            # The LLM that was asked got what the one that served got, and where it was asked
            # without examples, the difference is that of the LLMs, too.
            if any(feedback.asked):
                return
            expected = [float(answer["quality"]) for answer in feedback.answers]
            scores = scores_of_comparison(feedback.share, *expected)
            rows = list(zip(feedback.request_ids, feedback.answers, scores, strict=True))
        # All rows are read before the first one changes anything.
        taught = [
            (id, *self._observed(selection, answer, score))
            for id, answer, score in rows
            if (selection := selection_of(answer)) is not None and selection.count is not None
        ]
        if not taught:
            return
        self._forget(event.at_ms)
        for id, x, value in taught:
            earlier = self._learned.get(id)
            if earlier is None:
                learned = self._learn(x, value, feedback.rank)
            elif earlier.rank <= feedback.rank:
                learned = self._replace(x, earlier, value)._replace(rank=feedback.rank)
            else:
                continue
            remember(self._learned, id, learned, _REMEMBERED)
        self._publish()

    def _observed(
        self, selection: SelectionRecord, answer: Mapping[str, Any], score: float
    ) -> tuple[Vector, float]:
        """The context of the number of examples that an answer got, FP64 [d], and its value.

        Raises what :meth:`apply` raises.
        """
        count, ranked, llm = selection.count, selection.ranked, answer["llm"]
        if llm not in self._costs:
            raise OutdatedError(f"{llm!r} is not configured any more")
        if len(ranked) > self._most:
            raise OutdatedError(f"of up to {len(ranked)} examples, now at most {self._most}")
        if count is None or not 0 <= count <= len(ranked):
            raise ValueError(f"expected 0 to {len(ranked)} examples, got {count}")
        if len(selection.request) != len(REQUEST_FEATURES):
            raise ValueError(f"expected {len(REQUEST_FEATURES)} features of the request")
        x = _contexts(selection.request[None], ranked[None], self._most)[0, count]
        price = self._price * sum(selection.tokens) / 1_000
        return x, score - self._costs[llm] - price

    def _forget(self, now_ms: int) -> None:
        keep = self._forgetting.step(now_ms)
        if keep < 1.0:
            self._weights = self._weights.widened(self._prior, keep)
            self._scatter *= keep
            self._scattered *= keep

    def _learn(self, x: Vector, value: float, rank: int) -> _Learned:
        self.updates += 1
        self._forgetting.kept += 1.0
        mean, variance = self._weights.at(x)
        self._scatter += (value - mean) ** 2 / (1.0 + variance)
        self._scattered += 1.0
        self._weights = self._weights.updated(x, Site(1.0, value))
        return _Learned(value, self._forgetting.decay, rank)

    def _replace(self, x: Vector, earlier: _Learned, value: float) -> _Learned:
        # What is known of the noise stays: one rating hardly moves it.
        kept = self._forgetting.decay / earlier.decay
        self._weights = self._weights.updated(x, Site(0.0, kept * (value - earlier.value)))
        return earlier._replace(value=value)

    def state(self) -> dict[str, Any]:
        """The posterior, and what replacing feedback needs."""
        return {
            "updates": self.updates,
            "forgetting": self._forgetting.state(),
            "mean": self._weights.mean,
            "covariance": self._weights.covariance,
            "scatter": [self._scatter, self._scattered],
            "learned": [[key, *rating] for key, rating in self._learned.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if it has another number of weights."""
        weights = self._prior.restored(state, "example count")
        learned = OrderedDict((key, _Learned(*rest)) for key, *rest in state["learned"])
        scatter, scattered = map(float, state["scatter"])
        self._forgetting.restore(state["forgetting"])
        self._weights, self._scatter, self._scattered = weights, scatter, scattered
        self.updates = int(state["updates"])
        self._learned = learned
        self._publish()


def _contexts(
    request: NDArray[np.float32], ranked: NDArray[np.float32], most: int
) -> NDArray[np.float64]:
    """What the value of each number of examples is linear in, FP64 [B, n + 1, d].

    Args:
        request, ranked: as in :meth:`ExampleCount.choose`.
        most: examples for which there are weights, at least n.
    """
    b, n = ranked.shape[:2]
    x = np.zeros((b, n + 1, _CONTEXT + _SLOPES + most))
    x[:, :, 0] = 1.0
    x[:, :, 1 : 1 + request.shape[1]] = request[:, None]
    if n:
        centred = ranked - np.array([_TYPICAL_UTILITY, 0.0], np.float32)
        x[:, :, _CONTEXT - RANK_FEATURES : _CONTEXT] = centred[:, None, 0]
        further = centred[:, 1:] / np.arange(2, n + 1)[:, None]
        best = centred[:, :1] / np.arange(2, n + 1)[:, None]
        steps = x[:, 1:, _CONTEXT:]
        steps[:, 0, :RANK_FEATURES] = centred[:, 0]
        steps[:, 1:, RANK_FEATURES : 2 * RANK_FEATURES] = further
        steps[:, 1:, 2 * RANK_FEATURES : _SLOPES] = best
        steps[:, :, _SLOPES : _SLOPES + n] = np.eye(n)
        np.cumsum(steps, axis=1, out=steps)
    return x


def scores_of_comparison(share: float, first: float, second: float) -> tuple[float, float]:
    """Scores of two answers that say what a comparison of them says, in 0..1.

    A comparison shows how far the answers are apart and not how good they are. They are expected to
    be twice as far apart as the share lies from a tie, around the middle of what was expected; both
    are moved alike where one would leave 0..1.

    Args:
        share: what the first answer won.
        first, second: the qualities that were expected of them.
    """
    half = share - 0.5
    middle = min(1.0 - abs(half), max(abs(half), (first + second) / 2.0))
    return middle + half, middle - half
