"""What can be told of a request and a stored example before any LLM runs.

Stage 2 of the paper's Example Selector (§4.1) needs more than the cosine: look-alikes differ
in a single word, and a corrupted answer has the same request as a good one. All features of a
batch are computed at once, from small arrays that are kept per example, since the same
examples are found again and again.
"""

from __future__ import annotations

import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echolm.generation.prompt import TokenCounter
from echolm.retrieval.store import Candidate

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
"""Features of a pair of request and example, all about centred but the first.

``prior`` is the log-odds of similarity times quality. ``covered`` and ``covering`` are the
share of the request's words that the example's request has, and the other way round, literals
left out; ``consistency`` is the share of the literals in the example's request that its own
response repeats; ``consensus`` says how far its response agrees with those of the other
candidates, the more the nearer their requests are, and ``support`` how many such there are.
"""

PRIOR = EXAMPLE_FEATURES.index("prior")
_LEAST_ODDS, _MOST_ODDS = 0.005, 0.995

_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r"\"([^\"\n]{1,80})\"|`([^`\n]{1,80})`")
_MARKS = ".,;:!?()[]{}<>\"'`"
_LITERAL_SIGNS = re.compile(r"[0-9@/\\_#$]|\w\.\w")
_MAX_WORDS = 400  # of a text; more tell nothing new of what it is about

_BITS = 1_024
_SKETCH = 256
_POPCOUNT = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)


def log_odds(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(p / (1 - p)) with p kept away from 0 and 1."""
    p = np.clip(p, _LEAST_ODDS, _MOST_ODDS)
    return np.asarray(np.log(p / (1.0 - p)), dtype=np.float32)


def words_and_literals(text: str) -> tuple[set[str], set[str]]:
    """The distinct ordinary words of a text, and its literal values, all in lower case.

    Literals are what a request is filled in with: tokens that hold digits or signs of paths,
    addresses and identifiers, names (a capital inside a sentence) and quoted text.
    """
    literals = {next(filter(None, found)).lower() for found in _QUOTED.findall(text)}
    words: set[str] = set()
    starts_sentence = True
    for raw in text.split()[:_MAX_WORDS]:
        token = raw.strip(_MARKS)
        named = not token.islower() and not starts_sentence and not token.isupper()
        if token and (named or _LITERAL_SIGNS.search(token)):
            literals.add(token.lower())
        else:
            words.update(_WORD.findall(token.lower()))
        starts_sentence = raw[-1] in ".!?:"
    return words, literals


def _hashes(words: Iterable[str]) -> NDArray[np.uint32]:
    # Not hash(): it differs from process to process.
    return np.fromiter((zlib.crc32(w.encode()) for w in words), dtype=np.uint32)


def _bitmap(hashes: NDArray[np.uint32]) -> NDArray[np.uint16]:
    bits = np.zeros(_BITS, dtype=np.uint8)
    bits[hashes % _BITS] = 1
    return np.packbits(bits).view(np.uint16)


def _sketch(hashes: NDArray[np.uint32]) -> NDArray[np.int8]:
    """Signed feature hashing: the cosine of two sketches estimates that of the word sets."""
    places = (hashes >> np.uint32(8)) % _SKETCH
    signs = 2.0 * ((hashes >> np.uint32(30)) & np.uint32(1)) - 1.0
    sums = np.bincount(places, weights=signs, minlength=_SKETCH)
    return np.clip(sums, -127, 127).astype(np.int8)


class ExampleTexts:
    """What is known of stored examples' texts: arrays of a fixed size, the oldest replaced.

    Args:
        capacity: examples kept, about 0.7 kB each.
        tokens: counts tokens of the LLM that will read the examples.
    """

    def __init__(self, tokens: TokenCounter, capacity: int = 16_384) -> None:
        self._tokens = tokens
        self._capacity = capacity
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._texts: list[tuple[str, str]] = []
        self.bits = np.zeros((capacity, _BITS // 16), dtype=np.uint16)
        self.num_words = np.ones(capacity, dtype=np.float32)
        self.request_sketch = np.zeros((capacity, _SKETCH), dtype=np.int8)
        self.response_sketch = np.zeros((capacity, _SKETCH), dtype=np.int8)
        self.num_literals = np.zeros(capacity, dtype=np.float32)
        self.consistency = np.zeros(capacity, dtype=np.float32)
        self.request_length = np.zeros(capacity, dtype=np.float32)
        self.response_length = np.zeros(capacity, dtype=np.float32)
        self._num_tokens = np.zeros(capacity, dtype=np.int32)

    def slots(self, candidates: Sequence[Candidate]) -> NDArray[np.intp]:
        """Where each candidate's values stand; at most ``capacity`` different ones at a time."""
        return np.fromiter(map(self._slot, candidates), dtype=np.intp, count=len(candidates))

    def _slot(self, candidate: Candidate) -> int:
        slots = self._slots
        slot = slots.get(candidate.id)
        if slot is None:
            if len(slots) < self._capacity:
                slot = len(slots)
                self._texts.append(("", ""))
            else:
                slot = slots.popitem(last=False)[1]
            slots[candidate.id] = slot
            self._fill(slot, candidate)
        else:
            slots.move_to_end(candidate.id)
            request, response = self._texts[slot]
            # A replayed example has another response under the same id.
            if response != candidate.response or request != candidate.request:
                self._fill(slot, candidate)
        return slot

    def _fill(self, slot: int, candidate: Candidate) -> None:
        self._texts[slot] = candidate.request, candidate.response
        words, literals = words_and_literals(candidate.request)
        hashes = _hashes(words)
        self.bits[slot] = bits = _bitmap(hashes)
        self.num_words[slot] = _POPCOUNT[bits].sum()
        self.request_sketch[slot] = _sketch(hashes)
        response = candidate.response.lower()
        # What a response has of its own request differs between examples that agree.
        own = set(_WORD.findall(candidate.request.lower()))
        said = set(_WORD.findall(response)[:_MAX_WORDS]) - own
        self.response_sketch[slot] = _sketch(_hashes(said))
        self.num_literals[slot] = len(literals)
        kept = sum(literal in response for literal in literals)
        self.consistency[slot] = kept / len(literals) - 0.8 if literals else 0.0
        self.request_length[slot] = np.log1p(len(candidate.request))
        self.response_length[slot] = np.log1p(len(candidate.response))
        self._num_tokens[slot] = -1

    def num_tokens(self, slot: int) -> int:
        """Tokens of an example's request and response; counted when first asked for."""
        if self._num_tokens[slot] < 0:
            request, response = self._texts[slot]
            self._num_tokens[slot] = self._tokens.count(request) + self._tokens.count(response)
        return int(self._num_tokens[slot])


@dataclass(frozen=True)
class FeatureBatch:
    """Requests of a batch with their eligible candidates, padded to the same number n.

    Attributes:
        columns: for each request, which of its candidates stand in its row, in order.
        valid: BOOL [B, n]; False where a row is padded. All other arrays hold 0 there.
        ids: INT64 [B, n].
        slots: INTP [B, n], for :meth:`ExampleTexts.num_tokens`.
        similarity, quality: FP32 [B, n].
        request: FP32 [B, len(REQUEST_FEATURES)].
        example: FP32 [B, n, len(EXAMPLE_FEATURES)].
        redundancy: FP32 [B, n, n] in 0..1: how much two candidates have in common.
    """

    columns: list[list[int]]
    valid: NDArray[np.bool_]
    ids: NDArray[np.int64]
    slots: NDArray[np.intp]
    similarity: NDArray[np.float32]
    quality: NDArray[np.float32]
    request: NDArray[np.float32]
    example: NDArray[np.float32]
    redundancy: NDArray[np.float32]


def featurize(
    requests: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    texts: ExampleTexts,
    min_similarity: float = -1.0,
) -> FeatureBatch:
    """Features of every request with each of its candidates of at least ``min_similarity``."""
    columns = [
        [k for k, c in enumerate(row) if c.similarity >= min_similarity] for row in candidates
    ]
    b, n = len(columns), max(map(len, columns), default=0)
    valid = np.zeros((b, n), dtype=np.bool_)
    for i, column in enumerate(columns):
        valid[i, : len(column)] = True
    flat = [candidates[i][k] for i, column in enumerate(columns) for k in column]

    ids = np.zeros((b, n), dtype=np.int64)
    slots = np.zeros((b, n), dtype=np.intp)
    similarity, quality = np.zeros((2, b, n), dtype=np.float32)
    ids[valid] = [c.id for c in flat]
    slots[valid] = texts.slots(flat)
    similarity[valid] = [c.similarity for c in flat]
    quality[valid] = [c.quality for c in flat]
    # A request without candidates needs no features.
    parsed = [
        words_and_literals(text) if column else (set[str](), set[str]())
        for text, column in zip(requests, columns, strict=True)
    ]
    lengths = np.log1p(np.array([len(text) for text in requests], dtype=np.float32)).reshape(b, 1)
    literals = np.array([len(p[1]) for p in parsed], dtype=np.float32).reshape(b, 1)
    request = np.concatenate([lengths / 10.0 - 0.45, np.minimum(literals, 4.0) / 4.0 - 0.5], axis=1)
    example = np.zeros((b, n, len(EXAMPLE_FEATURES)), dtype=np.float32)
    if n == 0:
        return FeatureBatch(
            columns,
            valid,
            ids,
            slots,
            similarity,
            quality,
            request,
            example,
            np.zeros((b, 0, 0), dtype=np.float32),
        )
    same_request = _cosines(texts.request_sketch[slots])
    same_response = _cosines(texts.response_sketch[slots])
    bits = np.stack([_bitmap(_hashes(words)) for words, _ in parsed])
    num_words = _POPCOUNT[bits].sum(axis=1, dtype=np.float32).reshape(b, 1)
    common = _POPCOUNT[bits[:, None, :] & texts.bits[slots]].sum(axis=2, dtype=np.float32)
    # Neighbours whose requests ask for the same say what the response should be like.
    weight = np.square(np.square(same_request))
    weight *= (valid * (0.2 + np.clip(texts.consistency[slots] + 0.8, 0, 1)))[:, None, :]
    weight[:, np.arange(n), np.arange(n)] = 0.0
    support = weight.sum(axis=2)
    known = support / (support + 0.5)
    length = texts.response_length[slots]
    expected = np.einsum("bij,bj->bi", weight, length) / np.maximum(support, 1e-6)
    agreement = np.einsum("bij,bij->bi", weight, same_response) / np.maximum(support, 1e-6)
    example_words = texts.num_words[slots]
    columns_of = {
        "prior": log_odds(np.maximum(similarity, 0.0) * quality),
        "constant": 1.0,
        "similarity": similarity - 0.8,
        "similarity_margin": similarity
        - np.where(valid, similarity, -1.0).max(axis=1, keepdims=True),
        "covered": np.where(num_words > 0, common / np.maximum(num_words, 1) - 0.75, 0.0),
        "covering": np.where(example_words > 0, common / np.maximum(example_words, 1) - 0.75, 0.0),
        "literals_differ": np.minimum(np.abs(texts.num_literals[slots] - literals), 3.0) / 3.0,
        "consistency": texts.consistency[slots],
        "consensus": 2.0 * (agreement - 0.5) * known,
        "support": known - 0.5,
        "length_deviation": np.minimum(np.abs(length - expected), 1.0) * known,
        "quality": quality - 0.9,
        "request_length_differs": np.minimum(np.abs(texts.request_length[slots] - lengths), 1.0),
    }
    for k, name in enumerate(EXAMPLE_FEATURES):
        example[:, :, k] = columns_of[name]
    example[~valid] = 0.0
    # From the cosine of two word sets of one size to their Jaccard index.
    both = (same_request + same_response) / 2.0
    return FeatureBatch(
        columns,
        valid,
        ids,
        slots,
        similarity,
        quality,
        request,
        example,
        both / (2.0 - both),
    )


def _cosines(sketches: NDArray[np.int8]) -> NDArray[np.float32]:
    """Cosines of all pairs in each row: INT8 [B, n, s] to FP32 [B, n, n], negatives as 0."""
    vectors = sketches.astype(np.float32)
    vectors /= np.sqrt(np.einsum("bns,bns->bn", vectors, vectors))[:, :, None] + 1e-6
    return np.clip(vectors @ vectors.transpose(0, 2, 1), 0.0, 1.0)
