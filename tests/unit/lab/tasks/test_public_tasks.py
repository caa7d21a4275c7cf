from __future__ import annotations

import json
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm_lab.tasks.public_tasks import (
    PUBLIC_TASKS,
    command_of,
    score_command,
    score_label,
    score_number,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few pairs in the form of each public set."""
    (tmp_path / "nl2bash.nl").write_text("\n".join(f"list the files of {k}" for k in range(20)))
    (tmp_path / "nl2bash.cm").write_text("\n".join(f"ls /{k}" for k in range(20)))
    for part in ("train", "test"):
        rows = "".join(f'"where is card {k}, please",card_{k % 3}\n' for k in range(9))
        (tmp_path / f"banking77_{part}.csv").write_text(f"text,category\n{rows}")
        solved = {"question": "2 and 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}
        (tmp_path / f"gsm8k_{part}.jsonl").write_text(f"{json.dumps(solved)}\n" * 4)
    return tmp_path


@pytest.mark.parametrize("name", PUBLIC_TASKS)
def test_a_task_scores_its_right_answers_with_1(folder: Path, name: str) -> None:
    task = PUBLIC_TASKS[name](folder, 1)
    assert task.examples
    assert task.requests
    assert all(task.score(right, right) == 1.0 for _, right in task.requests)
    assert all(task.score("", right) == 0.0 for _, right in task.requests)
    assert "<<" not in "".join(answer for _, answer in task.examples)


def test_what_is_asked_is_not_shown_and_a_seed_gives_the_order(folder: Path) -> None:
    one, again, other = (PUBLIC_TASKS["nl2bash"](folder, seed) for seed in (1, 1, 2))
    assert not set(one.examples) & set(one.requests)
    assert one.requests == again.requests != other.requests
    assert len(one.examples) + len(one.requests) == 20


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name, task in PUBLIC_TASKS.items():
        with pytest.raises(ConfigurationError, match=f"{name}.*expected a file of a public"):
            task(tmp_path, 1)


def test_a_command_is_taken_out_of_a_code_block() -> None:
    assert command_of("```bash\nls -l\ncd\n```") == "ls -l"
    assert command_of("ls -l\n\nThis lists files.") == "ls -l"
    assert command_of("") == ""
    assert score_command("```\nls -l\n```", "ls -l") == 1.0


@pytest.mark.parametrize(
    ("answer", "score"), [(" Card_arrival.\nbecause", 1.0), ("card", 0.0), ("", 0.0), ("\n", 0.0)]
)
def test_a_label_is_compared_without_case_and_marks(answer: str, score: float) -> None:
    assert score_label(answer, "card_arrival") == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("so 1,200.0 it is\n#### 1,200", 1.0),
        ("#### $1200.00 dollars", 1.0),
        ("first 3, then 1200", 1.0),
        ("1200, no: 3", 0.0),
        ("#### none", 0.0),
    ],
)
def test_the_final_number_counts(answer: str, score: float) -> None:
    assert score_number(answer, "…\n#### 1200") == score
