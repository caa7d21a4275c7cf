from __future__ import annotations

from echolm.judges.base import Judgement
from echolm_lab.experiments.scoring import ItemScores, JudgedScores
from workload_items import items


class LongerIsBetter:
    """A judge that counts characters, and has nothing to say about a question mark."""

    kind, scale = "llm", "preference"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        self.asked.append((request, answer, reference))
        if "?" in answer:
            return Judgement(None)
        return Judgement(float(len(answer) > len(reference or "")))


async def test_items_know_what_an_answer_is_worth() -> None:
    asked, steps = items(3), []
    answers = ["answer 0", None, ""]
    scores = await ItemScores().scores(asked, answers, answers, lambda: steps.append(1))
    assert scores == [1.0, 0.0, 0.0]


async def test_a_judge_compares_with_the_large_llm_s_answers() -> None:
    judge, steps = LongerIsBetter(), []
    scoring = JudgedScores(judge)  # type: ignore[arg-type]
    rows = [
        ("longer", "short", 1.0),
        ("s", "longer", 0.0),
        (" same", "same ", 0.5),  # not worth a judgement
        (None, "a", 0.0),
        ("a", None, 1.0),
        (None, None, 0.5),
        ("?", "a", 0.5),
    ]
    asked = items(len(rows))
    scores = await scoring.scores(
        asked, [row[0] for row in rows], [row[1] for row in rows], lambda: steps.append(1)
    )
    assert scores == [row[2] for row in rows]
    assert len(steps) == len(rows)
    assert [answer for _, answer, _ in judge.asked] == ["longer", "s", "?"]
    assert scoring.undecided == 1
