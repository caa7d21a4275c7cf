"""The report of the GPU benchmark: its checks, and what it makes of what is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from echolm_lab.report import gpu_report

MACHINE = {
    "gpus": ["NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04"],
    "host": {"cores": 16, "cpu": "a CPU", "python": "3.12.3"},
    "versions": {"echolm": "0.1.0", "vllm": "0.20.0"},
    "command": "scripts/bench_gpu.py evaluate",
}


def policy(throughput: float, p50_s: float, p99_s: float, win_rate: float = 0.5) -> dict[str, Any]:
    return {
        "mean_score": 0.9,
        "win_rate": win_rate,
        "offload_share": 0.5,
        "failed": 0,
        "throughput": throughput,
        "p50_s": p50_s,
        "p99_s": p99_s,
        "selection_s": 0.004,
        "decision_s": 0.001,
        "request_s": 1.0,
    }


def setting(examples: int, order: str, speed: float, concurrency: int = 128) -> dict[str, Any]:
    return {
        "examples": examples,
        "order": order,
        "concurrency": concurrency,
        "requests_per_s": speed,
        "prompt_tokens": 100.0,
        "prefix_hit_rate": None,
        "ttft_p50_ms": 30.0,
        "ttft_p99_ms": 50.0,
        "tbt_mean_ms": 5.0,
        "tbt_p99_ms": 6.0,
    }


def measured(work: Path) -> Path:
    """A run that reaches every target but that of the p99 latency."""
    evaluate = {
        "machine": MACHINE,
        "report": {
            "policies": {
                "always_large": policy(10.0, 2.0, 4.0),
                "always_small": policy(90.0, 0.1, 1.0, 0.2),
                "echolm": policy(60.0, 0.4, 2.0, 0.497),
            },
            "small_with_examples": policy(80.0, 0.1, 1.05),
            "latency_rate": 7.0,
        },
    }
    small = [
        setting(0, "none", 100.0),
        setting(5, "prefix", 95.0),
        setting(5, "similarity", 80.0),
        setting(0, "none", 1.0, 1),
    ]
    large = [setting(0, "none", 9.0), setting(5, "prefix", 1.0), setting(5, "similarity", 1.0)]
    row = {"requests_per_s": 1_600.0, "p50_ms": 40.0, "p90_ms": 50.0, "p99_ms": 60.0}
    path = {
        "examples": 100_000,
        "concurrency": 64,
        "models": {"echolm": row, "echolm at 1500/s": {**row, "p50_ms": 7.0}},
    }
    (work / "shapes").mkdir(parents=True)
    for name, value in {
        "evaluate": evaluate,
        "path": {"machine": MACHINE, "path": path},
        "shapes/3b": {str(n): one for n, one in enumerate(small)},
        "shapes/32b": {"machine": MACHINE, **{str(n): one for n, one in enumerate(large)}},
    }.items():
        (work / f"{name}.json").write_text(json.dumps(value))
    return work


def values(work: Path) -> dict[str, tuple[float | None, bool]]:
    rows = json.loads((work / "report.json").read_text())
    return {row["measure"]: (row["value"], row["holds"]) for row in rows}


def test_every_target_is_compared_with_what_was_measured(tmp_path: Path) -> None:
    gpu_report.write(measured(tmp_path))
    assert values(tmp_path) == {
        "win rate against always_large": (0.497, True),
        "throughput over always_large": (6.0, True),
        "p50 latency over always_large's": (pytest.approx(0.2), True),
        "p99 latency over always_large's": (0.5, False),
        "small LLM: p99 with examples over without": (1.05, True),
        "selection and routing over request, seconds": (pytest.approx(0.004), True),
        # 5 of 100 requests/s against 20; the large LLM and the lower concurrency don't count.
        "small LLM: cost of 5 examples in prefix order over that by similarity": (0.25, True),
        "path: requests/s": (1_600.0, True),
        "path: p50 ms at that throughput": (40.0, False),
        "path: p50 ms under a fixed load": (7.0, True),
    }


def test_the_text_has_the_tables_the_hardware_and_the_command(tmp_path: Path) -> None:
    text = gpu_report.write(measured(tmp_path))
    assert text == (tmp_path / "report.md").read_text()
    assert "`scripts/bench_gpu.py evaluate`: NVIDIA H100 80GB HBM3" in text
    assert "vllm 0.20.0" in text
    assert "| **echolm** | 0.900 | 0.497 | 60.0 | 6.0 | 400 | 2000 | 50% | 0 |" in text
    assert "| 5 | prefix | 128 | 100 | 95.0 |" in text
    assert "| p99 latency over always_large's | ≤ 0.3 | 0.5 | **no** |" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


def test_a_recorded_trace_has_its_checks_and_a_table(tmp_path: Path) -> None:
    work = measured(tmp_path)
    parts = json.loads((work / "evaluate.json").read_text())
    parts["report"]["trace"] = [
        {"policy": "always_large", "requests": 99, "over_10_s": 7, **policy(1.0, 2.0, 12.0)},
        {"policy": "echolm", "requests": 99, "over_10_s": 0, **policy(1.0, 0.3, 3.0, 0.49)},
    ]
    (work / "evaluate.json").write_text(json.dumps(parts))
    text = gpu_report.write(work)
    assert "| always_large | 99 | 0.500 | 2000 | 12000 | 7 | 50% | 0 |" in text
    found = values(work)
    assert found["trace: p99 latency over always_large's"] == (0.25, True)
    assert found["trace: win rate against always_large"] == (0.49, False)


def test_of_repeats_the_mean_counts_and_the_spread_is_said(tmp_path: Path) -> None:
    work = measured(tmp_path)
    rows = json.loads((work / "shapes/3b.json").read_text())
    again = {"again": setting(5, "prefix", 85.0), "once more": setting(5, "prefix", 75.0)}
    again["again"]["prefix_hit_rate"] = 0.5  # which the first engine did not count
    (work / "shapes/3b.json").write_text(json.dumps({**rows, **again}))
    text = gpu_report.write(work)
    assert "| 5 | prefix | 128 | 100 | 85.0 ± 10.0 | 30 | 50 | 5.0 | 6.0 | 50% |" in text
    assert "Up to 3 runs of each" in text
    assert "| 5 | similarity | 128 | 100 | 80.0 |" in text
    ratio = "small LLM: cost of 5 examples in prefix order over that by similarity"
    assert values(work)[ratio] == (0.75, False)


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gpu_report.write(measured(tmp_path))
    drawn = sorted((tmp_path / "plots").iterdir())
    assert [file.name for file in drawn] == ["gpu_policies.png", "gpu_shapes.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = gpu_report.write(tmp_path)
    rows = values(tmp_path)
    assert text.count("not measured") == len(rows) == 10
    assert set(rows.values()) == {(None, False)}


def test_examples_that_cost_nothing_unordered_have_no_ratio() -> None:
    rows = [setting(0, "none", 100.0), setting(5, "prefix", 99.0), setting(5, "similarity", 100.0)]
    assert math.isnan(gpu_report.prefix_cost_ratio({"3b": rows}))
