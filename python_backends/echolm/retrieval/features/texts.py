"""What a text says by its words: ordinary words, literal values, and word sets as small arrays."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from echolm.words import hash_word, words_of

MAX_WORDS = 400
"""Words of a text that are read; more tell nothing new of what it is about."""
BITMAP_BITS = 512
SKETCH_SIZE = 128

_QUOTED = re.compile(r"\"([^\"\n]{1,80})\"|`([^`\n]{1,80})`")
_MARKS = ".,;:!?()[]{}<>\"'`"
_LITERAL_SIGNS = re.compile(r"[0-9@/\\_#$]|\w\.\w")
_POPCOUNT = np.array([bin(i).count("1") for i in range(1 << 16)], dtype=np.uint8)


def words_and_literals(text: str) -> tuple[set[str], set[str]]:
    """The distinct ordinary words of a text, and its literal values, all in lower case.

    Literals are what a request is filled in with: tokens that hold digits or signs of paths,
    addresses and identifiers, names (a capital inside a sentence) and quoted text.
    """
    literals: set[str] = set()
    if '"' in text or "`" in text:
        literals.update(next(filter(None, groups)).lower() for groups in _QUOTED.findall(text))
    words: set[str] = set()
    starts_sentence = True
    for raw in text.split()[:MAX_WORDS]:
        if raw.isalpha() and raw.islower():
            words.add(raw)
            starts_sentence = False
            continue
        token = raw.strip(_MARKS)
        is_name = bool(token) and not token.islower() and not token.isupper()
        if (is_name and not starts_sentence) or _LITERAL_SIGNS.search(token):
            literals.add(token.lower())
        else:
            words.update(words_of(token))
        starts_sentence = raw[-1] in ".!?:"
    return words, literals


def popcount(bitmaps: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Number of bits that are set, over the last axis."""
    # A product with ones is several times faster than sum() over so short an axis.
    counts = _POPCOUNT.take(bitmaps).astype(np.float32)
    return np.asarray(counts @ np.ones(bitmaps.shape[-1], dtype=np.float32))


def bitmaps_and_sketches(
    texts: Sequence[Collection[str]],
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Two forms of the word sets of n texts: bits, UINT16 [n, BITMAP_BITS / 16], and sketches.

    Sketches are made by signed feature hashing, FP32 [n, SKETCH_SIZE], of length 1 unless there are
    no words: the product of two estimates the cosine of the two sets.
    """
    n = len(texts)
    hashes = np.array([hash_word(word) for words in texts for word in words], dtype=np.int64)
    rows = np.repeat(np.arange(n), [len(words) for words in texts])
    bits = np.zeros((n, BITMAP_BITS), dtype=np.bool_)
    bits[rows, hashes % BITMAP_BITS] = True
    bitmaps = np.packbits(bits, axis=1, bitorder="little").view(np.uint16)
    places = rows * SKETCH_SIZE + (hashes >> 8) % SKETCH_SIZE
    signs = np.where(hashes & 0x4000_0000, 1.0, -1.0)
    sums = np.bincount(places, signs, n * SKETCH_SIZE).reshape(n, SKETCH_SIZE)
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    return bitmaps, (sums / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
