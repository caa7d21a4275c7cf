"""Counts what examples do, in the router, and appends it to the learning log now and then.

An answer that a cheaper LLM gave with examples is an offload. An example is credited with the
quality that the router expects of the answer, times the probability that this example serves the
request and no other retrieved one would: the store could do without it otherwise. An answer from
the store is credited to its example alone. A rating that comes later corrects that. What a better
example could still gain is ``G(e) = (1 - quality) * cost`` of the LLM that answered (paper, §4.3).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from echolm.errors import UnavailableError
from echolm.examples.events import USAGE, usage
from echolm.learning.event_log import EventLog
from echolm.primitives import STORED, Served

logger = logging.getLogger("echolm")

_FLUSH_EVERY_S = 15.0
_LEAST_DOUBT = 0.01  # an example that certainly helps counts as if it did with 0.99
_MOST_IDS = 5_000  # in one event; while the log is away, more are not remembered


@dataclass
class UsageRecorder:
    """An ``AnswerObserver`` that sums up uses. For one event loop.

    Attributes:
        costs: relative cost of each LLM, the strongest 1; answers of the strongest are no offloads.
        lost: uses that were not logged: the log was away for too long, or their worth is no number.
    """

    log: EventLog
    costs: Mapping[str, float]
    lost: int = field(default=0, init=False)
    _uses: dict[int, tuple[int, float, float]] = field(default_factory=dict, init=False)

    def served(self, served: Served) -> None:
        """Take note of an answer; see ``AnswerObserver``."""
        ids = served.decision.example_ids
        cost = self.costs.get(served.decision.llm, 1.0)
        quality = served.decision.quality
        if served.decision.llm == STORED:  # the example did it alone
            self._count(ids[0], quality, 0.0)
            return
        if not ids or cost >= 1.0:
            return
        no_help = 1.0 - served.retrieved.help_probability  # the probability that none helps
        utilities = {e.id: e.utility for e in served.retrieved.examples}
        for i in ids:
            utility = utilities.get(i, 0.0)
            credit = quality * utility * no_help / max(1.0 - utility, _LEAST_DOUBT)
            self._count(i, credit, (1.0 - quality) * cost)

    def _count(self, i: int, credit: float, gain: float) -> None:
        known = i in self._uses or len(self._uses) < _MOST_IDS
        if known and math.isfinite(credit) and math.isfinite(gain):  # or the log would refuse all
            self._add(i, 1, credit, gain)
        else:
            self.lost += 1

    async def flush(self) -> None:
        """Append what was counted since the last time to the log; kept if the log is away."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            await asyncio.to_thread(self.log.append, USAGE, usage(uses))
        except UnavailableError as error:
            logger.warning("uses of examples not logged, will retry: %s", error)
            for i, added in uses.items():
                self._add(i, *added)

    def _add(self, i: int, n: int, credit: float, gain: float) -> None:
        m, credits, gains = self._uses.get(i, (0, 0.0, 0.0))
        self._uses[i] = (m + n, credits + credit, gains + gain)

    async def run(self) -> None:
        """Flush again and again."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            await self.flush()
