"""Features of a batch's requests, and of each request with each of its candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from echolm.conversation import is_conversation, last_turn
from echolm.primitives import Candidate
from echolm.retrieval.features.examples import ExampleTexts
from echolm.retrieval.features.texts import bitmaps_and_sketches, popcount, words_and_literals
from echolm.retrieval.relevance import SimilarityScale, relevance

EXAMPLE_FEATURES = (
    "prior",
    "constant",
    "similarity",
    "similarity_margin",
    "request_containment",
    "example_containment",
    "literals_differ",
    "consistency",
    "consensus",
    "vote",
    "support",
    "length_deviation",
    "quality",
    "request_length_differs",
)
"""Features of a request and an example. All but the first two are about 0 if the example helps.

``prior`` is the log-odds of relevance times quality. Similarities are relative to what is typical
of this service (:mod:`echolm.retrieval.relevance`), so that what was learnt of them still holds
when that changes. ``request_containment`` is the share of the
request's ordinary words that the example's request has too, and ``example_containment`` the
reverse. ``consistency`` is the share of the literals in the example's request that its response
repeats. ``consensus`` says how far its response agrees with those of the other candidates, the more
the nearer these are to the request by their words, and ``support`` how many such there are;
``vote`` how far it agrees with those of all candidates, the more the more relevant they are.
"""

REQUEST_FEATURES = (
    "length",
    "literals",
    *(f"mean_{name}" for name in EXAMPLE_FEATURES if name != "constant"),
)
"""Features of a request: of its text, and the means over its candidates.

The means tell how hard a request is for which such candidates are found. Without them a rating of
one request against that of another would say of an example's features what is true of requests.
"""

PRIOR, VOTE = EXAMPLE_FEATURES.index("prior"), EXAMPLE_FEATURES.index("vote")
_AVERAGED = [k for k, name in enumerate(EXAMPLE_FEATURES) if name != "constant"]


def log_odds(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(p / (1 - p)) with p kept away from 0 and 1."""
    p = np.minimum(np.maximum(p, 0.005), 0.995)  # np.clip is slow on small arrays
    return np.asarray(np.log(p / (1.0 - p)), dtype=np.float32)


@dataclass(frozen=True)
class FeatureBatch:
    """Requests of a batch with their eligible candidates, padded to the same number n.

    Attributes:
        valid: BOOL [B, n]; False where a row is padded. The other arrays hold 0 there, except for
            the sketches, which are any example's.
        ids, similarity, quality: those of the candidates, [B, n].
        relevance: :func:`~echolm.retrieval.relevance.relevance` of each candidate, FP32 [B, n].
        slots: [B, n], for :meth:`ExampleTexts.num_tokens`.
        request: features of each request, FP32 [B, len(REQUEST_FEATURES)].
        example: features of each pair, FP32 [B, n, len(EXAMPLE_FEATURES)].
        request_sketches, response_sketches: FP32 [B, n, s], unit length.
        agreement: see :class:`~echolm.primitives.Selected`, FP32 [B, n].
    """

    candidates: list[list[Candidate]]
    valid: NDArray[np.bool_]
    ids: NDArray[np.int64]
    slots: NDArray[np.intp]
    similarity: NDArray[np.float32]
    quality: NDArray[np.float32]
    relevance: NDArray[np.float32]
    request: NDArray[np.float32]
    example: NDArray[np.float32]
    request_sketches: NDArray[np.float32]
    response_sketches: NDArray[np.float32]
    agreement: NDArray[np.float32]


def featurize(
    requests: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    texts: ExampleTexts,
    scale: SimilarityScale,
    min_similarity: float = -1.0,
) -> FeatureBatch:
    """Features of every request with each of its candidates of at least ``min_similarity``.

    Args:
        requests: their transcripts.
        scale: what similarities are relative to.
    """
    eligible = [[c for c in row if c.similarity >= min_similarity] for row in candidates]
    b, n = len(eligible), max(map(len, eligible), default=0)
    valid = np.arange(n) < np.array([len(row) for row in eligible], dtype=np.intp).reshape(b, 1)
    flat = list(chain.from_iterable(eligible))
    ids, slots = np.zeros((b, n), dtype=np.int64), np.zeros((b, n), dtype=np.intp)
    similarity, quality = np.zeros((2, b, n), dtype=np.float32)
    ids[valid] = [c.id for c in flat]
    slots[valid] = texts.slots(flat)
    similarity[valid] = [c.similarity for c in flat]
    quality[valid] = [c.quality for c in flat]
    # Words are those of the last turns. Of what came before them the embedding tells, and so the
    # relevance, by which words that conversations have in common count.
    asked = [last_turn(text) for text in requests]
    # A request without candidates needs no features.
    parsed = [
        words_and_literals(text) if row else (set[str](), set[str]())
        for text, row in zip(asked, eligible, strict=True)
    ]
    lengths = np.log1p(np.array([len(text) for text in asked], dtype=np.float32)).reshape(b, 1)
    literals = np.array([len(p[1]) for p in parsed], dtype=np.float32).reshape(b, 1)
    request = np.zeros((b, len(REQUEST_FEATURES)), dtype=np.float32)
    request[:, 0] = lengths[:, 0] / 10.0 - 0.45
    request[:, 1] = np.minimum(literals[:, 0], 4.0) / 4.0 - 0.5
    example = np.zeros((b, n, len(EXAMPLE_FEATURES)), dtype=np.float32)
    stored = [texts[name].take(slots, axis=0) for name in ("request_sketch", "response_sketch")]
    positions = scale.position(similarity)
    relevances = relevance(positions)
    agreement = np.zeros((b, n), dtype=np.float32)
    computed = (relevances, request, example, *stored, agreement)
    batch = FeatureBatch(eligible, valid, ids, slots, similarity, quality, *computed)
    if n:
        words = [p[0] for p in parsed]
        fits = np.ones((b, n), dtype=np.float32)
        fits[valid] = [c.fit for c in flat]
        follows = [is_conversation(text) for text in requests]
        conversations = np.zeros((b, n), dtype=np.bool_)
        conversations[valid] = [
            of_request or is_conversation(c.request)
            for of_request, row in zip(follows, eligible, strict=True)
            for c in row
        ]
        fits[conversations] *= relevances[conversations]
        _pair_features(batch, texts, positions, words, lengths, literals, fits)
    return batch


def _pair_features(
    batch: FeatureBatch,
    texts: ExampleTexts,
    positions: NDArray[np.float32],
    words: Sequence[set[str]],
    lengths: NDArray[np.float32],
    literals: NDArray[np.float32],
    fits: NDArray[np.float32],
) -> None:
    """Fill in the features of pairs, from the requests' words.

    Args:
        fits: what a common word counts by candidate, FP32 [B, n]; the same words after another
            history are not the same.
        positions: the similarities on their scale, FP32 [B, n].
        lengths: log(1 + characters) of the requests, FP32 [B, 1].
        literals: how many literals each request has, FP32 [B, 1].
    """
    bitmaps, sketches = bitmaps_and_sketches(words)
    valid, slots, responses = batch.valid, batch.slots, batch.response_sketches
    # Candidates whose requests are like this one show what a response should be like.
    consistency = texts["consistency"][slots]
    near = np.maximum(np.matmul(batch.request_sketches, sketches[:, :, None])[:, :, 0], 0.0) * fits
    weight = np.square(np.square(near))
    weight *= valid * (1.2 + consistency)
    total = np.matmul(weight[:, None, :], responses)
    # A response's product with itself is 1, unless it has no words.
    itself = weight * (texts["num_response_words"][slots] > 0)
    support = weight.sum(axis=1, keepdims=True) - weight
    known = support / (support + 0.5)
    per_neighbour = 1.0 / np.maximum(support, 1e-6)
    agreement = (np.matmul(responses, total.transpose(0, 2, 1))[:, :, 0] - itself) * per_neighbour
    agreement = np.minimum(np.maximum(agreement, 0.0), 1.0)
    # A vote of the nearest neighbours, by their meaning. It tells better than a cosine whether an
    # example is the right one: on Banking77 with an AUC of 0.87 to 0.89, for 0.74 to 0.76.
    votes = np.square(np.square(batch.relevance)) * valid
    votes /= np.maximum(votes.sum(axis=1, keepdims=True), 1e-6)
    for_each = np.matmul(responses, np.matmul(votes[:, None, :], responses).transpose(0, 2, 1))
    batch.agreement[:] = np.minimum(np.maximum(2.0 * for_each[:, :, 0] - 1.0, -1.0), 1.0) * valid
    length = texts["response_length"][slots]
    lengths_of_others = (weight * length).sum(axis=1, keepdims=True) - weight * length
    expected = lengths_of_others * per_neighbour
    # What the requests have in common.
    request_words, example_words = popcount(bitmaps)[:, None], texts["num_request_words"][slots]
    common = popcount(bitmaps[:, None, :] & texts["request_bitmap"].take(slots, axis=0)) * fits
    # Cut, so that no odd similarity decides alone.
    positions = np.minimum(np.maximum(positions, -1.0), 2.0)
    nearest = np.where(valid, positions, -1.0).max(axis=1, keepdims=True)
    values: dict[str, NDArray[np.float32] | float] = {
        "prior": log_odds(batch.relevance * batch.quality),
        "constant": 1.0,
        "similarity": positions - 1.0,
        "similarity_margin": positions - nearest,
        "request_containment": _containment(common, request_words),
        "example_containment": _containment(common, example_words),
        "literals_differ": np.minimum(np.abs(texts["num_literals"][slots] - literals), 3.0) / 3.0,
        "consistency": consistency,
        "consensus": 2.0 * (agreement - 1.0) * known,
        "vote": batch.agreement - 1.0,
        "support": known - 0.75,
        "length_deviation": np.minimum(np.abs(length - expected), 1.0) * known,
        "quality": batch.quality - 0.9,
        "request_length_differs": np.minimum(np.abs(texts["request_length"][slots] - lengths), 1.0),
    }
    for k, name in enumerate(EXAMPLE_FEATURES):
        batch.example[:, :, k] = values[name]
    batch.example[~valid] = 0.0
    means = batch.example.sum(axis=1) / np.maximum(valid.sum(axis=1, keepdims=True), 1)
    batch.request[:, -len(_AVERAGED) :] = means[:, _AVERAGED]


def _containment(
    common: NDArray[np.float32], num_words: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The share of a word set that another has too, less 1; 0 for an empty set."""
    return np.asarray((common / np.maximum(num_words, 1.0) - 1.0) * (num_words > 0))
