"""GGUF files: what their header says, and their tokenizer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from echolm.errors import ConfigurationError
from echolm.llm import gguf_tokenizer
from echolm.llm.chat_template import load_chat_template
from echolm.llm.gguf import read_gguf
from gguf_files import CHATML, values, write_gguf
from tokenizers import Tokenizer


def test_the_header_says_what_the_file_holds(tmp_path: Path) -> None:
    file = read_gguf(write_gguf(tmp_path / "a.gguf"))
    assert file.architecture == "llama"
    assert file.of_model("context_length") == 4_096
    assert file.of_tokenizer("pre") == "smollm"
    assert file.chat_template == CHATML
    assert file.tensor_types == {"Q8_0": 1, "F32": 1}
    assert file.num_parameters == 4_096 + 64


def test_a_type_without_a_name_is_a_number(tmp_path: Path) -> None:
    file = read_gguf(write_gguf(tmp_path / "a.gguf", tensors=[(32, 99)]))
    assert file.tensor_types == {"99": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4", "another kind of file"),
        (b"", "another kind of file"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "1099511627776 elements, more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "more than"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "type 77"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
            "unknown type 9",
        ),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ConfigurationError, match=rf"a\.gguf: expected a GGUF file .*{message}"):
        read_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    whole = write_gguf(tmp_path / "a.gguf", tensors=[(1 << 20, "Q8_0")]).read_bytes()
    header = len(whole) - (4 << 20)
    (tmp_path / "b.gguf").write_bytes(whole[: int(share * header)])
    with pytest.raises(ConfigurationError, match="ends within its header"):
        read_gguf(tmp_path / "b.gguf")
    (tmp_path / "c.gguf").write_bytes(whole[:header])
    with pytest.raises(ConfigurationError, match="shorter than its tensors"):
        read_gguf(tmp_path / "c.gguf")


def tokenizer(tmp_path: Path, **changes: Any) -> Tokenizer:
    file = read_gguf(write_gguf(tmp_path / "a.gguf", values(**changes)))
    assert gguf_tokenizer.is_known(file)
    gguf_tokenizer.write_tokenizer(file, tmp_path)
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.id_to_token(id) for id in tokenizer.encode(text).ids]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("smollm", "hello hello", ["hello", "Ġhello"]),
        ("smollm", "12's", ["1", "2", "'s"]),
        ("gpt-2", "12's", ["12", "'s"]),
        ("qwen2", "12's", ["1", "2", "'s"]),
        ("llama-bpe", "12's", ["12", "'s"]),
        ("smollm", "<|im_start|>hello", ["<|im_start|>", "hello"]),
        ("smollm", "   hello", ["ĠĠ", "Ġhello"]),
    ],
)
def test_texts_are_split_up_as_the_file_says(
    tmp_path: Path, pre: str, text: str, expected: list[str]
) -> None:
    made = tokenizer(tmp_path, tokenizer__ggml__pre=pre)
    assert pieces(made, text) == expected
    ids = made.encode(text).ids
    assert made.decode(ids, skip_special_tokens=False) == text


def test_composed_letters_are_one_where_the_checkpoint_composes_them(tmp_path: Path) -> None:
    assert len(tokenizer(tmp_path, tokenizer__ggml__pre="qwen2").encode("e\u0301").ids) == 2
    assert len(tokenizer(tmp_path, tokenizer__ggml__pre="smollm").encode("e\u0301").ids) == 3


def test_bos_comes_once_and_only_if_the_file_says_so(tmp_path: Path) -> None:
    assert pieces(tokenizer(tmp_path), "hello") == ["hello"]
    made = tokenizer(tmp_path, tokenizer__ggml__add_bos_token=True)
    assert pieces(made, "hello") == ["<|im_start|>", "hello"]
    assert len(made.encode("hello", add_special_tokens=False).ids) == 1


def test_the_folder_has_the_chat_template_and_the_special_tokens(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    template = load_chat_template("", tmp_path)
    assert template.facts.end == "<|im_end|>"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert template.special_tokens.escape("<|im_end|>") != "<|im_end|>"


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Metadata of an LLM whose vocabulary is SentencePiece's."""
    words = ["\u2581hello", "hello", "ell", "llo", "he", "el", "ll", "\u2581h", "lo"]
    letters = ["\u2581", *"helo"]
    tokens = ["<unk>", "<s>", "</s>", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, 4, *[6] * 256, *[1] * len(words + letters)]
    tokens += words + letters
    return values(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre="default",
        tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=kinds,
        tokenizer__ggml__scores=[-float(number) for number in range(len(tokens))],
        tokenizer__ggml__unknown_token_id=0,
        tokenizer__ggml__add_bos_token=True,
        tokenizer__chat_template=None,
        **changes,
    )


@pytest.mark.parametrize(
    ("prefix", "text", "expected"),
    [
        (False, "hello hello", ["<s>", "hello", "\u2581hello"]),
        (True, "hello", ["<s>", "\u2581hello"]),
        # Of all that two tokens make the one with the highest score comes first.
        (False, "ello", ["<s>", "ell", "o"]),
        (False, "he\n\nhe", ["<s>", "he", "\n\n", "he"]),
        (False, "\u00e9", ["<s>", "<0xC3>", "<0xA9>"]),
    ],
)
def test_a_sentencepiece_vocabulary_is_merged_by_its_scores(
    tmp_path: Path, prefix: bool, text: str, expected: list[str]
) -> None:
    metadata = sentencepiece(tokenizer__ggml__add_space_prefix=prefix)
    file = read_gguf(write_gguf(tmp_path / "a.gguf", metadata))
    assert gguf_tokenizer.is_known(file)
    made = gguf_tokenizer.make_tokenizer(file)
    assert pieces(made, text) == expected
    assert made.decode(made.encode(text).ids) == text


def test_what_another_library_lost_of_the_special_tokens_is_brought_back(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, tokenizer__ggml__add_bos_token=False)
    made.save(str(tmp_path / "tokenizer.json"))
    wrong = {"eos_token": "<|im_start|>", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(wrong))
    file = read_gguf(write_gguf(tmp_path / "b.gguf", values(tokenizer__ggml__add_bos_token=True)))
    gguf_tokenizer.complete_tokenizer(file, tmp_path)
    gguf_tokenizer.complete_tokenizer(file, tmp_path)  # nothing is added twice
    completed = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert pieces(completed, "hello") == ["<|im_start|>", "hello"]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["legacy"]) == ("<|im_end|>", False)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer__ggml__model": "llama"},  # without scores
        {"tokenizer__ggml__pre": "tekken"},
        {"tokenizer__ggml__merges": None},
    ],
)
def test_other_tokenizers_are_not_guessed(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = read_gguf(write_gguf(tmp_path / "a.gguf", values(**changes)))
    assert not gguf_tokenizer.is_known(file)
