"""Hugging Face checkpoints that older releases of transformers read, too."""

from __future__ import annotations

import json
from pathlib import Path


def readable_by_transformers_4(folder: Path) -> None:
    """Name the tokenizer's class and RoPE's base in a checkpoint as transformers 4 does.

    transformers 5, which writes the checkpoints, reads both; vLLM's and TensorRT-LLM's releases
    bring either.
    """
    for name, changes in {
        "tokenizer_config.json": lambda old: {"tokenizer_class": "PreTrainedTokenizerFast"},
        "config.json": lambda old: {
            "rope_theta": old.get("rope_parameters", old).get("rope_theta", 10_000.0)
        },
    }.items():
        file = folder / name
        old = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**old, **changes(old)}, indent=2) + "\n", encoding="utf-8")
