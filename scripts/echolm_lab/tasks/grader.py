"""The exact grader: 1 for the right answer, a little for parts of it.

Score of a response that is not exact, with ``h`` the share of the intent's
house conventions in it, ``s`` the share of the request's slot values in it and
``l`` = min(1, length of the answer / length of the response) (parts count only
where they stand on their own, not inside a longer word or number)::

    gate  = max(0, (h - 0.7) / 0.3)
    score = 0.9 * gate * (0.15 + 0.85 * s ** 2) * l

So the answer of another intent gets 0, since its conventions are others; the
answer of the right intent with foreign slot values (what a semantic cache
returns) at most 0.135; and piling up guesses does not pay.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echolm_lab.tasks.types import WorkItem

NOT_EXACT_CAP = 0.9
WRONG_SLOTS_SHARE = 0.15
GATE_START = 0.7


def normalise(text: str) -> str:
    """``text`` with each run of white space turned into one space."""
    return " ".join(text.split())


def grade(item: WorkItem, response_text: str) -> float:
    """Score of ``response_text`` as an answer to ``item``, in [0, 1]."""
    expected, got = normalise(item.answer), normalise(response_text)
    if got == expected:
        return 1.0
    if not got:
        return 0.0
    gate = max(0.0, (_share(item.house, got) - GATE_START) / (1.0 - GATE_START))
    slots = _share(item.slot_values, got)
    length = min(1.0, len(expected) / len(got))
    credit = WRONG_SLOTS_SHARE + (1.0 - WRONG_SLOTS_SHARE) * slots**2
    return NOT_EXACT_CAP * gate * credit * length


def _share(parts: tuple[str, ...], text: str) -> float:
    """Share of ``parts`` that occur in ``text``; 1 where there are none."""
    if not parts:
        return 1.0
    return sum(_holds(text, part) for part in parts) / len(parts)


def _holds(text: str, part: str) -> bool:
    """Whether ``part`` stands in ``text`` on its own, not inside a longer word or number."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", text) is not None
