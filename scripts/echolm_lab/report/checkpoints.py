"""Hugging Face checkpoints that older releases of transformers read, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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


def _change(file: Path, changes: dict[str, Any]) -> None:
    changed = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
