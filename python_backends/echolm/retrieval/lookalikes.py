"""Requests that look alike to an embedding model and are not.

Two conversations may end in the same words after different histories: an example whose history is
told at sight to be about something else is no candidate. How near the others are, their embeddings
tell, of which the history is a part (:mod:`echolm.embedding.tokenizer`). Two long texts may differ
only in a part that the model hardly sees. What is unseen is taken off the similarity of an example,
so that whatever reads similarities knows less of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from echolm.conversation import is_conversation, turns_of
from echolm.primitives import Candidate
from echolm.words import words_of

_MOST_WORDS = 400  # of a history, its last; more tell nothing new of what it is about
_END = 24  # words at either end of a long text, where people say what they want
_KEPT = 2_048  # stored texts in the form in which they are compared
_FUNCTION_WORD = 3  # letters of a word that says nothing of what a text is about

_HISTORIES = 0.2625  # share of common words that histories of one kind have at least
_LAST_ALIKE = 0.4  # by how much more histories must have in common whose last turns are the same
# Shares of common words from which the ends of two long texts may be of the same kind, and from
# which nothing tells that they are not.
_ENDS = 0.5, 0.9
_LEAST_FIT = 0.25  # what fits less is told at sight to be about something else
_SAME_TEXT = 0.5  # share of common words from which two long texts may differ at an end only
_UNSEEN = 0.5  # of the similarity, what a text of which nothing is seen would lose


def nothing_unseen(text: str) -> float:
    """For an embedding model that sees all of every text."""
    return 0.0


def doubted(
    request: str, candidates: Sequence[Candidate], floor: float, unseen: Callable[[str], float]
) -> list[Candidate]:
    """The candidates, in their order, each as similar as can be told of it.

    Args:
        request: its transcript.
        floor: the cosine up to which requests are unrelated.
        unseen: the share of a transcript that the embedding model does not get to see.
    """
    asked: _Text | None = None
    request_hidden, follows = unseen(request), is_conversation(request)
    kept = []
    for candidate in candidates:
        stored = candidate.request
        if stored == request:
            kept.append(candidate)
            continue
        hidden = max(request_hidden, unseen(stored))
        if not (hidden or follows or is_conversation(stored)):
            kept.append(candidate)
            continue
        asked = asked or _Text.of(request)
        other = _of_stored(stored)
        fit = _fit(asked, other, hidden)
        if fit > _LEAST_FIT and _histories_fit(asked, other):
            above = max(0.0, candidate.similarity - floor) * (1.0 - fit)
            kept.append(replace(candidate, similarity=candidate.similarity - above, fit=fit))
    return kept


class _Text(NamedTuple):
    """What a transcript is about, by its words.

    Attributes:
        history: those before the last turn.
        beginning, end: those at either end of the last turn.
        long: whether the last turn is longer than both ends.
    """

    history: frozenset[str]
    last: frozenset[str]
    beginning: frozenset[str]
    end: frozenset[str]
    long: bool

    @classmethod
    def of(cls, text: str) -> _Text:
        *earlier, last = turns_of(text)
        words = words_of(last.text)
        history = [word for turn in earlier for word in words_of(f"{turn.text} {turn.tool_calls}")]
        ends = _telling(words[:_END]), _telling(words[-_END:])
        long = len(words) > 2 * _END
        return cls(_telling(history[-_MOST_WORDS:]), _telling(words), *ends, long)


_of_stored = lru_cache(maxsize=_KEPT)(_Text.of)


def _telling(words: Sequence[str]) -> frozenset[str]:
    return frozenset(w for w in words if len(w) > _FUNCTION_WORD or not w.isalpha())


def _histories_fit(a: _Text, b: _Text) -> bool:
    """Whether nothing tells at sight that what came before two last turns was of another kind."""
    if a.history and b.history:
        least = _HISTORIES + _LAST_ALIKE * _overlap(a.last, b.last)
        return _overlap(a.history, b.history) > least
    if a.history or b.history:
        # What one says at once, the other may say in two turns.
        return _overlap(a.history | a.last, b.history | b.last) > _HISTORIES
    return True


def _fit(a: _Text, b: _Text, hidden: float) -> float:
    """How far nothing tells that two texts differ in what the model does not see of them, 0..1."""
    fit = 1.0 - _UNSEEN * hidden
    whole = _overlap(a.last, b.last)
    if hidden and a.long and b.long and whole > _SAME_TEXT:
        # Of texts about different things the ends differ as the middles do, and the model sees it.
        of_ends = min(_overlap(a.beginning, b.beginning), _overlap(a.end, b.end))
        fit *= _ramp(of_ends / whole, *_ENDS)
    return fit


def _ramp(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Cosine of two word sets; 1 if both are empty."""
    if not a or not b:
        return float(a == b)
    return len(a & b) / math.sqrt(len(a) * len(b))
