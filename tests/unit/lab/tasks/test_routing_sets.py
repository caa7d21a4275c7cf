"""Public sets of requests that several LLMs have answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm_lab.tasks.routing_sets import GSM8K_COSTS, load_gsm8k, load_paretobandit

WEAK, STRONG = GSM8K_COSTS


def test_routellms_columns_become_scores_in_the_order_of_cost(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.csv"
    path.write_text(f'prompt,{STRONG},{WEAK}\n"One, two?",True,False\nThree?,True,True\n')
    data = load_gsm8k(path)
    assert data.prompts == ("One, two?", "Three?")
    assert data.llms == (WEAK, STRONG)
    assert data.scores.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert data.costs.tolist() == [pytest.approx(0.24 / 24.7), 1.0]


def test_llms_of_a_json_file_stand_in_the_order_of_their_mean_cost(tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    rows = [
        {"a": (0.9, 4.0), "b": (0.5, 0.5), "c": (0.7, 2.0)},
        {"a": (0.8, 6.0), "b": (0.4, 0.5), "c": (0.6, 0.0)},
    ]
    arms = [{llm: {"reward": r, "cost": c} for llm, (r, c) in row.items()} for row in rows]
    lines = [json.dumps({"prompt": f"{k}?", "arms": row}) for k, row in enumerate(arms)]
    path.write_text("\n".join(lines))
    data = load_paretobandit(path)
    assert data.llms == ("b", "c", "a")
    assert data.costs.tolist() == pytest.approx([0.1, 0.2, 1.0])
    assert data.scores.tolist() == [[0.5, 0.7, 0.9], [0.4, 0.6, 0.8]]


@pytest.mark.parametrize(
    "text", ["", "prompt\nOne?\n", f"prompt,{WEAK},{STRONG}\nOne?,True,maybe\n"]
)
def test_another_csv_file_is_refused_with_what_was_expected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="expected"):
        load_gsm8k(path)


@pytest.mark.parametrize("text", ["", "{", '{"prompt": "One?"}', '{"prompt": "One?", "arms": {}}'])
def test_another_json_file_is_refused_with_what_was_expected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="expected"):
        load_paretobandit(path)
    with pytest.raises(ConfigurationError, match="expected"):
        load_paretobandit(tmp_path / "none.jsonl")
