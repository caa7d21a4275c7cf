"""For which answers a rating is asked (paper, §4.2: only where the router is unsure).

The paper asks where the standard deviation of the arms' confidences is under 0.1. Confidences are
probabilities of being best; they say that two arms are close, not what is at stake nor whether a
rating could tell them apart. Where a narrow prior, or cautious exploration, keeps them apart, that
rule never asks, and what the router wrongly believes is never put to the test.

Here the question is by how much a rating of this answer can be expected to improve the decision for
requests like this one (:func:`echolm.bandit.rating_value.value_of_rating`). That grows with the
posterior's width at this context and the nearness of the arms. Other ratings are asked for at
random, whatever they are worth: they tell what the posterior is wrong about, and are a fair sample
of what happens. Half of them are spread evenly over the draws, half over the arms: an arm that is
drawn once in 200 times would otherwise be rated once in 200 ratings, and nothing could be told of
a policy that draws it more often. Each answer's probability of being asked for is recorded, so that
estimates can weigh its rating (:mod:`echolm.learning.off_policy`).

Ratings until 95% of what random rating gains in the end, in the simulation of
``tests/unit/router/test_solicitation.py`` (mean of 24 seeds)::

    requests without examples   all random   half   a quarter   none random
    40%                                250    110         100           150
    none                               240    150         270           170
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

# A value is compared with those of this many requests at least, and of so many that this number
# of ratings is asked for among them.
_MIN_WINDOW, _RATINGS_IN_WINDOW = 200, 10.0
_MAX_BUDGET = 10.0  # ratings that a time without valuable requests leaves for later


@dataclass(frozen=True)
class Solicitation:
    """Whether a rating of an answer is asked for.

    Attributes:
        reason: ``random`` (it was drawn, valuable or not) or ``value``; empty if none is asked for.
        probability: the probability, before the draw, that it would be asked for. 1 where the
            value alone decides.
    """

    reason: str = ""
    probability: float = 0.0


class Solicitor:
    """Picks a share of a stream of requests, partly at random and else the most valuable ones.

    For use by one thread. A rating is asked for if its value is in the top of the values seen
    lately. The window is short, since values fall by orders of magnitude as the router learns. If
    many values are equal that would be too many, so a budget grows with each request. Whether the
    value asks is decided without regard to the draw, so that its probability is known.

    Args:
        share: the share of all requests that is picked, in [0, 1].
        random_part: the part of that share that is drawn at random, in [0, 1].
    """

    def __init__(self, share: float, random_part: float, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._random = share * random_part
        # Requests that both the draw and the value pick count once.
        self._share = (share - self._random) / (1.0 - self._random) if self._random < 1.0 else 0.0
        wanted = _RATINGS_IN_WINDOW / self._share if self._share > 0.0 else 1.0
        self._window = max(_MIN_WINDOW, math.ceil(wanted))
        self._recent: deque[float] = deque()
        self._ranked: list[float] = []
        self._budget = 1.0

    def should_solicit(self, value: float, propensity: float, arms: int) -> Solicitation:
        """Whether a rating of an answer is asked for.

        Args:
            value: what it is worth, the logarithm of quality.
            propensity: the probability with which the answer's arm was drawn.
            arms: how many arms could have been drawn.
        """
        # Its mean over the draws is the random share, as far as it is not cut at 1.
        at_random = min(1.0, self._random * (1.0 + 1.0 / (arms * propensity)) / 2.0)
        valuable = self._is_valuable(value)
        reason = "value" if valuable else ""
        if self._rng.random() < at_random:
            reason = "random"
        return Solicitation(reason, 1.0 if valuable else at_random)

    def _is_valuable(self, value: float) -> bool:
        if self._share <= 0.0 or value == -math.inf:
            return False
        self._budget = min(_MAX_BUDGET, self._budget + self._share)
        insort(self._ranked, value)
        self._recent.append(value)
        if len(self._recent) > self._window:
            del self._ranked[bisect_left(self._ranked, self._recent.popleft())]
        first = min(len(self._ranked) - 1, math.floor((1.0 - self._share) * len(self._ranked)))
        if self._budget < 1.0 or value < self._ranked[first]:
            return False
        self._budget -= 1.0
        return True
