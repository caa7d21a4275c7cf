"""The tokenizer of a GGUF file as the files of a Hugging Face checkpoint.

For byte-level BPE, which most GGUF files have, with the ways to split up a text that are known by
name here. They are those of llama.cpp (``llama-vocab.cpp``), and so of the checkpoints that the
files were made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from echolm.llm.gguf import GGUFFile

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITS = {
    "gpt-2": _GPT2,
    "smollm": _GPT2,
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}",
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}",
}
"""How a text is split up, by ``tokenizer.ggml.pre``."""
_DIGITS_APART = ("smollm",)
_COMPOSED = ("qwen2",)
"""Of which texts are in Unicode's form NFC first."""
_IGNORES_MERGES = ("llama-bpe",)
_CONTROL, _USER_DEFINED = 3, 4
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def is_known(file: GGUFFile) -> bool:
    """Whether :func:`write_tokenizer` can write the file's tokenizer."""
    is_bpe = file.of_tokenizer("model") == "gpt2" and file.of_tokenizer("pre") in _SPLITS
    return is_bpe and bool(file.of_tokenizer("tokens")) and bool(file.of_tokenizer("merges"))


def write_tokenizer(file: GGUFFile, directory: Path) -> None:
    """Write ``tokenizer.json``, and ``tokenizer_config.json`` with the chat template if any.

    Args:
        file: of which :func:`is_known` is true.
    """
    make_tokenizer(file).save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_config(file, directory, config)


def complete_tokenizer(file: GGUFFile, directory: Path) -> None:
    """Have the file's special tokens in a tokenizer that another library has made of it.

    transformers (5.0) loses that it puts a token in front of every text, and names some wrongly.
    """
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    number = file.of_tokenizer("bos_token_id")
    if tokenizer.encode("a").ids[:1] != [number]:
        _add_bos(tokenizer, file)
        tokenizer.save(str(path))
    config = directory / "tokenizer_config.json"
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    _write_config(file, directory, known)


def _write_config(file: GGUFFile, directory: Path, config: Mapping[str, Any]) -> None:
    tokens = file.of_tokenizer("tokens")
    named = {short: file.of_tokenizer(f"{name}_token_id") for name, short in _NAMES.items()}
    values = {
        **config,
        **{
            f"{short}_token": tokens[number]
            for short, number in named.items()
            if isinstance(number, int) and 0 <= number < len(tokens)
        },
    }
    if file.chat_template:
        values["chat_template"] = file.chat_template
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(f"{text}\n", encoding="utf-8")


def _add_bos(tokenizer: Tokenizer, file: GGUFFile) -> None:
    """Have it put BOS in front of every text, if the file says so."""
    number = file.of_tokenizer("bos_token_id")
    if file.of_tokenizer("add_bos_token") and number is not None:
        bos = file.of_tokenizer("tokens")[number]
        tokenizer.post_processor = TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, number)]
        )


def make_tokenizer(file: GGUFFile) -> Tokenizer:
    """The tokenizer, with its special tokens and what it puts in front of a text."""
    tokens, kinds = file.of_tokenizer("tokens"), file.of_tokenizer("token_type") or []
    split = file.of_tokenizer("pre")
    tokenizer = Tokenizer(
        BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[(left, right) for left, _, right in _merges(file)],
            ignore_merges=split in _IGNORES_MERGES,
        )
    )
    if split in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split in _DIGITS_APART:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.Split(Regex(_SPLITS[split]), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [t for t, k in zip(tokens, kinds, strict=False) if k == kind]
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in added])
    _add_bos(tokenizer, file)
    return tokenizer


def _merges(file: GGUFFile) -> list[tuple[str, str, str]]:
    """Pairs of tokens; a blank separates them, and is in no token of byte-level BPE."""
    return [merge.partition(" ") for merge in file.of_tokenizer("merges")]
