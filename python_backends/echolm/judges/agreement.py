"""How far the judge agrees with callers, where both have rated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, is_judged
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.record import remember

_VERSION = 1
_REMEMBERED = 10_000  # most answers whose score is kept until the other side has rated them
_COMPARED = 64  # latest answers of an LLM with which one that both have rated is compared


class _Answer(NamedTuple):
    request_id: str
    llm: str


def _answer(decision: Mapping[str, Any]) -> _Answer:
    return _Answer(str(decision["request_id"]), str(decision["llm"]))


class JudgeAgreement:
    """Counts pairs of answers that callers rate differently, by what the judge says of them.

    Callers and judges use their scales differently, and a comparison has no scale at all. What can
    be compared is the order: of two answers of one LLM that both sides have rated, or of two that
    a caller has compared, does the judge find the same one better (Kendall's concordance)? What a
    judge says of an answer is its score, or the share that the answer won in a comparison.

    Attributes:
        counts: pairs in the ``same`` order, in the ``opposite`` one, and those that are a ``tie``
            to the judge.
    """

    name = "judge_agreement"
    kinds = frozenset({RATING, PREFERENCE})
    fingerprint = fingerprint({"version": _VERSION, "sizes": [_REMEMBERED, _COMPARED]})

    def __init__(self) -> None:
        self.counts = {"same": 0, "opposite": 0, "tie": 0}
        self._judged: OrderedDict[str, float] = OrderedDict()
        self._rated: OrderedDict[str, float] = OrderedDict()
        self._both: dict[str, list[tuple[float, float]]] = {}

    def apply(self, event: Event) -> None:
        body, judged = event.body, is_judged(event.body)
        if event.kind == RATING:
            self._take(_answer(body), float(body["score"]), judged)
            return
        better, worse = _answer(body["better"]), _answer(body["worse"])
        share = float(body.get("share", 1.0))
        if judged:
            self._take(better, share, judged)
            self._take(worse, 1.0 - share, judged)
            return
        scores = [self._judged.get(answer.request_id) for answer in (better, worse)]
        if scores[0] is not None and scores[1] is not None:
            self._count(scores[0] - scores[1])

    def state(self) -> dict[str, Any]:
        return {
            "counts": dict(self.counts),
            "judged": dict(self._judged),
            "rated": dict(self._rated),
            "both": {llm: list(pairs) for llm, pairs in self._both.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.counts = {name: int(state["counts"][name]) for name in ("same", "opposite", "tie")}
        self._judged = OrderedDict(state["judged"])
        self._rated = OrderedDict(state["rated"])
        self._both = {llm: [(a, b) for a, b in pairs] for llm, pairs in state["both"].items()}

    def _take(self, answer: _Answer, score: float, judged: bool) -> None:
        request_id, llm = answer
        mine, others = (self._judged, self._rated) if judged else (self._rated, self._judged)
        if request_id in mine:
            return  # the first word on an answer counts here
        remember(mine, request_id, score, _REMEMBERED)
        other = others.get(request_id)
        if other is None:
            return
        by_judge, by_caller = (score, other) if judged else (other, score)
        both = self._both.setdefault(llm, [])
        for earlier_judged, earlier_rated in both:
            if earlier_rated != by_caller:
                higher = 1.0 if by_caller > earlier_rated else -1.0
                self._count(higher * (by_judge - earlier_judged))
        both.append((by_judge, by_caller))
        del both[:-_COMPARED]

    def _count(self, difference: float) -> None:
        """Count a pair; ``difference`` is the judge's between the better and the worse answer."""
        result = "tie" if difference == 0.0 else "same" if difference > 0.0 else "opposite"
        self.counts[result] += 1
