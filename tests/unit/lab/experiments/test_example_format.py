from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from echolm.conversation import Turn
from echolm.errors import ConfigurationError
from echolm_lab.experiments.example_format import (
    EXAMPLES,
    FORMS,
    SYSTEM,
    command_in,
    kept_scores,
    trials,
)
from numpy.typing import NDArray

PAIRS = [(f"{word} {k}", f"do {word} {k}") for word in ("list", "sort") for k in range(8)]


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Requests that begin alike are near each other."""
    return np.array([[1.0, 0.0] if t.startswith("list") else [0.0, 1.0] for t in texts], np.float32)


def test_examples_are_the_nearest_other_requests() -> None:
    for trial in trials(PAIRS, embed, count=10, earlier=0, seed=1):
        [asked] = trial.turns
        assert len(trial.examples) == EXAMPLES
        assert all(request[:4] == asked.text[:4] for request, _ in trial.examples)
        assert asked.text not in [request for request, _ in trial.examples]
        assert trial.reference == f"do {asked.text}"


def test_earlier_requests_are_the_same_for_all_forms_and_come_before_the_request() -> None:
    [trial] = trials(PAIRS, embed, count=1, earlier=2, seed=1)
    assert [turn.role for turn in trial.turns] == ["user", "assistant"] * 2 + ["user"]
    for name, form in FORMS.items():
        system, *turns = form(trial.turns, trial.examples)
        assert system.text.startswith(SYSTEM)
        assert turns[-1].text.endswith(trial.turns[-1].text)
        shown = "\n".join(turn.text for turn in [system, *turns])
        assert (trial.examples[0][1] in shown) == (name != "none")


def test_what_is_asked_was_not_answered_before() -> None:
    few = [*PAIRS[:3], ("LIST 0", "do it")]
    for trial in trials(few, embed, count=4, earlier=2, seed=1):
        *earlier, asked = trial.turns
        assert asked.text.lower() not in [turn.text.lower() for turn in earlier]


def test_kept_answers_of_another_llm_or_to_other_requests_are_refused(tmp_path: Path) -> None:
    file, made_by = tmp_path / "answers.jsonl", {"llm": "small", "seed": 1, "pool": 5}
    assert kept_scores(file, made_by) == {}
    row = {"task": "one turn", "number": 3, "form": "block", "score": 0.5, "answer": "ls"}
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
    assert kept_scores(file, made_by) == {("one turn", 3, "block"): 0.5}
    for change in ({"llm": "large"}, {"seed": 2}, {"pool": 6}):
        with pytest.raises(ConfigurationError, match="--output"):
            kept_scores(file, {**made_by, **change})
    file.write_text(json.dumps(row) + "\n")  # of a version that did not say what answered
    with pytest.raises(ConfigurationError, match="--output"):
        kept_scores(file, made_by)


def test_forms_put_examples_where_they_say() -> None:
    asked, examples = (Turn("user", "list 1"),), (("list 2", "do list 2"),)
    assert [t.role for t in FORMS["turns"](asked, examples)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert "do list 2" in FORMS["block"](asked, examples)[1].text
    assert "do list 2" in FORMS["system"](asked, examples)[0].text


def test_a_command_is_read_without_its_fence() -> None:
    assert command_in("ls -l\n") == "ls -l"
    assert command_in("Try this:\n```bash\nls -l\n```\nDone") == "ls -l"
    assert command_in("```\nls -l\n```") == "ls -l"
    assert command_in("```ls -l```") == "ls -l"
