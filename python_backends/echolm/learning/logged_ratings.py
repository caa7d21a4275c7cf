"""The rated decisions of a learning log, as samples that off-policy estimates can use.

Which ratings are samples of known probability:

- those that were asked for, with ``solicit_probability``: the valuable ones (s is 1) as well as
  those drawn at random (s is large). Valuable ones are often of arms that are seldom drawn, so
  together they err less than the random ones alone, and counted alike they would err far more.
  Callers must answer a question alike often, whatever they think of the answer;
- a judge's of requests picked at random, with ``judging.probability`` and the propensity that one
  of both judged answers is by that LLM (:mod:`echolm.judges.service`).

What callers rate of their own accord is a sample of nobody knows what, and is used by default
only where there is nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING, is_judged
from echolm.learning.off_policy import LoggedDecisions
from echolm.primitives import OTHER_FEATURES, STORED

Ratings = Literal["sampled", "asked", "judged", "volunteered", "all"]
"""Which ratings are used.

``sampled``: those asked for and judged; volunteered ones if there are none. ``all``: the same, and
callers' ratings count alike whether they were asked for or not, as is right if callers do not
care.
"""

Convert = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""A context of some version of the request statistics as one of the present version.

ValueError if it cannot be converted.
"""


@dataclass
class _Rating:
    """A rating that may be used, before the kinds are brought together."""

    kind: str
    order: int
    drawn: int
    context: NDArray[np.float32]
    statistics: int
    propensity: float
    weight: float
    score: float
    request: str


def read_ratings(
    events: Iterable[Event],
    arms: Sequence[str],
    revisions: Mapping[str, str] | None = None,
    ratings: Ratings = "sampled",
    convert: Convert | None = None,
) -> tuple[LoggedDecisions, dict[str, int]]:
    """The rated decisions of a learning log, in the order of their first rating.

    The last rating of an answer counts, a judge's apart from the caller's. An answer by an LLM
    that is not configured is one of an arm that no policy draws: it belongs to what was asked of
    the router, and says so. Others are dropped and counted by reason:

    - ``stored``: the answer came from the store; no LLM was chosen.
    - ``forced``: the caller named the LLM, or another one stood in; nothing was drawn.
    - ``revision``: the answer is an LLM's that was replaced since.
    - ``earlier version``: its context has other elements than this version's.
    - ``judged, no sample``: the judge's rating is no sample of known probability.
    - ``asked``, ``judged``, ``volunteered``: of a kind that ``ratings`` excludes.
    - ``damaged``: a field is missing or out of range.
    - ``context``: it has another dimension than most have, or cannot be converted.

    Args:
        arms: names of the LLMs, in the order of the policies' columns.
        revisions: the current revision of each LLM (default ``""``); None takes all.
        convert: brings contexts to the present request statistics; without, those of the version
            that most have are kept.

    Raises:
        InvalidRequestError: nothing is left.
    """
    index = {name: i for i, name in enumerate(arms)}
    dropped: Counter[str] = Counter()
    found: dict[tuple[bool, str], _Rating] = {}
    for order, event in enumerate(events):
        if event.kind != RATING:
            continue
        body = event.body
        try:
            rating = _read(body, index, order)
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
            dropped["damaged"] += 1
            continue
        llm = str(body["llm"])
        current = revisions is None or body.get("revision", "") == revisions.get(llm, "")
        if llm == STORED:
            dropped["stored"] += 1
        elif llm in index and not current:
            dropped["revision"] += 1
        elif rating.weight == 0.0:
            dropped["judged, no sample"] += 1
        elif rating.propensity >= 1.0 and len(arms) > 1:
            dropped["forced"] += 1
        elif rating.statistics == OTHER_FEATURES:
            dropped["earlier version"] += 1
        else:
            key = (is_judged(body), str(body["request_id"]))
            if key in found:
                rating.order = found[key].order
            found[key] = rating
    kept = _chosen(list(found.values()), ratings, dropped)
    kept = _converted(kept, convert, dropped)
    if not kept:
        expected = "ratings of answers whose LLM the router drew"
        others = f"; others: {dict(dropped)}" if dropped else ""
        raise InvalidRequestError.of("learning log", expected, f"none{others}")
    requests, kinds = (
        {name: i for i, name in enumerate(dict.fromkeys(names))}
        for names in ([r.request for r in kept], [r.kind for r in kept])
    )
    log = LoggedDecisions(
        tuple(arms),
        np.stack([r.context for r in kept]).astype(np.float64),
        np.array([r.drawn for r in kept]),
        np.array([r.propensity for r in kept]),
        np.array([r.score for r in kept]),
        np.array([r.weight for r in kept]),
        np.array([requests[r.request] for r in kept]),
        np.array([r.order for r in kept]),
        np.array([kinds[r.kind] for r in kept]),
        tuple(kinds),
    )
    return log, dict(dropped)


def _read(body: Mapping[str, Any], index: Mapping[str, int], order: int) -> _Rating:
    """A rating from an event's body; any of several errors if it is damaged."""
    kind, request, propensity = "volunteered", str(body["request_id"]), float(body["propensity"])
    weight = 1.0
    if is_judged(body):
        kind, judging = "judged", body.get("judging", {})
        if "probability" in judging:
            if weight := float(judging["probability"]):
                weight, propensity = 1.0 / weight, float(judging["propensity"])
        elif judging.get("asked") or judging.get("solicited"):
            weight = 0.0  # by an earlier version, which did not log all of the probability
        request = str(judging.get("request_id", request))
    elif body.get("solicited"):
        kind, weight = "asked", 1.0 / min(1.0, float(body["solicit_probability"]))
    x = np.asarray(body["context"], dtype=np.float32)
    score, drawn = float(body["score"]), index.get(str(body["llm"]), -1)
    usable = x.ndim == 1 and np.isfinite(x).all() and 0 <= score <= 1
    if not (usable and propensity > 0 and 0 <= weight < math.inf):
        raise ValueError("rating: expected finite numbers within their ranges")
    statistics = int(body.get("statistics", OTHER_FEATURES))
    return _Rating(kind, order, drawn, x, statistics, propensity, weight, score, request)


def _chosen(found: list[_Rating], ratings: Ratings, dropped: Counter[str]) -> list[_Rating]:
    """Those of the kinds that are wanted."""
    kinds: set[str] = {ratings}
    if ratings == "sampled":
        kinds = {"asked", "judged"} & {r.kind for r in found} or {"volunteered"}
    elif ratings == "all":
        kinds = {"asked", "judged", "volunteered"}
        for rating in found:
            if rating.kind != "judged":
                rating.weight = 1.0
    dropped.update(r.kind for r in found if r.kind not in kinds)
    return [r for r in found if r.kind in kinds]


def _converted(
    found: list[_Rating], convert: Convert | None, dropped: Counter[str]
) -> list[_Rating]:
    """Those whose contexts can be compared."""
    kept = []
    [(usual, _)] = Counter(r.statistics for r in found).most_common(1) or [(0, 0)]
    for rating in found:
        try:
            if convert is not None:
                rating.context = convert(rating.context, rating.statistics)
            elif rating.statistics != usual:
                raise ValueError("context: of other request statistics")
            kept.append(rating)
        except ValueError:
            dropped["context"] += 1
    [(size, _)] = Counter(len(r.context) for r in kept).most_common(1) or [(0, 0)]
    if others := sum(len(r.context) != size for r in kept):
        dropped["context"] += others
    return [r for r in kept if len(r.context) == size]
