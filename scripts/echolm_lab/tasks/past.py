"""The past that the demo and the evaluation begin with: what the large LLM has answered."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from echolm.errors import ConfigurationError

from echolm_lab.tasks.types import PastInteraction, WorkItem
from echolm_lab.tasks.workload import Workload

PAST_FILE = Path(__file__).resolve().parents[2] / "past.jsonl"
"""Written by ``scripts/record_past.py``."""

WORKLOAD_SEED, _STREAM_SEED = 0, 1


def past_items(count: int) -> list[WorkItem]:
    """The requests of the past, oldest first; fewer are the first of more."""
    return Workload(seed=WORKLOAD_SEED).stream(count, seed=_STREAM_SEED, phase="past")


def recorded_past(count: int, file: Path = PAST_FILE) -> list[PastInteraction]:
    """The first ``count`` interactions of the recorded past.

    Raises:
        ConfigurationError: the file is missing, holds fewer, or is of another workload.
    """
    advice = "record it with scripts/record_past.py"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"past: cannot read {file} ({error}); {advice}") from error
    if len(lines) < count:
        raise ConfigurationError(
            f"past: expected at least {count} interactions in {file}, got {len(lines)}; {advice} "
            f"--count {count}"
        )
    interactions = []
    for number, (line, item) in enumerate(zip(lines[:count], past_items(count), strict=True), 1):
        try:
            row = json.loads(line)
            request, response = str(row["request"]), str(row["response"])
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"past: {file}, line {number}: expected an object with request and response, got "
                f"{line[:80]!r}; {advice}"
            ) from error
        if request != item.text:
            raise ConfigurationError(
                f"past: {file}, line {number}: expected the request {item.text!r}, got "
                f"{request!r}; {advice}"
            )
        interactions.append(PastInteraction(item, response))
    return interactions


def write_past(file: Path, interactions: Iterable[PastInteraction]) -> None:
    """Write a past that :func:`recorded_past` reads."""
    rows = [{"request": e.item.text, "response": e.response} for e in interactions]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
