"""The recorded past: of this workload, and as good as the large LLM is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm_lab.tasks import grade
from echolm_lab.tasks.past import past_items, recorded_past, write_past

COUNT = 3_000


def test_it_holds_the_large_llms_answers_to_the_workloads_requests() -> None:
    past = recorded_past(COUNT)
    assert [interaction.item for interaction in past] == past_items(COUNT)
    scores = [grade(interaction.item, interaction.response) for interaction in past]
    assert sum(scores) / COUNT >= 0.97


def test_fewer_are_the_oldest() -> None:
    assert recorded_past(10) == recorded_past(COUNT)[:10]


def test_a_missing_file_says_how_to_record_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"past: cannot read .*scripts/record_past\.py"):
        recorded_past(1, tmp_path / "none.jsonl")


def test_too_few_interactions_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "past.jsonl"
    (item,) = past_items(1)
    file.write_text(json.dumps({"request": item.text, "response": "fine"}) + "\n")
    assert [interaction.response for interaction in recorded_past(1, file)] == ["fine"]
    with pytest.raises(ConfigurationError, match=r"at least 2 interactions .* got 1; .*--count 2"):
        recorded_past(2, file)


def test_another_workloads_past_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "past.jsonl"
    file.write_text(json.dumps({"request": "another", "response": "fine"}) + "\n")
    with pytest.raises(ConfigurationError, match=r"line 1: expected the request .* 'another'"):
        recorded_past(1, file)


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"request": "no response"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "past.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigurationError, match="line 1: expected an object with"):
        recorded_past(1, file)


def test_a_past_that_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "past.jsonl"
    write_past(file, recorded_past(10))
    assert recorded_past(10, file) == recorded_past(10)
