"""Checkpoints that transformers 5 wrote, made readable by 4.57, too."""

from __future__ import annotations

import json
from pathlib import Path

from echolm_lab.models.checkpoints import readable_by_transformers_4


def test_class_and_rope_base_are_named_as_transformers_4_names_them(tmp_path: Path) -> None:
    rope = {"rope_theta": 500.0, "rope_type": "default"}
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "rope_parameters": rope}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", "eos_token": "<|end|>"})
    )
    readable_by_transformers_4(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "hidden_size": 8,
        "rope_parameters": rope,
        "rope_theta": 500.0,
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
    }
