from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from echolm.conversation import Turn, transcript
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


def short_tokenizer(folder: Path, max_tokens: int) -> TextTokenizer:
    return TextTokenizer(folder / "tokenizer.json", max_tokens)


def parts(tokenizer: TextTokenizer, text: str) -> list[str]:
    """What the model sees of a text, part by part."""
    batch = tokenizer.encode([text])
    ids, mask = batch.input_ids[0], batch.attention_mask[0]
    numbers = range(1, int(mask.max()) + 1)
    return [str(tokenizer._tokenizer.decode(ids[mask == number].tolist())) for number in numbers]


def read(tokenizer: TextTokenizer, text: str) -> str:
    """What the model sees of a text as a whole."""
    return parts(tokenizer, text)[0]


def talk(*texts: str) -> str:
    roles = ["user", "assistant"] * len(texts)
    return transcript([Turn(role, text) for role, text in zip(roles, texts, strict=False)])


def test_of_a_long_text_the_beginning_and_the_end_are_seen(fp32_folder: Path) -> None:
    eight = short_tokenizer(fp32_folder, 10)
    assert read(eight, "a b c d e f g h") == "a b c d e f g h"
    assert read(eight, "a b c d e f g h i j") == "a b c d g h i j"
    far = "a b c d " + "middle " * 5_000 + "w x y z"
    assert read(eight, far) == "a b c d w x y z"
    assert eight.unseen("a b c d e f g h") == 0.0
    assert eight.unseen("a b c d e f g h i j") == pytest.approx(0.2)
    assert 0.99 < eight.unseen(far) < 1.0


def test_a_conversation_is_read_as_a_whole_and_its_last_turn_and_what_came_before_apart(
    fp32_folder: Path,
) -> None:
    sixteen = short_tokenizer(fp32_folder, 18)
    assert parts(sixteen, talk("a b", "c d", "x y")) == ["a b c d x y", "x y", "a b c d"]
    assert sixteen.unseen(talk("a b", "c d", "x y")) == 0.0
    # Of each turn before it a quarter of the window at most, of all of them a third.
    long = talk("z z z", "a b c d e f g h", "i j k l m n", "o p q", "x y")
    assert parts(sixteen, long) == ["i n o p q x y", "x y", "i n o p q"]
    assert parts(sixteen, "x y") == ["x y"]


def test_rows_of_several_parts_are_framed_and_padded(fp32_folder: Path) -> None:
    sixteen = short_tokenizer(fp32_folder, 18)
    batch = sixteen.encode([talk("a", "b", "x"), "y"])
    assert batch.attention_mask.tolist() == [[1] * 5 + [2] * 3 + [3] * 4, [1] * 3 + [0] * 9]
    assert (batch.input_ids[0] == 101).tolist() == [k in (0, 5, 8) for k in range(12)]
    assert (batch.input_ids[0] == 102).tolist() == [k in (4, 7, 11) for k in range(12)]


def test_a_long_last_turn_is_seen_whole_if_it_can_be(fp32_folder: Path) -> None:
    eight = short_tokenizer(fp32_folder, 10)
    assert read(eight, talk("a", "b", "s t u v w x")) == "a b s t u v w x"
    assert read(eight, talk("a", "b", "s t u v w x y z")) == "s t u v w x y z"
    # By itself too long, it leaves a quarter to what came before.
    assert read(eight, talk("a", "b", "q r s t u v w x y z")) == "a b q r s x y z"


def test_conversations_that_end_alike_differ(tokenizer: TextTokenizer) -> None:
    texts = [talk(said, "no", "and in May?") for said in ("rain in Rome?", "rain in Oslo?")]
    first, second = tokenizer.encode(texts).input_ids.tolist()
    assert first != second


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
