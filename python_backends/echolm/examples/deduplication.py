"""Whether an interaction holds anything that the store does not have yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from enum import Enum

from echolm.conversation import by_turn
from echolm.primitives import Candidate
from echolm.store.base import (
    REPLAYED,
    Example,
    ExampleStore,
    Stored,
    same_llm,
    search_in_background,
)

_TOKEN = re.compile(r"\w+|[^\w\s]")
_NEIGHBOURS = 4
_SAME_ANSWER = 0.95
_MOST_TOKENS = 400  # of answers that are compared token by token; longer ones must be equal
_BETTER = 0.01


class Finding(Enum):
    """What an interaction is to the store."""

    NEW = "new"
    REPEATED = "repeated"  # request and answer are known
    CONFIRMED = "confirmed"  # the same, to the letter, under another answer key
    WORSE = "worse"  # the request is known, with an answer that is no worse
    BETTER = "better"  # the request is known; this answer shall replace the known one


@dataclass(frozen=True)
class Comparison:
    """The finding, and the id of the example it refers to; 0 for a new interaction."""

    finding: Finding
    known: int = 0


NEW = Comparison(Finding.NEW)


def same_request(a: str, b: str) -> bool:
    """Whether two requests differ in case, spaces and closing punctuation at most.

    Those that differ in a word, or in the order of two, are look-alikes with other answers.
    """
    return plain(a) == plain(b)


def plain(text: str) -> str:
    """A request, or the transcript of one, without what makes no difference to it."""
    return by_turn(text, lambda said: " ".join(said.lower().split()).rstrip(".!?: "))


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are nearly identical: a few words differ, but no number does."""
    first, second = _TOKEN.findall(a.lower()), _TOKEN.findall(b.lower())
    if first == second:
        return True
    if max(len(first), len(second)) > _MOST_TOKENS or _numbers(first) != _numbers(second):
        return False
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return matcher.quick_ratio() >= _SAME_ANSWER and matcher.ratio() >= _SAME_ANSWER


def is_better(new: Example, known: Example) -> bool:
    """Whether a later answer to the same request takes the place of the known one."""
    return not same_answer(known.response, new.response) and _is_better(new.quality, known.quality)


def _takes_over(new: Example, known: Example | Candidate) -> bool:
    """Whether an answer that is no worse may be given as it is, and the known one to nobody.

    So it is with answers of an LLM that was replaced since, and of an earlier version of EchoLM.
    """
    keys = known.answer_keys.split()
    given = any(key == REPLAYED or same_llm(key, new.answer_keys) for key in keys)
    return bool(new.answer_keys) and not given and not _is_better(known.quality, new.quality)


def _is_better(new: float, known: float) -> bool:
    return new > known + _BETTER


def _numbers(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if any(c.isdigit() for c in token)]


def request_key(scope: int, request: str) -> int:
    """A hash that is equal for the same requests in one scope; whoever acts on it looks again."""
    return hash((scope, plain(request)))


@dataclass
class RequestIndex:
    """The stored example of every request, by :func:`request_key`.

    Neighbours by embedding may be others: long texts that begin alike have one embedding. A server
    has no time for an index of all; what fills a store has.
    """

    _ids: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, store: ExampleStore, on_scanned: Callable[[int], None] = lambda count: None
    ) -> RequestIndex:
        """All that a store has.

        Args:
            on_scanned: called with how many more examples were read.
        """
        index = cls()
        for batch in store.scan(embeddings=False):
            index.add([example for example, _ in batch])
            on_scanned(len(batch))
        return index

    def add(self, examples: Iterable[Example]) -> None:
        """Note what is stored now."""
        for example in examples:
            self._ids[request_key(example.scope, example.request)] = example.id

    def find(self, example: Example) -> int | None:
        """The id of the example that has the same request, if there is one."""
        return self._ids.get(request_key(example.scope, example.request))


@dataclass(frozen=True)
class DuplicateFinder:
    """Compares interactions with their nearest neighbours in the store, and with each other.

    Attributes:
        index: finds those that are no near neighbours, too; None: these are missed.
    """

    store: ExampleStore
    index: RequestIndex | None = None

    def compare(self, entries: Sequence[Stored], now_ms: int) -> list[Comparison]:
        """What each interaction is to the store and to those before it.

        Raises:
            UnavailableError: the store cannot be searched.
        """
        neighbours = search_in_background(self.store, entries, _NEIGHBOURS, now_ms)
        indexed = self._indexed([example for example, _ in entries])
        # By scope and request what is new among the entries, since the store does not have it yet.
        fresh: dict[tuple[int, str], Example] = {}
        comparisons = []
        for (example, _), row in zip(entries, neighbours, strict=True):
            key = (example.scope, plain(example.request))
            known: list[Example | Candidate] = [fresh[key]] if key in fresh else []
            # A writer that crashed after it had stored an interaction finds it there itself.
            known += [
                c for c in row if c.id != example.id and same_request(c.request, example.request)
            ]
            if (other := indexed.get(request_key(*key))) and other.id != example.id:
                known.append(other)
            comparison = compare(example, known)
            if comparison.finding in (Finding.NEW, Finding.BETTER):
                fresh[key] = example
            comparisons.append(comparison)
        return comparisons

    def _indexed(self, examples: Sequence[Example]) -> dict[int, Example]:
        """Those that the index knows to have the same requests, by their keys."""
        if self.index is None:
            return {}
        ids = [id for example in examples if (id := self.index.find(example)) is not None]
        stored = [example for example, _ in self.store.get(ids)]
        return {request_key(e.scope, e.request): e for e in stored}


def compare(new: Example, known: Sequence[Example | Candidate]) -> Comparison:
    """What an example is to those that have the same request."""
    if not known:
        return NEW
    for other in known:
        if same_answer(other.response, new.response):
            same = other.response == new.response and REPLAYED not in other.answer_keys
            added = same and not set(new.answer_keys.split()) <= set(other.answer_keys.split())
            return Comparison(Finding.CONFIRMED if added else Finding.REPEATED, other.id)
    best = max(known, key=lambda other: other.quality)
    better = _is_better(new.quality, best.quality) or _takes_over(new, best)
    return Comparison(Finding.BETTER if better else Finding.WORSE, best.id)
