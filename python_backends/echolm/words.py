"""Words of texts and their hashes, the same for every reader of texts and in every process.

What :mod:`echolm.retrieval.features.texts` and :mod:`echolm.bandit.features` make of the hashes
differs, since learnt weights depend on it.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

_WORD = re.compile(r"\w+")
# Of ASCII, what separates words becomes a space, and capitals become small.
_ASCII_WORDS = bytes(ord(c.lower()) if _WORD.match(c) else 32 for c in map(chr, range(128)))
_ASCII_WORDS += bytes(128)


def words_of(text: str) -> list[str]:
    """All words of a text in order, in lower case. White space and punctuation separate them."""
    if text.isascii():  # most texts are, and this takes half the time
        return text.encode().translate(_ASCII_WORDS).decode().split()
    return _WORD.findall(text.lower())


@lru_cache(maxsize=32_768)
def hash_word(word: str) -> int:
    """32 bits of a word, which Python's own hash() does not give alike in every process."""
    return zlib.crc32(word.encode())
