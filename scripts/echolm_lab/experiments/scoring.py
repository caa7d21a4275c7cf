"""What the answers of a policy are worth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from echolm.judges.base import Judge

from echolm_lab.tasks import Item

_AT_ONCE = 8
_TIE = 0.5


class Scoring(Protocol):
    """Scores answers, 0..1."""

    @property
    def about(self) -> str:
        """What a score is, in a sentence."""

    @property
    def takes_time(self) -> bool:
        """Whether somebody waits for it."""

    async def scores(
        self,
        items: Sequence[Item],
        answers: Sequence[str | None],
        reference: Sequence[str | None],
        on_scored: Callable[[], None],
    ) -> list[float]:
        """The score of each answer; 0 for a request without one.

        Args:
            reference: answers of the large LLM to the same requests.
            on_scored: called for each.
        """


class ItemScores:
    """Each item knows what an answer to it is worth."""

    takes_time = False

    def __init__(self, about: str = "") -> None:
        self.about = about

    async def scores(
        self,
        items: Sequence[Item],
        answers: Sequence[str | None],
        reference: Sequence[str | None],
        on_scored: Callable[[], None],
    ) -> list[float]:
        return [
            0.0 if answer is None else item.score(answer)
            for item, answer in zip(items, answers, strict=True)
        ]


class JudgedScores:
    """A judge compares each answer with the large LLM's: 1 is better, 0.5 a tie, 0 worse.

    Attributes:
        undecided: comparisons in which the judge has said nothing usable, and which count as ties.
    """

    takes_time = True
    about = "Score: what the judge prefers, 1 the answer, 0 the large LLM's, 0.5 neither."

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.undecided = 0

    async def scores(
        self,
        items: Sequence[Item],
        answers: Sequence[str | None],
        reference: Sequence[str | None],
        on_scored: Callable[[], None],
    ) -> list[float]:
        async def compared(item: Item, answer: str | None, other: str | None) -> float:
            score = await self._compared(item, answer, other)
            on_scored()
            return score

        rows = zip(items, answers, reference, strict=True)
        return list(await asyncio.gather(*(compared(*row) for row in rows)))

    async def _compared(self, item: Item, answer: str | None, other: str | None) -> float:
        if answer is None or other is None or answer.strip() == other.strip():
            # Without an answer one has lost; of two that are missing, or equal, neither is better.
            return _TIE + 0.5 * ((answer is not None) - (other is not None))
        async with self._slots:
            judgement = await self._judge.judge(item.text, answer, other)
        if judgement.score is None:
            self.undecided += 1
            return _TIE
        return judgement.score
