"""Hugging Face checkpoints: readable by older releases of transformers, or without weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 151_936
"""Of Qwen2.5: reading the output projection is a tenth of a small LLM's step."""


def readable_by_transformers_4(folder: Path) -> None:
    """Name the tokenizer's class and RoPE's base in a checkpoint as transformers 4 does.

    transformers 5, which writes the checkpoints, reads both; vLLM's and TensorRT-LLM's releases
    bring either.
    """
    tokenizer, config = folder / "tokenizer_config.json", folder / "config.json"
    rope = json.loads(config.read_text(encoding="utf-8")).get("rope_parameters") or {}
    _change(tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast"})
    if "rope_theta" in rope:
        _change(config, {"rope_theta": rope["rope_theta"]})


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tokenizer: Path, vocabulary: int = VOCABULARY
) -> None:
    """A folder that an engine loads with ``load_format=dummy``.

    Random weights answer with any token of the vocabulary, and a piece of an answer must have a
    text to be sent, so the tokenizer gets a word for every id that it has none for.

    Args:
        config: the shape's keys of ``config.json``.
        tokenizer: folder of the tokenizer that encodes the prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    known = words["model"]["vocab"]
    known.update({f"word{i}": i for i in range(len(known), vocabulary)})
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    old = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    changes = {"vocab_size": vocabulary, "dtype": "bfloat16", "max_position_embeddings": 4_096}
    (folder / "config.json").write_text(json.dumps({**old, **config, **changes}, indent=2))
    readable_by_transformers_4(folder)


def _change(file: Path, changes: dict[str, Any]) -> None:
    changed = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
