"""Which LLMs the router may draw while little is known of them.

Of a new LLM nothing is known but a guess, and it is not known which guess is wrong. So the
reference LLM answers first, and the others are asked beside it, off the caller's path, and judged
(:mod:`echolm.judges.service`). What an LLM does with examples says little of what it does without,
so both are learnt apart: requests with and without examples are two *cells*, and an LLM is drawn
in a cell once the bandit has ``ratings`` ratings and comparisons of it there. They are counted by
what the bandit has learnt, wherever it comes from; a restart loses none.

No LLM is kept away for good. The warm-up is given up, and Thompson sampling goes on with what is
known by then,

- for all LLMs if nothing judges, or if the judge could not decide in most of its cases;
- for one LLM in one cell if so many requests passed there that it is not going to come to an end:
  :data:`PATIENCE` times ``ratings`` without a single further rating.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import HAS_EXAMPLES
from echolm.bandit.thompson import ThompsonSampling

logger = logging.getLogger("echolm")

PATIENCE = 25
"""Requests for each rating that is wanted, without any, after which an LLM is tried untested."""
THOROUGH = 4
"""Times the wanted evidence until which all doubtful answers are compared."""
LEAST_CASES = 20
"""Judgements after which it is known whether the judge can decide."""

GivenUp = Literal["no_judge", "no_preference", "no_evidence"]
"""Why a warm-up was given up."""

CELLS = ("without", "with")
"""Names of the cells, by whether the request has examples."""

Contexts = NDArray[np.float32] | NDArray[np.float64]


class WarmUp:
    """Keeps LLMs from requests of a kind in which they have hardly been tried.

    For use by one thread. What is counted here is only when to give up.

    Args:
        bandit: its arms say what has been learnt.
        reference: name of the LLM that is always eligible.
        ratings: ratings and comparisons that an LLM needs in each cell; 0: none.
        on_given_up: is told why; it is called once for each LLM and cell.
    """

    def __init__(
        self,
        bandit: ThompsonSampling,
        reference: str,
        ratings: float,
        on_given_up: Callable[[GivenUp], object] = lambda reason: None,
    ) -> None:
        self._bandit = bandit
        self._ratings = ratings
        self._on_given_up = on_given_up
        self._names = list(bandit.arms)
        self._free = np.zeros((2, len(self._names)), dtype=bool)
        self._free[:, self._names.index(reference)] = True
        self._held = np.zeros(self._free.shape)  # requests since there was evidence last
        self._evidence = np.zeros(self._free.shape)
        self._decided = self._undecided = 0

    def eligible(self, X: Contexts) -> NDArray[np.bool_] | None:
        """Which LLMs may be drawn for requests, BOOL [n, arms]; None: all.

        Args:
            X: the requests' contexts, [n, d]. Each counts as one that the others were kept from.
        """
        ready = self._ready()
        if ready.all():
            return None
        cells = (X[:, HAS_EXAMPLES] > 0).astype(np.intp)
        eligible: NDArray[np.bool_] = ready[cells]
        self._held += np.bincount(cells, minlength=2)[:, None] * ~ready
        stuck = ~ready & (self._held >= PATIENCE * self._ratings)
        for cell, arm in np.argwhere(stuck):
            logger.warning(
                "%s is tried without a warm-up for requests %s examples: after %d of them there "
                "are %g of %g ratings",
                self._names[arm],
                CELLS[cell],
                self._held[cell, arm],
                self._evidence[cell, arm],
                self._ratings,
            )
            self._free[cell, arm] = True
            self._on_given_up("no_evidence")
        return eligible

    def lacking(self, has_examples: bool) -> list[str]:
        """Names of the LLMs that lack evidence for requests with or without examples."""
        ready = self._ready()[int(has_examples)]
        return [name for name, known in zip(self._names, ready, strict=True) if not known]

    def share(self, has_examples: bool) -> float:
        """The share of doubtful answers that are compared though no LLM lacks evidence.

        It is 1 until the least known LLM has :data:`THOROUGH` times the wanted evidence, falls as
        its evidence grows, and is 0 if the warm-up was given up.
        """
        cell = int(has_examples)
        known = self._learnt()[cell][~self._free[cell]]
        return min(1.0, THOROUGH * self._ratings / max(1.0, known.min())) if known.size else 0.0

    def evidence(self) -> list[tuple[str, str, float, bool]]:
        """For each LLM and cell: their names, the evidence, and whether the LLM is held back."""
        ready = self._ready()
        return [
            (name, cell, self._bandit.arms[name].evidence[k], not ready[k, arm])
            for arm, name in enumerate(self._names)
            for k, cell in enumerate(CELLS)
        ]

    def judged(self, decided: bool) -> None:
        """Take note of whether the judge could decide which of two answers is better."""
        self._decided += decided
        self._undecided += not decided
        if self._undecided > self._decided and self._undecided + self._decided >= LEAST_CASES:
            cases = self._undecided + self._decided
            why = f"the judge could not decide in {self._undecided} of {cases} cases"
            self.give_up("no_preference", why)

    def give_up(self, reason: GivenUp, why: str) -> None:
        """Let all LLMs be drawn from now on.

        Args:
            why: for the log.
        """
        held = ~self._ready()
        if held.any():
            level = logging.INFO if reason == "no_judge" else logging.WARNING
            logger.log(level, "LLMs are tried without a warm-up: %s", why)
        for _ in range(int(held.sum())):
            self._on_given_up(reason)
        self._free[:] = True

    def _ready(self) -> NDArray[np.bool_]:
        """Which LLM may be drawn in which cell, BOOL [2, arms]."""
        if self._free.all():
            return self._free
        ready: NDArray[np.bool_] = self._free | (self._learnt() >= self._ratings)
        return ready

    def _learnt(self) -> NDArray[np.float64]:
        """The evidence of each LLM in each cell now, FP64 [2, arms]; patience begins anew."""
        evidence = np.array([arm.evidence for arm in self._bandit.arms.values()], dtype=float).T
        self._held[evidence > self._evidence] = 0
        self._evidence = evidence
        return evidence
