"""Arrival times from a recorded trace, such as Azure's of its LLM services.

A CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens; only the times are
used, since the demo workload brings requests of its own.
"""

from __future__ import annotations

import csv
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
from echolm.errors import ConfigurationError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_trace(path: Path) -> list[float]:
    """Seconds of each arrival since the first, ascending.

    Raises:
        ConfigurationError: no such file, or it does not have these columns and two arrivals.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = set(COLUMNS) - set(rows.fieldnames or ())
            if missing:
                raise ConfigurationError(
                    f"trace {path}: expected the columns {', '.join(COLUMNS)}, got no "
                    f"{', '.join(sorted(missing))}"
                )
            times = sorted(_seconds(row["TIMESTAMP"], path) for row in rows)
    except OSError as error:
        raise ConfigurationError(
            f"trace {path}: expected a readable CSV file, got: {error.strerror}"
        ) from error
    if len(times) < 2 or times[-1] == times[0]:
        raise ConfigurationError(
            f"trace {path}: expected arrivals at two times or more, got {len(times)} rows"
        )
    return [time - times[0] for time in times]


def _seconds(text: str, path: Path) -> float:
    try:
        # datetime knows microseconds only; the traces have seven digits.
        head, _, fraction = text.strip().partition(".")
        digits = fraction.rstrip("Z+0:") if not fraction.isdigit() else fraction
        return datetime.fromisoformat(head).timestamp() + float(f"0.{digits or 0}")
    except ValueError as error:
        raise ConfigurationError(
            f"trace {path}: expected a TIMESTAMP such as 2023-11-16 18:15:46.6805900, got {text!r}"
        ) from error


def rescaled(trace: list[float], count: int, rate: float, start: int = 0) -> list[float]:
    """``count`` arrivals from the trace's ``start`` on, sped up to ``rate`` per second on average.

    Bursts stay bursts: only the unit of time changes. A trace that ends goes on from its start.
    """
    gaps = [later - earlier for earlier, later in pairwise(trace)]
    chosen = [gaps[(start + k) % len(gaps)] for k in range(count)]
    total = sum(chosen)
    scale = count / rate / total if total > 0 else 0.0
    arrivals, now = [], 0.0
    for gap in chosen:
        now += gap * scale
        arrivals.append(now)
    return arrivals


def window(trace: list[float], seconds: float, rate: float, seed: int) -> list[float]:
    """Arrivals of a random window of a trace that is sped up to ``rate`` per second on average.

    The whole trace has that rate, a window more or less of it: bursts and busy minutes stay.

    Args:
        seconds: of the window, after the change of speed.

    Returns:
        Seconds since the window's begin, ascending.

    Raises:
        ConfigurationError: the trace is too short, or nothing arrives in the window.
    """
    scale = (len(trace) - 1) / rate / trace[-1]
    longest = trace[-1] * scale
    if longest < seconds:
        raise ConfigurationError(
            f"trace: expected arrivals for {seconds:.0f} s at {rate:.1f} a second, got "
            f"{len(trace)}, which last {longest:.0f} s; take a longer trace"
        )
    start = np.random.default_rng(seed).uniform(0.0, longest - seconds)
    found = [time * scale - start for time in trace if start <= time * scale <= start + seconds]
    if not found:
        raise ConfigurationError(
            f"trace: expected an arrival within {seconds:.0f} s, got none after "
            f"{start / scale:.0f} s of the trace; choose another seed"
        )
    return found
