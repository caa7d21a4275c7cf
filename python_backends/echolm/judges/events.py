"""What a judgement becomes in the learning log.

Judges that compare give a ``preference`` with the ``share`` that the better answer has won, others
``rating`` events. Their ``source`` is ``judge:<kind>``. For ``judging`` see
:mod:`echolm.judges.service`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echolm.judges.base import Judge, Judgement
from echolm.learning.feedback import JUDGE_SOURCE, PREFERENCE, RATING


@dataclass(frozen=True)
class JudgedAnswer:
    """One of the two answers that were compared.

    Attributes:
        decision: :func:`~echolm.learning.feedback.describe`'s.
        asked: whether the answer was made for the judgement.
        propensity: :func:`rated_propensity`, for judgements of requests drawn at random.
    """

    decision: Mapping[str, Any]
    asked: bool
    propensity: float = 0.0


@dataclass(frozen=True)
class Judged:
    """A judgement of a candidate's answer.

    Attributes:
        score: the judge's, of the candidate's answer against the reference's; None if it could not
            decide.
        reference_score: of the reference's answer by itself, if the judge gives such scores.
    """

    score: float | None
    reference_score: float | None = None
    tokens: int = 0
    consistent: bool | None = None

    def share(self, judge: Judge) -> float | None:
        """What the candidate's answer wins against the reference's, 0..1; 0.5 is a tie."""
        if judge.scale == "preference" or self.score is None:
            return self.score
        other = 1.0 if judge.scale == "agreement" else self.reference_score
        return None if other is None else 0.5 + (self.score - other) / 2.0


async def judged(judge: Judge, request: str, answer: str, reference: str) -> Judged:
    """Judge a candidate's answer to a request. Raises what ``judge.judge`` raises."""
    judgement = await judge.judge(request, answer, reference)
    other = Judgement(None)
    if judge.scale == "absolute" and judgement.score is not None:
        other = await judge.judge(request, reference, None)
    tokens = judgement.tokens + other.tokens
    return Judged(judgement.score, other.score, tokens, judgement.consistent)


def judged_events(
    judge: Judge,
    result: Judged,
    candidate: JudgedAnswer,
    reference: JudgedAnswer,
    judging: Mapping[str, Any],
) -> list[tuple[str, dict[str, Any]]]:
    """Kind and body of each event; none if the judge could not decide.

    Args:
        judging: what the events tell of the judgement beside the answers.
    """
    if result.score is None:
        return []
    source = JUDGE_SOURCE + judge.kind
    if judge.scale == "preference":
        won = ((result.score, candidate), (1.0 - result.score, reference))
        (share, better), (_, worse) = won if result.score >= 0.5 else won[::-1]
        sides = {"better": better, "worse": worse}
        asked = [name for name, side in sides.items() if side.asked]
        body = {
            **{name: dict(side.decision) for name, side in sides.items()},
            "share": share,
            "source": source,
            "judging": {**judging, "asked": asked, "consistent": result.consistent},
        }
        return [(PREFERENCE, body)]
    events = []
    for side, score in ((candidate, result.score), (reference, result.reference_score)):
        if score is not None:
            told = {**judging, "asked": side.asked, "propensity": side.propensity}
            # A judge that measures agreement rates one answer only, so its ratings are no sample.
            if judge.scale != "absolute" or not side.propensity:
                told["probability"] = 0.0
            more = {"score": score, "source": source, "judging": told}
            events.append((RATING, {**side.decision, **more}))
            judging = {**judging, "tokens": 0, "seconds": 0.0}
    return events


def rated_propensity(
    routed: Mapping[str, float], llm: str, reference: str, llms: Sequence[str]
) -> float:
    """The probability that of the two answers in a judgement, one drawn evenly is by ``llm``.

    That is half the probability that ``llm`` was routed to, or was asked beside the reference.
    The propensities of all arms sum to 1.

    Args:
        routed: the probabilities of the router's draw.
        llms: those that may be asked.

    Returns:
        0 where nothing was drawn, or no candidate could have been.
    """
    candidates = sum(routed.get(name, 0.0) for name in llms if name != reference)
    if len(routed) < 2 or candidates <= 0.0:
        return 0.0
    if llm == reference:
        return 0.5
    asked = routed.get(reference, 0.0) / candidates if llm in llms else 0.0
    return routed.get(llm, 0.0) * (1.0 + asked) / 2.0
