"""The GPU benchmark on a real Triton with a stand-in of vLLM: its stages, not its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_gpu.py"
STANDINS = ROOT / "tests" / "standins"
REQUESTS = 12
POLICIES = [
    *("always_large", "always_small", "copy_nearest", "semantic_cache", "static_router", "echolm")
]


@dataclass(frozen=True)
class Bench:
    """One working folder and the stand-in's interpreter."""

    work: Path
    python: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments, f"--work={self.work}"],
            env={**os.environ, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def evaluate(self) -> subprocess.CompletedProcess[str]:
        models = ROOT / "model_repository" / "local"
        trace = self.python.with_name("trace.csv")
        lines = [f"2023-11-16 18:{s // 60:02d}:{s % 60:02d}.5,10,20" for s in range(3_000)]
        trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
        return self.run(
            "evaluate",
            *(f"--{r}={models / f'{r}_llm' / '1' / 'openvino'}" for r in ("small", "large")),
            *(f"--vllm-python={self.python}", "--set=load_format=dummy", "--embedder=fp32"),
            *("--history=16", "--learning=8", f"--requests={REQUESTS}", "--labelled=6"),
            *("--concurrency=6", "--latency-seconds=1", f"--trace={trace}", "--trace-seconds=1"),
        )

    def kept(self, name: str) -> dict[str, Any]:
        parts: dict[str, Any] = json.loads((self.work / name).read_text(encoding="utf-8"))
        return parts


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("gpu")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={STANDINS} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return Bench(folder / "work", python)


@pytest.fixture(scope="module")
def evaluated(bench: Bench) -> Bench:
    done = bench.evaluate()
    assert done.returncode == 0, done.stdout + done.stderr
    return bench


def test_all_policies_get_the_same_requests_on_one_server(evaluated: Bench) -> None:
    report = evaluated.kept("evaluate.json")["report"]
    assert list(report["policies"]) == POLICIES
    assert {row["requests"] for row in report["policies"].values()} == {REQUESTS}
    assert {row["failed"] for row in report["policies"].values()} == {0}
    traced = report["trace"]
    assert [row["policy"] for row in traced] == ["always_large", "static_router", "echolm"]
    assert len({row["requests"] for row in traced}) == 1
    assert {row["failed"] for row in traced} == {0}
    assert report["errors"] == []


def test_the_small_llm_gets_examples_and_the_path_is_timed(evaluated: Bench) -> None:
    parts = evaluated.kept("evaluate.json")
    assert parts["report"]["small_with_examples"]["examples"] > 0
    assert parts["always_small: steady"]["examples"] == 0
    for row in (parts["report"]["policies"]["echolm"], parts["report"]["small_with_examples"]):
        assert 0 < row["selection_s"] < row["request_s"]


def test_what_was_evaluated_is_not_evaluated_again(evaluated: Bench) -> None:
    before = evaluated.kept("evaluate.json")
    done = evaluated.evaluate()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is there already" in done.stdout
    assert evaluated.kept("evaluate.json") == before


def test_recorded_decisions_are_run_at_a_shape(bench: Bench) -> None:
    shape = "3b,layers=2,hidden=64,heads=4,feed_forward=64"
    shapes = ("shapes", shape, "--name=tiny", f"--vllm-python={bench.python}")
    shapes += ("--concurrency=8", "--seconds=0.5", "--max-tokens=4")
    done = bench.run(*shapes)
    assert done.returncode == 0, done.stdout + done.stderr
    again = bench.run(*shapes, "--counts=0,5", "--repeats=2")
    assert again.returncode == 0, again.stdout + again.stderr
    tokenizer = bench.kept("shapes/tiny/tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"  # which vLLM knows
    rows = [row for row in bench.kept("shapes/tiny.json").values() if "requests_per_s" in row]
    five = [(5, "prefix"), (5, "similarity")]
    assert [(row["examples"], row["order"]) for row in rows] == [
        (0, "none"),
        *((count, order) for count in (1, 3) for order in ("prefix", "similarity")),
        *five,
        *((0, "none"), *five),
    ]
    assert all(row["requests_per_s"] > 0 and row["failed"] == 0 for row in rows)
    other = bench.run(*shapes, "--counts=0", "--max-tokens=5")
    assert "is of other settings or decisions: measured anew" in other.stdout, other.stderr
    assert len([key for key in bench.kept("shapes/tiny.json") if key.startswith("0 none")]) == 1
    assert "5 prefix 8 1" not in bench.kept("shapes/tiny.json")
    lengths = {row["examples"]: row["prompt_tokens"] for row in rows}
    assert lengths[0] < lengths[1] < lengths[3] < lengths[5]
    hits = {row["order"]: row["prefix_hit_rate"] for row in rows if row["examples"] == 5}
    assert hits["prefix"] > hits["similarity"]


def test_the_report_has_both_parts(evaluated: Bench) -> None:
    done = evaluated.run("report")
    assert done.returncode == 0, done.stderr
    assert "| **echolm** |" in done.stdout
    assert (evaluated.work / "report.md").read_text(encoding="utf-8") in done.stdout + "\n"
