"""chrF: how far an answer agrees with a reference in its character n-grams (Popović, 2015)."""

from __future__ import annotations


def chrf(answer: str, reference: str) -> float:
    """chrF2 without blank space, by sacrebleu with its defaults, in 0..1."""
    import sacrebleu  # of the extra `evaluate`

    return float(sacrebleu.sentence_chrf(answer, [reference]).score) / 100
