"""For which answers a rating is asked (paper, §4.2: only where the router is unsure).

The paper asks where the standard deviation of the arms' confidences is under 0.1. Confidences are
probabilities of being best; they say that two arms are close, not what is at stake nor whether a
rating could tell them apart. Where a narrow prior, or cautious exploration, keeps them apart, that
rule never asks, and what the router wrongly believes is never put to the test.

Here the question is by how much a rating of this answer can be expected to improve the decision for
requests like this one (:func:`echolm.bandit.rating_value.value_of_rating`). That grows with the
posterior's width at this context and the nearness of the arms.

Ratings until 95% of what random rating gains in the end, in the simulation of
``tests/unit/router/test_solicitation.py`` (mean of 12 seeds; 40% of the requests are clear cases,
as requests without examples are; if there are none, this rule saves less than half)::

    prior confidences                       at random   this rule   the paper
    close for some requests                       350         100          80
    close for none                                330          80       never
    close for none, no clear cases at all         310         230       never
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

# A value is compared with those of this many requests at least, and of so many that this number
# of ratings is asked for among them.
_MIN_WINDOW, _RATINGS_IN_WINDOW = 200, 10.0
_MAX_BUDGET = 10.0  # ratings that a time without valuable requests leaves for later


class Solicitor:
    """Picks the most valuable share of a stream of requests. For use by one thread.

    A rating is asked for if its value is in the top ``share`` of the values seen lately. The
    window is short, since values fall by orders of magnitude as the router learns. If many values
    are equal that would be too many, so a budget grows by ``share`` with each request.

    Args:
        share: the share, in [0, 1], of those requests whose rating is worth anything.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._window = max(_MIN_WINDOW, math.ceil(_RATINGS_IN_WINDOW / share)) if share > 0.0 else 1
        self._recent: deque[float] = deque()
        self._ranked: list[float] = []
        self._budget = 1.0

    def should_solicit(self, value: float) -> bool:
        """Whether a rating is asked for that is worth ``value``, in quality."""
        if value <= 0.0:
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
        return self._share > 0.0
