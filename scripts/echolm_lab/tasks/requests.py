"""Requests of a file of your own, and what an answer to one is worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.examples.deduplication import plain
from echolm.examples.pairs import REQUEST_NAMES, RESPONSE_NAMES
from echolm.judges.grader import load_grader
from echolm.past_traffic.reading import is_utf8, rows

from echolm_lab.tasks.chrf import chrf
from echolm_lab.tasks.grader import normalise

Metric = Callable[[str, str, str], float]
"""Request, response and reference answer to a score, 0..1."""

_LEAST = 10


@dataclass(frozen=True)
class Asked:
    """A request of the file.

    Attributes:
        reference: the right answer; empty if the file has none.
    """

    text: str
    reference: str
    metric: Metric
    kind: str = "request"

    def score(self, response: str) -> float:
        """What a response is worth by the reference."""
        return self.metric(self.text, response, self.reference)


def exact(request: str, response: str, reference: str) -> float:
    """1 for the reference answer, blank space aside."""
    return float(normalise(response) == normalise(reference))


def metric_of(name: str) -> Metric:
    """The metric of that name, ``exact`` or ``chrf``, or a grader as in ``judging.grader``.

    Raises:
        ConfigurationError: there is no such grader.
    """
    if name == "exact":
        return exact
    if name == "chrf":
        return lambda request, response, reference: chrf(response, reference)
    grade = load_grader(name)
    return lambda request, response, reference: float(grade(request, response, reference))


def read_requests(file: Path, metric: Metric) -> list[Asked]:
    """The requests of a file of JSON lines, each once, in their order.

    Raises:
        InvalidRequestError: a record has no request, or some have a reference and others none.
    """
    found: dict[str, Asked] = {}
    for row in rows(file):
        record = row.record or {}
        request, reference = (
            next((record[name] for name in names if isinstance(record.get(name), str)), "")
            for names in (REQUEST_NAMES, RESPONSE_NAMES)
        )
        if not request.strip() or not is_utf8(request + reference):
            expected = f"an object with a request ({', '.join(REQUEST_NAMES)}) in UTF-8"
            got = row.problem or f"the keys {sorted(map(str, record))[:12]}"
            raise InvalidRequestError.of(f"{file}, line {row.line}", expected, got)
        found.setdefault(plain(request), Asked(request, reference, metric))
    asked = list(found.values())
    with_reference = sum(bool(item.reference) for item in asked)
    if with_reference not in (0, len(asked)):
        expected = "a reference for each request, or for none"
        raise InvalidRequestError.of(str(file), expected, f"{with_reference} of {len(asked)}")
    if len(asked) < _LEAST:
        raise InvalidRequestError.of(str(file), f"at least {_LEAST} requests", len(asked))
    return asked


@dataclass(frozen=True)
class FileQuestions:
    """A file's requests, divided at random: nothing that is measured was seen before.

    Attributes:
        past: whose answers are in the store at the start.
        learning, items: see :class:`~echolm_lab.experiments.comparison.Questions`.
        others: for the latencies.
    """

    past: Sequence[Asked]
    learning: Sequence[Asked]
    items: Sequence[Asked]
    others: Sequence[Asked]

    def steady(self, count: int) -> Sequence[Asked]:
        return self.others[:count]


def divide(
    asked: Sequence[Asked], seed: int, past: int, learning: int, measured: int
) -> FileQuestions:
    """At most so many of each; of too few, the same shares of what there is.

    Args:
        past: in the store; half of all where there are too few.
        learning: that EchoLM answers first; a fifth.
        measured: for each policy; a sixth, and as many for the latencies.
    """
    shuffled = random.Random(seed).sample(list(asked), len(asked))
    total = len(shuffled)
    counts = [
        min(most, max(1, int(total * share)))
        for most, share in ((past, 0.5), (learning, 0.2), (measured, 0.15), (measured, 0.15))
    ]
    parts, start = [], 0
    for count in counts:
        parts.append(shuffled[start : start + count])
        start += count
    return FileQuestions(*parts)


def check_judged(asked: Sequence[Asked], metric: str, past: str) -> None:
    """ConfigurationError if references are needed that the file does not have."""
    if not asked[0].reference and (metric != "judge" or past == "reference"):
        raise ConfigurationError(
            "--requests: expected a reference answer for each request (reference, response, "
            "answer), got none; give --metric judge and --past large"
        )
