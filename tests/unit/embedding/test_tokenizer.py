from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from echolm.embedding import TextTokenizer
from echolm.errors import ConfigurationError, InvalidRequestError

from .conftest import Reference


def test_tokens_equal_those_of_the_reference_implementation(
    tokenizer: TextTokenizer, reference: Reference
) -> None:
    batch = tokenizer.encode(reference.texts)
    for row, expected in enumerate(reference.input_ids):
        assert batch.input_ids[row][batch.attention_mask[row] == 1].tolist() == expected


def test_a_batch_is_padded_to_its_longest_text(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.encode(["one", "one two three"])
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    assert batch.input_ids.tolist() == [[101, 2028, 102, 0, 0], [101, 2028, 2048, 2093, 102]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_long_text_is_cut_to_the_limit_and_keeps_its_special_tokens(
    tokenizer: TextTokenizer,
) -> None:
    batch = tokenizer.encode(["word " * 1000])
    assert batch.input_ids.shape == (1, 256)
    assert batch.input_ids[0, 0] == 101
    assert batch.input_ids[0, -1] == 102


def test_the_limit_is_configurable(fp32_folder: Path) -> None:
    short = TextTokenizer(fp32_folder / "tokenizer.json", max_tokens=8)
    assert short.encode(["word " * 100]).input_ids.shape == (1, 8)


def test_empty_text_has_its_special_tokens(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode([""]).input_ids.tolist() == [[101, 102]]


@pytest.mark.parametrize(
    "texts", [[], "one text", [b"bytes"], ["fine", None], ["lone \ud800 surrogate"]]
)
def test_what_is_not_a_list_of_texts_is_refused(tokenizer: TextTokenizer, texts: list[str]) -> None:
    with pytest.raises(InvalidRequestError):
        tokenizer.encode(texts)


def test_a_missing_or_broken_file_or_a_tiny_limit_is_a_configuration_error(
    fp32_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="build_embedder"):
        TextTokenizer(tmp_path / "tokenizer.json", 256)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is not a tokenizer"):
        TextTokenizer(tmp_path / "tokenizer.json", 256)
    with pytest.raises(ConfigurationError, match="expected more than 2, got 2"):
        TextTokenizer(fp32_folder / "tokenizer.json", 2)


def test_threads_may_share_one_tokenizer(tokenizer: TextTokenizer) -> None:
    batches = [[f"text number {i}", "word " * i] for i in range(64)]
    alone = [tokenizer.encode(texts).input_ids.tolist() for texts in batches]
    with ThreadPoolExecutor(8) as pool:
        together = [batch.input_ids.tolist() for batch in pool.map(tokenizer.encode, batches)]
    assert together == alone
