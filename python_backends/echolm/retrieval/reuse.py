"""Which stored answer might be given to a request as it is, and what tells whether it is right.

Retrieval finds the one example whose answer is most probably right for the request itself;
:class:`echolm.bandit.reuse.ReuseModel` knows how probable that is.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.conversation import by_turn, is_conversation, last_turn, transcript, turns_of
from echolm.primitives import Candidate, Reusable
from echolm.retrieval.features.texts import MAX_WORDS, words_and_literals
from echolm.retrieval.lookalikes import nothing_unseen
from echolm.words import words_of

REUSE_FEATURES = (
    "constant",
    "distance",
    "words_differ",
    "share_differs",
    "order_differs",
    "unseen_words",
    "disagreement",
    "contrary_nearness",
    "passed_over",
)
"""Features of a request and an example; all but the first are 0 for the same text.

``distance`` is that of the embeddings; ``words_differ`` grows with the number of words that only
one of the requests has, and ``share_differs`` is their share. ``order_differs`` says that the words
that both have come in another order. ``unseen_words`` grows with the number of the request's words
that no candidate with the same answer has. ``disagreement`` is the share of the other candidates,
the nearest counting most, whose answer is a different one, and ``contrary_nearness`` how near the
nearest of these is. ``passed_over`` says that a nearer example was found that tells at sight that
the answer is another one.
"""

_COMPARED = 4  # nearest eligible examples whose texts are compared
_KEPT = 8_192  # texts of examples in the form in which they are compared
# Of English; a language that says "not" otherwise has to do with what is learnt.
_NEGATIONS = frozenset(("not", "no", "never", "none", "nor", "without", "cannot", "t"))


def normalised(text: str) -> str:
    """A text or transcript without what cannot make a difference to it: Unicode's forms and blank
    space.

    Indentation and line breaks stay, since they matter in code; so do case and punctuation.
    """
    return by_turn(text, _normalised)


def _normalised(text: str) -> str:
    if text.isascii() and " ".join(text.split()) == text:
        return text
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(_indentation(line) + " ".join(line.split()) for line in lines)


# The same examples are found again and again.
_of_stored = lru_cache(maxsize=_KEPT)(normalised)


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def find_reusable(
    text: str,
    key: str,
    candidates: Sequence[Candidate],
    unseen: Callable[[str], float] = nothing_unseen,
) -> Reusable | None:
    """The candidate whose answer is most probably right for the request; None if there is none.

    Of a conversation, what came before the last turn must be the same. Where the embedding model
    did not see all of a request, only the answer to the same one may be given.

    Args:
        text: the request's transcript.
        key: the request's :func:`~echolm.store.base.answer_key`; answers that were given under
            another one are not considered. Empty: none is.
        candidates: what the store found, most similar first.
        unseen: the share of a transcript that the embedding model does not get to see.
    """
    eligible = [c for c in candidates if key and key in c.answer_keys.split()]
    if not eligible:
        return None
    plain, request = normalised(text), _Words.of(last_turn(text))
    context = _context(plain)
    for candidate in eligible:
        if _of_stored(candidate.request) == plain:
            features = _features(request.words, candidate, (), False)
            return Reusable(candidate.id, candidate.response, True, features)
    if unseen(text) > 0.0:
        return None
    for rank, candidate in enumerate(eligible[:_COMPARED]):
        same_context = _context(_of_stored(candidate.request)) == context
        if not same_context or unseen(candidate.request) > 0.0:
            continue
        if request.may_mean(_words_of_stored(candidate.request)):
            features = _features(request.words, candidate, candidates, rank > 0)
            return Reusable(candidate.id, candidate.response, False, features)
    return None


class _Words(NamedTuple):
    """What a request says by its words.

    Attributes:
        words: all words in order.
        negated: whether an odd number of them says "not".
        whole: whether all of the text was read for literals.
    """

    words: list[str]
    literals: set[str]
    negated: bool
    whole: bool

    @classmethod
    def of(cls, text: str) -> _Words:
        words, whole = words_of(text), len(text.split()) <= MAX_WORDS
        negated = sum(word in _NEGATIONS for word in words) % 2 == 1
        return cls(words, words_and_literals(text)[1], negated, whole)

    def may_mean(self, other: _Words) -> bool:
        """Whether nothing tells at sight that two requests have different answers.

        Other numbers, names or quoted values do, and so do a negation and the same words in
        another order, which embeddings hardly see. Of a long text they do not even see the end.
        """
        return (
            (self.whole and other.whole)
            and (self.literals, self.negated) == (other.literals, other.negated)
            and (self.words == other.words or Counter(self.words) != Counter(other.words))
        )


def _context(text: str) -> str:
    """What comes before the words of the last turn of a transcript: the turns before it, and whose
    it is; empty if nothing does."""
    if not is_conversation(text):
        return ""
    *before, last = turns_of(text)
    return transcript([*before, replace(last, text="")])


@lru_cache(maxsize=_KEPT)
def _words_of_stored(text: str) -> _Words:
    return _Words.of(last_turn(text))


def _features(
    first: Sequence[str], chosen: Candidate, candidates: Sequence[Candidate], passed_over: bool
) -> NDArray[np.float32]:
    """:data:`REUSE_FEATURES`, FP32 [f], by the request's words."""
    second = _words_of_stored(chosen.request).words
    a, b = Counter(first), Counter(second)
    common = a & b
    every = (a | b).total()
    differing = every - common.total()
    answer = _of_stored(chosen.response)
    same = [_of_stored(c.response) == answer for c in candidates]
    unseen = set(first).difference(
        second,
        *(_words_of_stored(c.request).words for c, s in zip(candidates, same, strict=True) if s),
    )
    disagreement, contrary = _contrary(chosen, candidates, same)
    values = {
        "constant": 1.0,
        "distance": _distance(chosen.similarity),
        "words_differ": math.log1p(differing),
        "share_differs": differing / max(1, every),
        "order_differs": float(_of(common, first) != _of(common, second)),
        "unseen_words": math.log1p(len(unseen)),
        "disagreement": disagreement,
        "contrary_nearness": contrary,
        "passed_over": float(passed_over),
    }
    return np.array([values[name] for name in REUSE_FEATURES], dtype=np.float32)


def _of(common: Counter[str], words: Sequence[str]) -> list[str]:
    return [word for word in words if word in common]


def _distance(similarity: float) -> float:
    """Euclidean distance of two vectors of unit length, by their cosine."""
    return math.sqrt(max(0.0, 2.0 - 2.0 * similarity))


def _contrary(
    chosen: Candidate, candidates: Sequence[Candidate], same: Sequence[bool]
) -> tuple[float, float]:
    """The share of candidates with another answer, by rank, and how near the nearest of them is.

    Nearness is exp(-excess), with the excess of its distance over that of the chosen one in terms
    of the spread of all distances; 0 if all have the same answer. Alone, an answer is in doubt.
    """
    distances = [_distance(c.similarity) for c in candidates] or [0.0]
    own, spread = _distance(chosen.similarity), max(1e-6, max(distances) - min(distances))
    weight = different = nearness = 0.0
    for rank, candidate in enumerate(candidates, start=1):
        if candidate.id == chosen.id:
            continue
        weight += 1.0 / rank
        if not same[rank - 1]:
            different += 1.0 / rank
            excess = max(0.0, distances[rank - 1] - own) / spread
            nearness = max(nearness, math.exp(-excess))
    return (different / weight if weight else 0.5), nearness
