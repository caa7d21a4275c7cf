"""Texts of a batch one after another in one sequence, in place of rows padded to the longest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echolm.embedding.session import Ids

CAPACITY = 128
"""Tokens of one call, unless a single text has more. Attention is computed between all tokens of a
call: with this many it is still small beside the rest, and there is little left to gain."""
_STEP, _LONG_STEP = 16, 64
_HIDDEN = np.float32(-10_000)


def call_size(tokens: int) -> int:
    """Length of the sequence that holds so many tokens: only few lengths occur."""
    step = _STEP if tokens <= CAPACITY else _LONG_STEP
    return -(-tokens // step) * step


def bins(lengths: Ids) -> list[NDArray[np.intp]]:
    """Rows of these lengths by call, each row once: first fit, longest rows first."""
    room: list[int] = []
    members: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[row])
        fitting = next((i for i, left in enumerate(room) if left >= length), None)
        if fitting is None:
            room.append(max(CAPACITY, call_size(length)) - length)
            members.append([row])
        else:
            room[fitting] -= length
            members[fitting].append(row)
    return [np.asarray(rows, np.intp) for rows in members]


@dataclass(frozen=True)
class Packed:
    """n texts as one sequence of ``size`` tokens, the last of which may be padding.

    Attributes:
        ids, positions: INT64 [tokens], of the tokens without the padding.
        starts: INT64 [n], where each text begins.
        attention_bias: FP32 [1, 1, size, size], hides the tokens of other texts.
    """

    size: int
    ids: Ids
    positions: Ids
    starts: Ids
    attention_bias: NDArray[np.float32]

    @classmethod
    def of(cls, input_ids: Ids, attention_mask: Ids) -> Packed:
        """Pack rows: both INT64 [n, seq], with a 1 or more in each row of the mask."""
        rows, positions = np.nonzero(attention_mask)
        size = call_size(len(rows))
        text = np.full(size, -1)
        text[: len(rows)] = rows
        bias = np.where(text[:, None] == text, np.float32(0), _HIDDEN)
        starts = np.searchsorted(rows, np.arange(len(input_ids)))
        return cls(size, input_ids[rows, positions], positions, starts, bias[None, None])

    def means(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """FP32 [n, D], the mean vector of each text's tokens, from FP32 [size, D] of all."""
        count = len(self.ids)
        lengths = np.diff(self.starts, append=count)
        means: NDArray[np.float32] = np.add.reduceat(vectors[:count], self.starts, axis=0)
        means /= lengths[:, None].astype(np.float32)
        return means
