"""What can be told of a request and a stored example before any LLM runs.

Stage 2 of the paper's Example Selector (§4.1) needs more than the cosine: look-alikes differ
in a single word, and a corrupted answer has the same request as a good one. All features of a
batch are computed at once, from small arrays that are kept per example, since the same
examples are found again and again.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.llm.tokens import TokenCounter
from echolm.primitives import Candidate

REQUEST_FEATURES = ("length", "literals")
EXAMPLE_FEATURES = (
    "prior",
    "constant",
    "similarity",
    "similarity_margin",
    "covered",
    "covering",
    "literals_differ",
    "consistency",
    "consensus",
    "support",
    "length_deviation",
    "quality",
    "request_length_differs",
)
"""Features of a pair of request and example; all but the first two are about 0 where it fits.

``prior`` is the log-odds of similarity times quality. ``covered`` and ``covering`` are the
share of the request's words that the example's request has, and the other way round, literals
left out; ``consistency`` is the share of the literals in the example's request that its own
response repeats; ``consensus`` says how far its response agrees with those of the other
candidates, the more the nearer these are to the request, and ``support`` how many such there are.
"""

PRIOR = EXAMPLE_FEATURES.index("prior")
_LEAST_ODDS, _MOST_ODDS = 0.005, 0.995

_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r"\"([^\"\n]{1,80})\"|`([^`\n]{1,80})`")
_MARKS = ".,;:!?()[]{}<>\"'`"
_LITERAL_SIGNS = re.compile(r"[0-9@/\\_#$]|\w\.\w")
_MAX_WORDS = 400  # of a text; more tell nothing new of what it is about

_BITS = 512
_SKETCH = 128
_POPCOUNT = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)


def log_odds(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(p / (1 - p)) with p kept away from 0 and 1."""
    p = np.minimum(np.maximum(p, _LEAST_ODDS), _MOST_ODDS)  # np.clip is slow on small arrays
    return np.asarray(np.log(p / (1.0 - p)), dtype=np.float32)


def words_and_literals(text: str) -> tuple[set[str], set[str]]:
    """The distinct ordinary words of a text, and its literal values, all in lower case.

    Literals are what a request is filled in with: tokens that hold digits or signs of paths,
    addresses and identifiers, names (a capital inside a sentence) and quoted text.
    """
    literals: set[str] = set()
    if '"' in text or "`" in text:
        literals.update(next(filter(None, found)).lower() for found in _QUOTED.findall(text))
    words: set[str] = set()
    starts_sentence = True
    for raw in text.split()[:_MAX_WORDS]:
        if raw.isalpha() and raw.islower():
            words.add(raw)
            starts_sentence = False
            continue
        token = _read_token(raw)
        if token.is_literal or (token.is_named and not starts_sentence):
            literals.add(token.text)
        else:
            words.update(token.words)
        starts_sentence = token.ends_sentence
    return words, literals


class _Token(NamedTuple):
    """What a token without spaces is, wherever it stands.

    Attributes:
        text: in lower case, without marks around it.
        is_named: whether it is of mixed case, which inside a sentence makes it a name.
    """

    text: str
    words: tuple[str, ...]
    is_literal: bool
    is_named: bool
    ends_sentence: bool


@lru_cache(maxsize=32_768)
def _read_token(raw: str) -> _Token:
    token = raw.strip(_MARKS)
    text = token.lower()
    return _Token(
        text,
        tuple(_WORD.findall(text)),
        bool(_LITERAL_SIGNS.search(token)),
        bool(token) and not token.islower() and not token.isupper(),
        raw[-1] in ".!?:",
    )


@lru_cache(maxsize=32_768)
def hash_word(word: str) -> int:
    """The same in every process and replica, which Python's own hash() is not."""
    return zlib.crc32(word.encode())


def _popcount(bitmaps: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Number of bits that are set, over the last axis."""
    # A product with ones: several times faster than sum() over so short an axis.
    counts = _POPCOUNT.take(bitmaps).astype(np.float32)
    return np.asarray(counts @ np.ones(bitmaps.shape[-1], dtype=np.float32))


def _bitmaps_and_sketches(
    texts: Sequence[Collection[str]],
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Two forms of the word sets of n texts.

    Returns:
        The sets as ``_BITS`` bits each, UINT16 [n, _BITS / 16]; and by signed feature hashing,
        so that the product of two sketches estimates the sets' cosine, FP32 [n, _SKETCH], of
        length 1 unless there are no words.
    """
    n = len(texts)
    hashes = np.array([hash_word(word) for words in texts for word in words], dtype=np.int64)
    rows = np.repeat(np.arange(n), [len(words) for words in texts])
    bits = np.zeros((n, _BITS), dtype=np.bool_)
    bits[rows, hashes % _BITS] = True
    bitmaps = np.packbits(bits, axis=1, bitorder="little").view(np.uint16)
    places = rows * _SKETCH + (hashes >> 8) % _SKETCH
    signs = np.where(hashes & 0x4000_0000, 1.0, -1.0)
    sums = np.bincount(places, signs, n * _SKETCH).reshape(n, _SKETCH)
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    return bitmaps, (sums / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)


_TEXT_VALUES = np.dtype(
    [
        ("bits", np.uint16, (_BITS // 16,)),
        ("request_sketch", np.float32, (_SKETCH,)),
        ("response_sketch", np.float32, (_SKETCH,)),
        ("num_words", np.float32),
        ("num_said", np.float32),
        ("num_literals", np.float32),
        ("consistency", np.float32),
        ("request_length", np.float32),
        ("response_length", np.float32),
    ]
)
"""What is kept of an example's texts."""


class ExampleTexts:
    """What is known of stored examples' texts, in arrays of a fixed size.

    When they are full, the example that was looked up least recently makes room.

    Args:
        tokens: counts tokens of the LLM that will read the examples.
        capacity: examples kept, about 1.1 kB each besides their texts.
    """

    def __init__(self, tokens: TokenCounter, capacity: int = 16_384) -> None:
        self._tokens = tokens
        self._capacity = capacity
        self._slots: dict[int, int] = {}
        self._ids: list[int] = []
        self._requests: list[str] = []
        self._responses: list[str] = []
        self._num_tokens: list[int] = []
        self._looked_up = np.zeros(capacity, dtype=np.int64)
        self._lookups = 0
        self._free: list[int] = []
        # A column each: gathering whole rows of a structured array is several times slower.
        self._columns = {
            name: np.zeros((capacity, *_TEXT_VALUES[name].shape), _TEXT_VALUES[name].base)
            for name in _TEXT_VALUES.names or ()
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One of ``_TEXT_VALUES`` for all slots, [capacity, …]."""
        return self._columns[name]

    def slots(self, candidates: Sequence[Candidate]) -> NDArray[np.intp]:
        """Where each candidate's values stand; at most ``capacity`` different ones at a time."""
        if not candidates:
            return np.zeros(0, dtype=np.intp)
        get = self._slots.get
        found = [get(c.id, -1) for c in candidates]
        self._lookups += 1
        if -1 in found or not self._as_kept(found, candidates):
            # So that none of them makes room for another.
            self._looked_up[[slot for slot in found if slot >= 0]] = self._lookups
            self._store(candidates)
            found = [self._slots[c.id] for c in candidates]
        slots = np.array(found, dtype=np.intp)
        self._looked_up[slots] = self._lookups
        return slots

    def _as_kept(self, slots: Sequence[int], candidates: Sequence[Candidate]) -> bool:
        """Whether all texts are what they were: a replayed example has another response."""
        kept = itemgetter(*slots, 0)  # with a second index, since one alone gives no tuple
        *requests, _ = kept(self._requests)
        *responses, _ = kept(self._responses)
        same: bool = requests == [c.request for c in candidates]
        return same and responses == [c.response for c in candidates]

    def _store(self, candidates: Sequence[Candidate]) -> None:
        """Keep those whose texts are not kept, all at once."""
        changed: dict[int, Candidate] = {}
        for candidate in candidates:
            slot = self._slots.get(candidate.id)
            if slot is None:
                slot = self._slots[candidate.id] = self._vacant()
                self._ids[slot] = candidate.id
                self._looked_up[slot] = self._lookups
            elif self._as_kept([slot], [candidate]):
                continue
            self._requests[slot], self._responses[slot] = candidate.request, candidate.response
            self._num_tokens[slot] = -1
            changed[slot] = candidate
        if changed:
            self._fill(list(changed), list(changed.values()))

    def _vacant(self) -> int:
        if len(self._ids) < self._capacity:
            self._ids.append(0)
            self._requests.append("")
            self._responses.append("")
            self._num_tokens.append(0)
            return len(self._ids) - 1
        if not self._free:
            # Some at a time, since finding the oldest looks at all; none that is needed now.
            some = self._capacity // 64
            oldest = np.argpartition(self._looked_up, some)[: some + 1]
            self._free = oldest[self._looked_up[oldest] < self._lookups].tolist()
            for slot in self._free:
                del self._slots[self._ids[slot]]
        return self._free.pop()

    def _fill(self, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        n = len(candidates)
        asked, literals = zip(*(words_and_literals(c.request) for c in candidates), strict=True)
        responses = [c.response.lower() for c in candidates]
        said = [set(_WORD.findall(response)[:_MAX_WORDS]) for response in responses]
        for words, candidate in zip(said, candidates, strict=True):
            # What a response has of its own request differs between examples that agree.
            words.difference_update(_WORD.findall(candidate.request.lower()))
        bitmaps, sketches = _bitmaps_and_sketches([*asked, *said])
        values = {
            "bits": bitmaps[:n],
            "request_sketch": sketches[:n],
            "response_sketch": sketches[n:],
            "num_words": _popcount(bitmaps[:n]),
            "num_said": [len(words) for words in said],
            "num_literals": [len(of_one) for of_one in literals],
            "consistency": [
                sum(map(response.__contains__, of_one)) / len(of_one) - 1.0 if of_one else 0.0
                for response, of_one in zip(responses, literals, strict=True)
            ],
            "request_length": [math.log1p(len(c.request)) for c in candidates],
            "response_length": [math.log1p(len(c.response)) for c in candidates],
        }
        for name, value in values.items():
            self._columns[name][slots] = value

    def num_tokens(self, slot: int) -> int:
        """Tokens of an example's request and response; counted when first asked for."""
        if self._num_tokens[slot] < 0:
            texts = self._requests[slot], self._responses[slot]
            self._num_tokens[slot] = sum(self._tokens.count(text) for text in texts)
        return self._num_tokens[slot]


@dataclass(frozen=True)
class FeatureBatch:
    """Requests of a batch with their eligible candidates, padded to the same number n.

    Attributes:
        candidates: for each request those that stand in its row, in order.
        valid: BOOL [B, n]; False where a row is padded. Arrays hold 0 there but for sketches, which
            are any example's.
        ids: INT64 [B, n].
        slots: INTP [B, n], for :meth:`ExampleTexts.num_tokens`.
        similarity, quality: FP32 [B, n].
        request: FP32 [B, len(REQUEST_FEATURES)].
        example: FP32 [B, n, len(EXAMPLE_FEATURES)].
        asks, says: FP32 [B, n, s], unit length: sketches of the candidates' requests and
            responses.
    """

    candidates: list[list[Candidate]]
    valid: NDArray[np.bool_]
    ids: NDArray[np.int64]
    slots: NDArray[np.intp]
    similarity: NDArray[np.float32]
    quality: NDArray[np.float32]
    request: NDArray[np.float32]
    example: NDArray[np.float32]
    asks: NDArray[np.float32]
    says: NDArray[np.float32]

    def redundancy(self, row: int) -> NDArray[np.float32]:
        """How much two candidates of a row have in common, FP32 [n, n] in 0..1."""
        both = self.asks[row] @ self.asks[row].T
        both += self.says[row] @ self.says[row].T
        np.maximum(both, 0.0, out=both)
        # From the cosine of two word sets of one size to their Jaccard index.
        return np.asarray(both / (4.0 - both))


def featurize(
    requests: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    texts: ExampleTexts,
    min_similarity: float = -1.0,
) -> FeatureBatch:
    """Features of every request with each of its candidates of at least ``min_similarity``."""
    eligible = [[c for c in row if c.similarity >= min_similarity] for row in candidates]
    b, n = len(eligible), max(map(len, eligible), default=0)
    valid = np.arange(n) < np.array([len(row) for row in eligible], dtype=np.intp).reshape(b, 1)
    flat = list(chain.from_iterable(eligible))
    ids = np.zeros((b, n), dtype=np.int64)
    slots = np.zeros((b, n), dtype=np.intp)
    similarity, quality = np.zeros((2, b, n), dtype=np.float32)
    ids[valid] = [c.id for c in flat]
    slots[valid] = texts.slots(flat)
    similarity[valid] = [c.similarity for c in flat]
    quality[valid] = [c.quality for c in flat]
    # A request without candidates needs no features.
    parsed = [
        words_and_literals(text) if row else (set[str](), set[str]())
        for text, row in zip(requests, eligible, strict=True)
    ]
    lengths = np.log1p(np.array([len(text) for text in requests], dtype=np.float32)).reshape(b, 1)
    literals = np.array([len(p[1]) for p in parsed], dtype=np.float32).reshape(b, 1)
    request = np.concatenate([lengths / 10.0 - 0.45, np.minimum(literals, 4.0) / 4.0 - 0.5], axis=1)
    example = np.zeros((b, n, len(EXAMPLE_FEATURES)), dtype=np.float32)
    asks, says = (texts[name].take(slots, axis=0) for name in ("request_sketch", "response_sketch"))
    batch = FeatureBatch(
        eligible, valid, ids, slots, similarity, quality, request, example, asks, says
    )
    if n:
        bits, sketches = _bitmaps_and_sketches([p[0] for p in parsed])
        _pair_features(batch, texts, bits, sketches, lengths, literals)
    return batch


def _pair_features(
    batch: FeatureBatch,
    texts: ExampleTexts,
    bits: NDArray[np.uint16],
    sketches: NDArray[np.float32],
    lengths: NDArray[np.float32],
    literals: NDArray[np.float32],
) -> None:
    """Fill in what the batch's arrays say of pairs.

    Args:
        bits: the requests' words, UINT16 [B, _BITS / 16].
        sketches: the same, FP32 [B, _SKETCH].
        lengths: log(1 + characters) of the requests, FP32 [B, 1].
        literals: how many they have, FP32 [B, 1].
    """
    valid, slots = batch.valid, batch.slots
    # Candidates that ask for what the request asks for say what a response should be like.
    consistency = texts["consistency"][slots]
    near = np.maximum(np.matmul(batch.asks, sketches[:, :, None])[:, :, 0], 0.0)
    weight = np.square(np.square(near))
    weight *= valid * (1.2 + consistency)
    total = np.matmul(weight[:, None, :], batch.says)
    own = weight * (texts["num_said"][slots] > 0)  # a response's product with itself is 1
    support = weight.sum(axis=1, keepdims=True) - weight
    known = support / (support + 0.5)
    per_neighbour = 1.0 / np.maximum(support, 1e-6)
    agreement = (np.matmul(batch.says, total.transpose(0, 2, 1))[:, :, 0] - own) * per_neighbour
    agreement = np.minimum(np.maximum(agreement, 0.0), 1.0)
    length = texts["response_length"][slots]
    lengths_of_others = (weight * length).sum(axis=1, keepdims=True) - weight * length
    expected = lengths_of_others * per_neighbour
    # What the requests have in common.
    num_words, example_words = _popcount(bits)[:, None], texts["num_words"][slots]
    common = _popcount(bits[:, None, :] & texts["bits"].take(slots, axis=0))
    nearest = np.where(valid, batch.similarity, -1.0).max(axis=1, keepdims=True)
    values: dict[str, NDArray[np.float32] | float] = {
        "prior": log_odds(np.maximum(batch.similarity, 0.0) * batch.quality),
        "constant": 1.0,
        "similarity": batch.similarity - 0.8,
        "similarity_margin": batch.similarity - nearest,
        "covered": (common / np.maximum(num_words, 1.0) - 1.0) * (num_words > 0),
        "covering": (common / np.maximum(example_words, 1.0) - 1.0) * (example_words > 0),
        "literals_differ": np.minimum(np.abs(texts["num_literals"][slots] - literals), 3.0) / 3.0,
        "consistency": consistency,
        "consensus": 2.0 * (agreement - 1.0) * known,
        "support": known - 0.75,
        "length_deviation": np.minimum(np.abs(length - expected), 1.0) * known,
        "quality": batch.quality - 0.9,
        "request_length_differs": np.minimum(np.abs(texts["request_length"][slots] - lengths), 1.0),
    }
    for k, name in enumerate(EXAMPLE_FEATURES):
        batch.example[:, :, k] = values[name]
    batch.example[~valid] = 0.0
