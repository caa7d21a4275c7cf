"""A judge without an LLM."""

from __future__ import annotations

from dataclasses import dataclass, field

from echolm.judges.base import Judgement, Scale


@dataclass
class FakeJudge:
    """A judge that gives each answer a score that was set for it, or fails.

    Attributes:
        scores: by answer; any other answer gets None.
        consistent: see :class:`~echolm.judges.base.Judgement`.
        asked: what was judged: (request, answer, reference).
    """

    scores: dict[str, float] = field(default_factory=dict)
    scale: Scale = "absolute"
    kind: str = "fake"
    tokens: int = 5
    consistent: bool | None = None
    error: Exception | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        self.asked.append((request, answer, reference))
        if self.error is not None:
            raise self.error
        return Judgement(self.scores.get(answer), self.tokens, 0.5, self.consistent)
