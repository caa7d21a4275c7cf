"""``echolm estimate``: a log file in, estimates of policies out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.bandit.features import DIMENSION, HAS_EXAMPLES, SCALARS
from echolm.learning.feedback import RATING, describe
from echolm.learning.sqlite_log import SQLiteEventLog
from echolm.primitives import Decision
from solicited_log import TRUTH, fill

BEST_SIMILARITY = SCALARS.index("best_similarity")


def estimate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echolm", "estimate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_estimates_from_a_log_file(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "events.sqlite"
    log = SQLiteEventLog(path)
    for n in range(200):
        x, similarity = np.zeros(DIMENSION, dtype=np.float32), rng.random()
        x[[0, HAS_EXAMPLES, BEST_SIMILARITY]] = 1, 1, 4 * similarity - 2
        llm, propensity = ("small_llm", 0.8) if rng.random() < 0.8 else ("large_llm", 0.2)
        score = float(np.clip((0.1 + 0.9 * similarity if llm == "small_llm" else 0.9), 0, 1))
        decision = Decision(str(n), "t", llm, x, propensity, 0.5, ())
        log.append(RATING, {**describe(decision), "score": score})
    log.close()
    done = estimate(str(path), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    policies = result["policies"]
    assert result["ratings"] == 200
    assert policies["always large_llm"]["dr"]["value"] == pytest.approx(0.9, abs=0.01)
    assert policies["always small_llm"]["dr"]["value"] == pytest.approx(0.55, abs=0.06)
    greedy = policies["greedy"]
    assert greedy["ratings"] == 100
    assert greedy["dr"]["value"] > policies["always small_llm"]["dr"]["value"] + 0.1
    shown = estimate(f"--data-dir={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    value = policies["always small_llm"]["dr"]
    assert f"{value['value']:.3f} ± {value['standard_error']:.3f}" in shown.stdout
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("always small_llm ")]
    assert line.count("±") == 3
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.fixture(scope="module")
def solicited_log(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("log") / "events.sqlite"
    log = SQLiteEventLog(path)
    fill(log, 4_000)
    log.close()
    return str(path)


def policies_of(*arguments: str) -> dict[str, Any]:
    done = estimate(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_ratings_that_were_asked_for_are_weighed_by_how_probable_that_was(
    solicited_log: str,
) -> None:
    report = policies_of(solicited_log)
    assert list(report["sources"]) == ["asked"]
    assert report["dropped"]["volunteered"] > 50
    for llm, truth in TRUTH.items():
        for kind in ("ips", "snips", "dr"):
            found = report["policies"][f"always {llm}"][kind]
            assert abs(found["value"] - truth) < 3 * found["standard_error"]
            assert found["standard_error"] < 0.06
    alike = policies_of(solicited_log, "--ratings=all")["policies"]["always small_llm"]["snips"]
    assert alike["value"] < TRUTH["small_llm"] - 0.2
    volunteered = policies_of(solicited_log, "--ratings=volunteered")
    assert volunteered["logged"]["value"] == 0.0


def test_other_cost_weights_are_estimated(solicited_log: str) -> None:
    report = policies_of(solicited_log, "--cost-weight=0", "--cost-weight=0.9")
    policies = report["policies"]
    assert policies["0, greedy"]["dr"] == policies["greedy"]["dr"]
    assert policies["0, greedy"]["cost"] == 1
    # The small LLM costs a tenth, so that a weight of .9 outweighs any quality.
    assert policies["0.9, greedy"]["cost"] == pytest.approx(0.1)
    assert policies["0.9, greedy"]["ratings"] == round(report["ratings"] / 2)
    found = policies["cost weight 0.9"]["dr"]
    assert abs(found["value"] - 0.6) < 3 * found["standard_error"]
    shown = estimate(solicited_log, "--cost-weight=0.9")
    assert "from the newest" in shown.stdout
    assert "not used:" in shown.stdout
    assert "cost weight 0.9 " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    done = estimate(str(tmp_path / "none.sqlite"))
    assert done.returncode == 2
    assert "learning log: expected a SQLite file" in done.stderr
    assert not (tmp_path / "none.sqlite").exists()
    SQLiteEventLog(tmp_path / "empty.sqlite").close()
    done = estimate(str(tmp_path / "empty.sqlite"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "learning log: expected ratings" in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--holdout=1", "expected a number between 0 and 1, got 1.0"),
        ("--holdout=half", "invalid float value: 'half'"),
        ("--max-weight=0", "expected a number above 0, got 0.0"),
        ("--cost-weight=-1", "expected a number from 0, got -1.0"),
        ("--ratings=mine", "invalid choice: 'mine'"),
    ],
)
def test_wrong_options_are_named(option: str, message: str) -> None:
    done = estimate(option)
    assert done.returncode == 2
    assert message in done.stderr
