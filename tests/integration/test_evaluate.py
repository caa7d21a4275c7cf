"""The evaluation as a user runs it, only much shorter, each experiment on its own servers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(650)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "evaluate.py"
EXPERIMENTS = {"learning", "corruption", "drift", "burst"}
POLICIES = {
    *("always_large", "always_small", "random_examples", "similar_examples", "semantic_cache"),
    *("copy_nearest", "static_router", "echolm"),
}


@dataclass(frozen=True)
class Evaluation:
    """What one run left."""

    done: subprocess.CompletedProcess[str]
    report: dict[str, Any]
    plots: Path

    def figures(self, experiment: str) -> dict[str, Any]:
        [figures] = self.report["experiments"][experiment]["seeds"].values()
        assert isinstance(figures, dict)
        return figures


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    directory = tmp_path_factory.mktemp("evaluation")
    output = directory / "evaluation.json"
    trace = directory / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:15:{s:02d}.5000000,10,20\n" for s in range(60)),
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--quick", f"--output={output}"),
            f"--trace={trace}",
        ],
        env={**os.environ, "COLUMNS": "100"},
        cwd=directory,  # anywhere
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr
    report = json.loads(output.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return Evaluation(done, report, directory / "plots")


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield float(value)


def test_every_experiment_gives_checks(evaluation: Evaluation) -> None:
    assert set(evaluation.report["experiments"]) == EXPERIMENTS
    for name, experiment in evaluation.report["experiments"].items():
        assert experiment["checks"], name
        for row in experiment["checks"]:
            assert {"measure", "target", "value", "holds", "seeds"} <= row.keys()
            assert isinstance(row["holds"], bool)
    assert all(math.isfinite(number) for number in numbers(evaluation.report))


def test_all_policies_answer_the_same_requests(evaluation: Evaluation) -> None:
    rows = {row["policy"]: row for row in evaluation.figures("learning")["policies"]}
    assert rows.keys() - {"semantic_cache_safe"} == POLICIES
    assert len({row["requests"] for row in rows.values()}) == 1
    assert {row["failed"] for row in rows.values()} == {0}
    for row in rows.values():
        assert 0 <= row["win_rate"] <= 1
        assert 0 <= row["offload_share"] <= 1
        assert row["throughput"] > 0
    large, small = rows["always_large"], rows["always_small"]
    assert (large["win_rate"], large["offload_share"]) == (0.5, 0.0)
    assert (small["offload_share"], rows["random_examples"]["offload_share"]) == (1.0, 1.0)
    assert large["mean_score"] > small["mean_score"]


def test_no_request_is_lost_in_the_burst(evaluation: Evaluation) -> None:
    figures = evaluation.figures("burst")
    assert figures["errors"] == []
    assert sum(point["requests"] for point in figures["timeline"]) == figures["requests"]


def test_corrupted_examples_and_the_worse_llm_are_what_they_must_be(evaluation: Evaluation) -> None:
    corruption = evaluation.figures("corruption")
    assert corruption["corrupted_examples"] == round(0.2 * 24)
    assert corruption["ranking"]["ratings"] > 0
    assert [phase["name"] for phase in evaluation.figures("drift")["phases"]] == [
        "new intents",
        "a worse small LLM",
    ]


def test_it_draws_plots_and_ends_with_one_json_line(evaluation: Evaluation) -> None:
    drawn = {file.stem for file in evaluation.plots.glob("*.png")}
    assert drawn == {"frontier", "learning", "burst", "drift"}
    last = json.loads(evaluation.done.stdout.splitlines()[-1])
    assert last["quick"] is True
    assert last["checks"].keys() == EXPERIMENTS
    assert evaluation.report["versions"]["echolm"]
    assert evaluation.report["host"]["cores"] >= 1


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--experiments=learning,flying"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "flying" in done.stderr
