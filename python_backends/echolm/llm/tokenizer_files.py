"""What the files of a Hugging Face checkpoint say about its tokenizer and its chat template.

They are looked for as ``transformers`` does (``tokenization_utils_base`` of 5.24): the template in
``chat_template.jinja`` before ``tokenizer_config.json``, and tokens there before
``special_tokens_map.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from echolm.errors import ConfigurationError

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of templates: that of a checkpoint with one only, and one for requests with tools."""

_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True)
class TokenizerFiles:
    """What the folder of a tokenizer holds.

    Attributes:
        folder: None if there is none, and nothing is known.
        templates: sources of chat templates by their names.
        named: tokens by their names, such as ``bos_token``; variables of a template.
        special: tokens with a meaning to the LLM.
        added: all tokens that the tokenizer looks for in a text before it splits it up, with
            whether it does so in the normalised text.
        tokenizer: of ``tokenizer.json``; None if there is no such file.
    """

    folder: Path | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    special: frozenset[str] = frozenset()
    added: Mapping[str, bool] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @property
    def added_bos(self) -> str:
        """The token that the tokenizer puts in front of a text by itself; empty if it does not."""
        bos = self.named.get("bos_token", "")
        if self.tokenizer is None or not bos:
            return ""
        first = self.tokenizer.encode("a", add_special_tokens=True).ids[:1]
        return bos if first == [self.tokenizer.token_to_id(bos)] else ""


@cache
def read_tokenizer_files(path: Path) -> TokenizerFiles:
    """Read a folder, or the folder of a file in it; ConfigurationError if a file is unusable.

    The files are read once in a process: the tokenizer of a large vocabulary takes 100 MB.
    """
    folder = path if path.is_dir() else path.parent
    config = _optional_json(folder / "tokenizer_config.json")
    names = {**_optional_json(folder / "special_tokens_map.json"), **config}
    file = tokenizer_json(path)
    description = _optional_json(file)
    tokens = description.get("added_tokens") or ()
    decoder = config.get("added_tokens_decoder")
    tokens = [*tokens, *(decoder.values() if isinstance(decoder, dict) else ())]
    added = {t["content"]: bool(t.get("normalized")) for t in tokens if _content(t)}
    named = {name: _content(names.get(name)) for name in _NAMED}
    extra = names.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= {name: _content(token) for name, token in extra.items()}
    named = {name: token for name, token in named.items() if token}
    special = {t["content"] for t in tokens if _content(t) and t.get("special")}
    return TokenizerFiles(
        folder=folder,
        templates=dict(_templates(folder, config)),
        named=named,
        special=frozenset({*special, *named.values(), *_more_special(names)}),
        added=added,
        tokenizer=_tokenizer(file) if description else None,
    )


def tokenizer_json(path: Path) -> Path:
    """The ``tokenizer.json`` that a folder, or the path of the file itself, stands for."""
    return path / "tokenizer.json" if path.is_dir() else path


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        raise ConfigurationError(
            f"llms.tokenizer: expected a tokenizer of the tokenizers library in {file}, got: "
            f"{error}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _templates(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    value = config.get("chat_template")
    if isinstance(value, str):
        yield DEFAULT, value
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, dict) and isinstance(one.get("template"), str):
                yield str(one.get("name")), one["template"]
    file = folder / "chat_template.jinja"
    if file.is_file():
        yield DEFAULT, read_text(file)
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        yield file.stem, read_text(file)


def read_text(file: Path) -> str:
    """A file of text; ConfigurationError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: expected a readable UTF-8 file, got: {error}") from error


def _optional_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigurationError(f"{file}: expected JSON, got: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _content(token: Any) -> str:
    """A token's text, be it written as a string or as an object; empty if it is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _more_special(names: Mapping[str, Any]) -> Iterator[str]:
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = names.get(key)
        for token in value if isinstance(value, list) else ():
            if text := _content(token):
                yield text
