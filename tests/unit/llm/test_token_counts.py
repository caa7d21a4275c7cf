from __future__ import annotations

import json
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.llm.tokens import EstimatedTokens, ExactTokens, token_counter
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert json.loads(path.read_text())["truncation"]
    return path


def test_exact_counts_ignore_the_files_truncation(tokenizer_json: Path) -> None:
    for path in (tokenizer_json, tokenizer_json.parent):
        counter = token_counter(path)
        assert isinstance(counter, ExactTokens)
        assert counter.count("a b a b a") == 5
        assert counter.count("") == 0


def test_estimates_grow_with_bytes_and_are_never_zero() -> None:
    counter = token_counter(None)
    assert isinstance(counter, EstimatedTokens)
    assert counter.count("") == 1
    assert counter.count("abcde" * 10) == 21
    assert counter.count("é" * 50) == 41


@pytest.mark.parametrize("name", ["", "missing.json"])
def test_a_missing_tokenizer_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"expected a tokenizer\.json.*json"):
        token_counter(tmp_path / name)
