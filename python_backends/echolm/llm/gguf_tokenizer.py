"""The tokenizer of a GGUF file as the files of a Hugging Face checkpoint.

For byte-level BPE, which most GGUF files have, with the ways to split up a text that are known by
name here, and for SentencePiece's BPE (Llama 2, Mistral, Gemma). Both as in llama.cpp
(``llama-vocab.cpp``), and so as in the checkpoints that the files were made of. (What transformers
5.0 makes of a SentencePiece vocabulary splits up words that are tokens.)
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
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_BLANK = "\u2581"
"""What stands for a blank in the tokens of SentencePiece."""
_NAMES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def is_known(file: GGUFFile) -> bool:
    """Whether :func:`write_tokenizer` can write the file's tokenizer."""
    tokens, scores = file.of_tokenizer("tokens"), file.of_tokenizer("scores")
    if not tokens:
        return False
    if is_byte_level(file):
        return file.of_tokenizer("pre") in _SPLITS and bool(file.of_tokenizer("merges"))
    is_known = file.of_tokenizer("model") == "llama" and bool(scores)
    return is_known and len(scores) == len(tokens) and len(set(scores)) > len(scores) // 2


def is_byte_level(file: GGUFFile) -> bool:
    """Whether its tokens are of bytes."""
    return bool(file.of_tokenizer("model") == "gpt2")


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
    tokenizer = _byte_level(file) if is_byte_level(file) else _sentencepiece(file)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [t for t, k in zip(tokens, kinds, strict=False) if k == kind]
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in added])
    _add_bos(tokenizer, file)
    return tokenizer


def _sentencepiece(file: GGUFFile) -> Tokenizer:
    """Of two tokens that follow each other those are joined whose whole has the highest score."""
    tokens, scores = file.of_tokenizer("tokens"), file.of_tokenizer("scores")
    kinds = file.of_tokenizer("token_type") or [_NORMAL] * len(tokens)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        for end in range(1, len(token)) if kind == _NORMAL else ():
            left, right = token[:end], token[end:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    unknown = file.of_tokenizer("unknown_token_id", 0)
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in merges],
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", _BLANK)]
    made: list[Any] = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.of_tokenizer("add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(_BLANK))
        made.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(made)
    return tokenizer


def _byte_level(file: GGUFFile) -> Tokenizer:
    tokens, split = file.of_tokenizer("tokens"), file.of_tokenizer("pre")
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
    return tokenizer


def _merges(file: GGUFFile) -> list[tuple[str, str, str]]:
    """Pairs of tokens; a blank separates them, and is in no token of byte-level BPE."""
    return [merge.partition(" ") for merge in file.of_tokenizer("merges")]
