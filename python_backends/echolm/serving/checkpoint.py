"""Reads the description of a Hugging Face checkpoint, or of an engine that TensorRT-LLM built."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echolm.errors import ConfigurationError
from echolm.llm.chat_template import BUILT_IN, load_chat_template
from echolm.llm.tokenizer_files import read_tokenizer_files

_SIGNS = {
    "echolm": {"<|system|>", "<|user|>", "<|assistant|>", "<|pad|>", "<|end|>"},
    "chatml": {"<|im_start|>", "<|im_end|>"},
}
"""Tokens by which the built-in template of a checkpoint without one is recognised."""

_ROLE = re.compile("user|assistant", re.IGNORECASE)
"""In the names of tokens of an LLM that knows turns, whose template must be known then."""
PLAIN = "plain"
"""The built-in template of base models."""
BASE_STOP = ("\n",)
"""What ends an answer of a base model, which would go on with further requests."""
_OFF = {"repetition_penalty": 1, "top_p": 1, "top_k": 0}
_RECOMMENDED: Mapping[str, type[float]] = {
    "repetition_penalty": float,
    "top_p": float,
    "top_k": int,
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        tokenizer: its ``tokenizer.json``.
        built: whether it is an engine that TensorRT-LLM built.
        context_length: most tokens that the model can take.
        num_parameters: approximate number of parameters that are active for a token; 0 if the
            configuration does not tell.
        end_ids: ids of the tokens that end an answer.
        token_ids: ids of the tokenizer's added tokens by their text.
    """

    directory: Path
    tokenizer: Path
    built: bool
    context_length: int
    num_parameters: int
    end_ids: frozenset[int]
    token_ids: dict[str, int]

    @classmethod
    def read(cls, directory: Path, tokenizer: Path | None = None) -> Checkpoint:
        """Read a folder; ConfigurationError if a file is missing or unusable.

        Args:
            tokenizer: folder of the tokenizer; None: the checkpoint's folder.
        """
        directory = directory.expanduser().resolve()
        if not directory.is_dir():
            raise ConfigurationError(
                f"checkpoint {directory}: expected a folder, got none; fetch the model first: "
                "`hf download NAME --local-dir DIR`"
            )
        config = read_json(directory / "config.json")
        built = "build_config" in config
        folder = tokenizer.expanduser().resolve() if tokenizer else directory
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigurationError(
                f"checkpoint {directory}: expected {file}, got no such file; name the folder with "
                "the tokenizer: --small-tokenizer, --large-tokenizer"
            )
        added = {
            str(token.get("content")): int(token.get("id", -1))
            for token in read_json(file).get("added_tokens") or ()
        }
        model = config["build_config"] if built else config.get("text_config") or config
        return cls(
            directory=directory,
            tokenizer=file,
            built=built,
            context_length=_context_length(directory, model),
            num_parameters=0 if built else _num_parameters(model),
            end_ids=_end_ids(folder, config, added),
            token_ids=added,
        )

    def chat_template(self, chosen: str, option: str) -> str:
        """The setting ``llms.chat_template``: the chosen one, or empty for the tokenizer's own; if
        it has none, the built-in template whose tokens it has, or that of base models.

        Args:
            option: the option that chooses, for messages.

        Raises:
            ConfigurationError: there is no such template, or it does not suit the tokenizer.
        """
        try:
            if chosen and chosen not in BUILT_IN:
                chosen = str(Path(chosen).expanduser().resolve())
            if not chosen and not read_tokenizer_files(self.tokenizer).templates:
                fitting = [name for name, signs in _SIGNS.items() if signs <= self.token_ids.keys()]
                is_chat = any(_ROLE.search(token) for token in self.token_ids)
                chosen = fitting[0] if fitting else "" if is_chat else PLAIN
            if read_tokenizer_files(self.tokenizer).tokenizer is None:
                raise ConfigurationError(
                    f"expected a tokenizer of the tokenizers library in {self.tokenizer}, got none"
                )
            load_chat_template(chosen, self.tokenizer)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"checkpoint {self.directory}: {error} (with {option})"
            ) from error
        return chosen

    def recommended_sampling(self) -> dict[str, float]:
        """What ``generation_config.json`` recommends, by the names of ``[[llms]]``."""
        file = self.tokenizer.parent / "generation_config.json"
        values = read_json(file) if file.is_file() else {}
        given = {name: values.get(name) for name in _RECOMMENDED}
        return {
            name: _RECOMMENDED[name](value)
            for name, value in given.items()
            if isinstance(value, int | float) and value > 0 and value != _OFF[name]
        }

    def missing_end(self, chat_template: str) -> str:
        """The token that ends a turn in the template, if no answer ends with it; else empty."""
        end = load_chat_template(chat_template, self.tokenizer).facts.end
        return "" if self.token_ids.get(end, -1) in {*self.end_ids, -1} else end


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; ConfigurationError if it is missing or is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        got = error.strerror
        raise ConfigurationError(f"{file}: expected a readable file, got: {got}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file}: expected JSON, got: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _context_length(directory: Path, model: dict[str, Any]) -> int:
    for key in ("max_seq_len", "max_position_embeddings", "n_positions", "max_sequence_length"):
        value = model.get(key)
        if isinstance(value, int) and value > 0:
            return value
    raise ConfigurationError(
        f"{directory / 'config.json'}: expected the context length as max_position_embeddings (of "
        "a built engine: build_config.max_seq_len), got none"
    )


def _num_parameters(model: dict[str, Any]) -> int:
    """Active parameters of a decoder with gated feed-forward layers, or of a mixture of experts."""
    try:
        hidden, layers = int(model["hidden_size"]), int(model["num_hidden_layers"])
        heads = int(model["num_attention_heads"])
        kv_heads = int(model.get("num_key_value_heads") or heads)
        size = int(model.get("head_dim") or hidden // heads)
        experts = model.get("num_experts_per_tok")
        width = int(model.get("moe_intermediate_size") or 0) if experts else 0
        width = (width or int(model["intermediate_size"])) * int(experts or 1)
        attention = 2 * hidden * size * (heads + kv_heads)
        # Of the two matrices over the vocabulary only the output's is multiplied by.
        return layers * (attention + 3 * hidden * width) + int(model["vocab_size"]) * hidden
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return 0


def _end_ids(folder: Path, config: dict[str, Any], added: dict[str, int]) -> frozenset[int]:
    def optional(name: str) -> dict[str, Any]:
        file = folder / f"{name}_config.json"
        return read_json(file) if file.is_file() else {}

    ids: set[int] = set()
    for source in (config, optional("generation")):
        value = source.get("eos_token_id")
        ids.update(value if isinstance(value, list) else [value] if value is not None else [])
    token = optional("tokenizer").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text in added:
        ids.add(added[text])
    return frozenset(ids)
