"""For which answers a rating is asked (paper, §4.2: only where the router is unsure).

The paper asks where the standard deviation of the arms' confidences is under 0.1. Confidences
are probabilities of being best; they say that two arms are close, not what is at stake nor
whether a rating could tell them apart. Where a narrow prior, or cautious exploration, keeps
them apart, that rule asks for nothing, ever, and what the router wrongly believes is never put
to the test.

Here the question is what one rating of this answer is worth: by how much it can be expected
to improve the decision for requests like this one (:func:`value_of_rating`). It grows with
the posterior's width at this context (rare contexts), with the nearness of the arms (open
decisions), and is small where the answering arm is the one that is known well already. These
values shrink as the router learns, so they are compared with each other and not with a
constant (:class:`Solicitor`): users are asked for a fixed share of answers, the most valuable
ones.

Ratings until 95% of what random rating gains in the end, in the simulation of
``tests/unit/routing/test_solicitation.py`` (mean of 12 seeds; 40% of the requests are clear
cases, as those without examples are):

============================ ========= ========== =========
prior confidences            at random this rule  the paper
============================ ========= ========== =========
close for some requests      350       100        80
close for none               330       80         never
close for none, no clear     310       230        never
cases at all
============================ ========= ========== =========

What it saves are mostly the ratings of clear cases; where there are none, it saves less than
half.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

_WINDOW, _ASKED = 200, 10.0  # least requests, and ratings asked for, that values are compared in
_MOST_SAVED = 10.0  # ratings that a time without valuable requests leaves for later


class Solicitor:
    """Picks the most valuable share of a stream of requests. For use by one thread.

    A rating is asked for where its value is in the top ``share`` of the values seen lately.
    That is not long: values fall by orders of magnitude as the router learns, and beside those
    of long ago no new one would be among the top. Where many values are equal that would be too
    many, so there is a budget as well, which grows by ``share`` with each request.

    Args:
        share: of the requests whose rating is worth anything, in [0, 1].
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._window = max(_WINDOW, math.ceil(_ASKED / share)) if share > 0.0 else 1
        self._recent: deque[float] = deque()
        self._ranked: list[float] = []
        self._budget = 1.0

    def asks(self, value: float) -> bool:
        """Whether a rating of this value (see :func:`value_of_rating`) is asked for."""
        if value <= 0.0:
            return False
        self._budget = min(_MOST_SAVED, self._budget + self._share)
        insort(self._ranked, value)
        self._recent.append(value)
        if len(self._recent) > self._window:
            del self._ranked[bisect_left(self._ranked, self._recent.popleft())]
        first = min(len(self._ranked) - 1, math.floor((1.0 - self._share) * len(self._ranked)))
        if self._budget < 1.0 or value < self._ranked[first]:
            return False
        self._budget -= 1.0
        return self._share > 0.0
