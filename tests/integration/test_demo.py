"""The demo as a user runs it, only much shorter: its own Triton, Milvus Lite and both LLMs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(240)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"
POLICIES = ("always_large", "always_small", "copy_nearest", "semantic_cache", "echolm")
HISTORY, LEARNING, REQUESTS = 16, 8, 12


@dataclass(frozen=True)
class Demo:
    """What one run of the demo left."""

    done: subprocess.CompletedProcess[str]
    output: Path
    data_dir: Path

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.output.read_text(encoding="utf-8"))
        return report


def run(directory: Path, *arguments: str) -> Demo:
    output, data_dir = directory / "reports" / "demo.json", directory / "data"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"--output={output}", f"--data-dir={data_dir}", *arguments],
        env={**os.environ, "COLUMNS": "80"},
        cwd=directory,  # anywhere
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return Demo(done, output, data_dir)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run(
        tmp_path_factory.mktemp("demo"),
        *(
            f"--history={HISTORY}",
            f"--learning={LEARNING}",
            f"--measured={REQUESTS}",
            "--concurrency=6",
            "--latency-seconds=1",
        ),
    )


def test_the_demo_succeeds(demo: Demo) -> None:
    assert demo.done.returncode == 0, demo.done.stdout + demo.done.stderr
    assert "Traceback" not in demo.done.stdout + demo.done.stderr


def test_every_policy_answers_every_request(demo: Demo) -> None:
    report = demo.report
    assert tuple(report["policies"]) == POLICIES
    assert {row["requests"] for row in report["policies"].values()} == {REQUESTS}
    assert {row["failed"] for row in report["policies"].values()} == {0}
    assert report["errors"] == []
    past = report["past"]
    assert (past["history"], past["learning"], past["failed"]) == (HISTORY, LEARNING, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_report_has_all_figures_of_each_policy(demo: Demo, policy: str) -> None:
    row = demo.report["policies"][policy]
    shares = [row[key] for key in ("mean_score", "win_rate", "offload_share")]
    assert all(0 <= share <= 1 for share in shares)
    speeds = [row[key] for key in ("throughput", "p50_s", "p99_s")]
    assert all(math.isfinite(speed) and speed > 0 for speed in speeds)
    assert row["p50_s"] <= row["p99_s"]


def test_the_figures_of_the_fixed_policies_are_what_they_must_be(demo: Demo) -> None:
    policies = demo.report["policies"]
    large, small = policies["always_large"], policies["always_small"]
    assert (large["win_rate"], large["offload_share"]) == (0.5, 0.0)
    assert small["offload_share"] == 1.0
    assert large["mean_score"] > small["mean_score"]
    assert demo.report["latency_rate"] == pytest.approx(0.7 * large["throughput"])


def test_the_cache_is_shown_at_every_threshold(demo: Demo) -> None:
    sweep = demo.report["semantic_cache_sweep"]
    hit_rates = [point["hit_rate"] for point in sweep]
    assert len(sweep) > 10
    assert hit_rates == sorted(hit_rates, reverse=True)
    shown = demo.report["policies"]["semantic_cache"]
    # An interaction may still have been on its way to the store.
    nearly = pytest.approx(shown["offload_share"], abs=1.5 / REQUESTS)
    assert any(point["hit_rate"] == nearly for point in sweep)


def test_the_report_says_what_ran_and_where(demo: Demo) -> None:
    report = demo.report
    assert {"echolm", "nvidia-pytriton", "openvino-genai", "milvus-lite"} <= set(report["versions"])
    assert all(report["versions"].values())
    assert report["host"]["cpu"]
    assert report["host"]["cores"] >= 1
    assert report["host"]["python"]
    assert report["options"]["history"] == HISTORY
    assert report["seconds"] > 0


def test_the_table_is_whole_on_a_narrow_terminal(demo: Demo) -> None:
    lines = demo.done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(demo.output) not in line)
    assert "…" not in demo.done.stdout
    titles = ("large LLM alone", "small LLM alone", "nearest answer", "semantic cache", "EchoLM")
    for title in titles:
        [row] = [line for line in lines if line.strip().startswith(f"{title} ") and "/" not in line]
        assert len(row.removeprefix(f" {title}").split()) == 7
    assert str(demo.output) in demo.done.stdout.replace("\n", "")


def test_the_demo_leaves_no_process_behind(demo: Demo) -> None:
    left = []
    for process in psutil.process_iter():
        try:
            if any(str(demo.data_dir) in part for part in process.cmdline()):
                left.append(process.cmdline())
        except psutil.Error:
            continue
    assert left == []


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    config = tmp_path / "echolm.toml"
    config.write_text("retrieval = 3\n")
    failed = run(tmp_path, f"--config={config}")
    assert failed.done.returncode == 1
    assert failed.done.stdout.startswith("demo: ")
    assert "retrieval" in failed.done.stdout
    assert "Traceback" not in failed.done.stdout + failed.done.stderr
    assert not failed.output.exists()
