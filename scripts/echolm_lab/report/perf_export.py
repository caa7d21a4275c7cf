"""Figures from the file that perf_analyzer's ``--profile-export-file`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def read_export(file: Path) -> Any:
    """The file's value. perf_analyzer writes tensors into it as they are, also as strings."""
    return json.loads(file.read_text(encoding="utf-8", errors="replace"), strict=False)


def times_of(export: Mapping[str, Any]) -> dict[str, float]:
    """Requests/s and latency of what was answered, from the times of each request, in ns.

    What perf_analyzer prints itself counts whole seconds: in a short measurement a tenth too few.
    """
    [experiment] = export["experiments"]
    answered = [request for request in experiment["requests"] if request["response_timestamps"]]
    begun = np.array([request["timestamp"] for request in answered])
    ended = np.array([request["response_timestamps"][-1] for request in answered])
    p50, p90, p99 = np.quantile((ended - begun) / 1e6, (0.5, 0.9, 0.99)).tolist()
    seconds = (ended.max() - begun.min()) / 1e9
    return {
        "requests_per_s": float(len(answered) / seconds),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
    }
