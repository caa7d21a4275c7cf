from __future__ import annotations

import pytest
from echolm_lab.tasks.chrf import chrf

pytest.importorskip("sacrebleu")


def test_the_same_text_scores_1_and_texts_without_a_common_character_0() -> None:
    assert chrf("ls -l /tmp", "ls  -l /tmp\n") == 1.0
    assert chrf("abc", "xyz") == 0.0
    assert chrf("", "xyz") == 0.0


def test_recall_weighs_more_than_precision() -> None:
    # Unigrams and bigrams of "ab" against "abab": precision 1 and 1, recall 1/2 and 1/3. There are
    # no longer n-grams in one of the texts.
    p, r = 1.0, (1 / 2 + 1 / 3) / 2
    assert chrf("ab", "abab") == pytest.approx(5 * p * r / (4 * p + r))
    assert chrf("abab", "ab") > chrf("ab", "abab")
