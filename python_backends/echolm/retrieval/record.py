"""What a rating needs to know of a selection; it travels as text in the feedback token."""

from __future__ import annotations

import base64
import struct
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from echolm.learning.learner import OutdatedError

K = TypeVar("K")
V = TypeVar("V")

NONE = -1
"""The value of ``dropped`` if no example was dropped, and of an unknown count in a text."""

RANK_FEATURES = 2
"""What is kept of each of a request's best candidates: its utility and its agreement."""

_VERSION = 3
_HEADER = struct.Struct("<5Bbq")


@dataclass(frozen=True)
class SelectionRecord:
    """One request's selected examples as the utility model saw them.

    Attributes:
        request: features of the request, FP32 [r]; they travel as FP16.
        ids: ids of the k examples.
        features: features of the examples, FP32 [k, e]; they travel as FP16.
        tokens: how many tokens each example takes.
        dropped: id of the example that was dropped at random (leave-one-out), or NONE.
        count: how many of the best candidates the request was to get; None if nothing can be
            learnt of that, since the number is fixed, an example was dropped, or the caller chose
            the LLM.
        ranked: utility and agreement of the candidates it could have got, the best first, FP32
            [n, RANK_FEATURES]; they travel as FP16.
    """

    request: NDArray[np.float32]
    ids: tuple[int, ...]
    features: NDArray[np.float32]
    tokens: tuple[int, ...]
    dropped: int = NONE
    count: int | None = None
    ranked: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, RANK_FEATURES), dtype=np.float32)
    )

    def of_used(self, ids: Collection[int]) -> SelectionRecord:
        """The record of those examples that came into the prompt."""
        kept = [k for k, i in enumerate(self.ids) if i in ids]
        used = tuple(self.ids[k] for k in kept)
        tokens = tuple(self.tokens[k] for k in kept)
        return replace(self, ids=used, features=self.features[kept], tokens=tokens)

    def dump(self) -> str:
        """The record as URL-safe text, about 45 characters an example."""
        k, e = self.features.shape
        count = NONE if self.count is None else self.count
        numbers = (k, e, len(self.request), len(self.ranked), count, self.dropped)
        data = (
            _HEADER.pack(_VERSION, *numbers)
            + np.asarray(self.ids, dtype="<i8").tobytes()
            + np.asarray(self.tokens, dtype="<u4").tobytes()
            + self.request.astype("<f2").tobytes()
            + self.features.astype("<f2").tobytes()
            + self.ranked.astype("<f2").tobytes()
        )
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")

    @classmethod
    def load(cls, text: str) -> SelectionRecord:
        """The record that :meth:`dump` made a text of.

        Raises:
            OutdatedError: an earlier version made it, whose features meant something else.
            ValueError: it is none.
        """
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            version, k, e, r, n, count, dropped = _HEADER.unpack_from(data)
        except (ValueError, struct.error) as error:
            raise ValueError(f"selection: damaged: {error}") from error
        if 0 < version < _VERSION:
            raise OutdatedError(f"selection: of version {version}, now {_VERSION}")
        if version != _VERSION:
            raise ValueError(f"selection: expected version {_VERSION}, got {version}")
        sizes = (_HEADER.size, 8 * k, 4 * k, 2 * r, 2 * k * e, 2 * n * RANK_FEATURES)
        if sum(sizes) != len(data):
            raise ValueError(f"selection: expected {sum(sizes)} bytes, got {len(data)}")
        starts = np.cumsum(sizes).tolist()
        ids = np.frombuffer(data, "<i8", k, starts[0])
        tokens = np.frombuffer(data, "<u4", k, starts[1])
        request = np.frombuffer(data, "<f2", r, starts[2]).astype(np.float32)
        features = np.frombuffer(data, "<f2", k * e, starts[3]).astype(np.float32).reshape(k, e)
        ranked = np.frombuffer(data, "<f2", n * RANK_FEATURES, starts[4]).astype(np.float32)
        if not all(np.isfinite(values).all() for values in (request, features, ranked)):
            raise ValueError("selection: expected finite features")
        if not NONE <= count <= n:
            raise ValueError(f"selection: expected at most {n} examples, got {count}")
        return cls(
            request,
            tuple(ids.tolist()),
            features,
            tuple(tokens.tolist()),
            dropped,
            None if count == NONE else count,
            ranked.reshape(n, RANK_FEATURES),
        )


def used_selection(text: str, selected: Sequence[int], used: Sequence[int], by_router: bool) -> str:
    """A record's text when it is known which of the selected examples came into the prompt.

    The text is opened only if something in it has to change.

    Args:
        text: a :meth:`SelectionRecord.dump`, or empty.
        selected, used: ids of the examples in the record, and of those that came into the prompt.
        by_router: whether the router chose the LLM. What an LLM of the caller's choice makes of a
            selection is not what the router would, so it says nothing of how many it should hold.

    Raises:
        ValueError: the record had to be opened, and is damaged.
    """
    if not text or (by_router and len(used) == len(selected)):
        return text
    record = SelectionRecord.load(text).of_used(set(used))
    return (record if by_router else replace(record, count=None)).dump()


# Several models learn from the same event, one right after the other.
_load_once = lru_cache(maxsize=2)(SelectionRecord.load)


def selection_of(answer: Mapping[str, Any]) -> SelectionRecord | None:
    """The selection behind an answer, by its description; None if there was none.

    Raises:
        OutdatedError: the record is of a version whose features meant something else.
        ValueError: the record is damaged.
    """
    text = answer.get("selection")
    return _load_once(text) if text else None


def remember(learned: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Keep what was learnt last; above ``most`` entries the oldest are forgotten."""
    learned[key] = value
    learned.move_to_end(key)
    while len(learned) > most:
        learned.popitem(last=False)
