"""chrF: how far an answer agrees with a reference in its character n-grams (Popović, 2015)."""

from __future__ import annotations

from collections import Counter

_ORDER, _BETA = 6, 2.0


def chrf(answer: str, reference: str) -> float:
    """chrF2 in 0..1: F-score of character n-grams, n = 1 to 6, without blank space.

    Recall weighs twice as much as precision; orders that neither text has do not count.
    """
    a, b = ("".join(text.split()) for text in (answer, reference))
    precisions, recalls = [], []
    for n in range(1, _ORDER + 1):
        found, wanted = _ngrams(a, n), _ngrams(b, n)
        if not found and not wanted:
            continue
        common = (found & wanted).total()
        precisions.append(common / found.total() if found else 0.0)
        recalls.append(common / wanted.total() if wanted else 0.0)
    if not precisions:
        return 1.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + _BETA**2) * p * r / (_BETA**2 * p + r) if p + r else 0.0


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[k : k + n] for k in range(len(text) - n + 1))
