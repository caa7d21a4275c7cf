"""``echolm estimate``: a log file in, estimates of policies out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from echolm.learning.feedback import RATING, describe
from echolm.learning.sqlite_log import SQLiteEventLog
from echolm.primitives import Decision
from echolm.settings import Settings
from echolm.wiring.routing import build_bandit


def estimate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echolm", "estimate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_estimates_from_a_log_file(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "events.sqlite"
    log, dimension = SQLiteEventLog(path), build_bandit(Settings())[0].dimension
    for n in range(200):
        x = np.zeros(dimension, dtype=np.float32)
        x[1] = similarity = rng.random()
        x[0] = 1 - similarity
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
    assert greedy["ratings"] == 60
    assert greedy["dr"]["value"] > policies["always small_llm"]["dr"]["value"] + 0.1
    shown = estimate(f"--data-dir={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    value = policies["always small_llm"]["dr"]
    assert f"{value['value']:.3f} ± {value['standard_error']:.3f}" in shown.stdout
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("always small_llm ")]
    assert line.count("±") == 3
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
    ],
)
def test_wrong_options_are_named(option: str, message: str) -> None:
    done = estimate(option)
    assert done.returncode == 2
    assert message in done.stderr
