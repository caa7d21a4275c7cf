#!/usr/bin/env python3
"""Estimate from the learning log what other routing policies would have earned.

Reads the ratings of answers whose LLM the router drew, with the probability of the draw, and
estimates the mean rating of: the policy that was logged, always each LLM, and the greedy policy
of the bandit. For the last, the bandit learns from the older ratings and is judged by the newest
ones (--holdout), since a policy that is judged by what it has learnt from looks better than it
is. Prints a table with standard errors and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python_backends"))

import numpy as np
from echolm.errors import EchoError
from echolm.learning.event_log import START, Event, EventLog
from echolm.learning.off_policy import (
    Estimate,
    LoggedDecisions,
    Probabilities,
    doubly_robust,
    fit_reward_model,
    ips,
    read_ratings,
    snips,
)
from echolm.learning.sqlite_log import SQLiteEventLog
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm.wiring import build_bandit
from rich.console import Console
from rich.table import Table

_BATCH = 1_000


def events(log: EventLog) -> Iterator[Event]:
    position = START
    while batch := log.read(position, _BATCH):
        yield from batch
        position = batch[-1].position


def greedy(settings: Settings, learnt: LoggedDecisions, judged: LoggedDecisions) -> Probabilities:
    """What a bandit that has learnt from some decisions would draw without exploring."""
    _, bandit = build_bandit(settings)
    for x, drawn, reward in zip(learnt.contexts, learnt.drawn, learnt.rewards, strict=True):
        bandit.learn(learnt.arms[drawn], x, float(reward))
    costs = {llm.name: settings.routing.cost_weight * llm.cost for llm in settings.llms}
    scores = [judged.contexts @ bandit.arms[a].mean - costs[a] for a in judged.arms]
    return np.eye(len(judged.arms))[np.argmax(scores, axis=0)]


def shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "nothing known"
    return f"{estimate.value:.3f} ± {estimate.standard_error:.3f}"


def as_json(estimate: Estimate) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else round(v, 5) for k, v in vars(estimate).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, nargs="?", help="SQLite file; default: the configured")
    parser.add_argument("--config", type=Path, help="echolm.toml with the LLMs (ECHOLM_CONFIG)")
    parser.add_argument("--holdout", type=float, default=0.3, help="newest share, for 'greedy'")
    parser.add_argument("--max-weight", type=float, default=math.inf, help="clips larger weights")
    options = parser.parse_args()
    if not 0 < options.holdout < 1:
        parser.error(f"--holdout: expected a number between 0 and 1, got {options.holdout}")
    if not options.max_weight > 0:
        parser.error(f"--max-weight: expected a number above 0, got {options.max_weight}")

    try:
        settings = load_settings(options.config)
        path = options.log or settings.event_log_path
        if path is None or not path.is_file():
            parser.error(f"learning log: expected a SQLite file, got {path or settings.event_log}")
        source = SQLiteEventLog(path)
        try:
            log, dropped = read_ratings(
                events(source),
                [llm.name for llm in settings.llms],
                {llm.name: llm.revision for llm in settings.llms},
            )
        finally:
            source.close()
        newest = max(1, round(options.holdout * len(log)))
        if newest == len(log):
            parser.error(f"learning log: expected at least 2 usable ratings, got {len(log)}")
        dimension = build_bandit(settings)[0].dimension
        if log.contexts.shape[1] != dimension:
            parser.error(
                f"learning log: expected contexts of {dimension} elements as configured "
                f"(routing.projection_dim), got {log.contexts.shape[1]}"
            )
    except EchoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    model = fit_reward_model(log)
    mean, n = float(log.rewards.mean()), len(log)
    error = float(log.rewards.std(ddof=1)) / math.sqrt(n)
    tail = slice(n - newest, None)
    judged = log.part(tail)
    policies = {f"always {arm}": (log, log.always(arm), model) for arm in log.arms}
    policies["greedy"] = (
        judged,
        greedy(settings, log.part(slice(n - newest)), judged),
        model[tail],
    )
    limit = options.max_weight
    rows = {
        name: {
            "ips": ips(part, target, limit),
            "snips": snips(part, target, limit),
            "dr": doubly_robust(part, target, q, limit),
        }
        for name, (part, target, q) in policies.items()
    }

    table = Table(title=f"Mean rating by policy, from {n} ratings", title_justify="left")
    for column in ("policy", "ratings", "effective", "IPS", "SNIPS", "doubly robust"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    table.add_row("as logged", str(n), str(n), *[f"{mean:.3f} ± {error:.3f}"] * 3)
    for name, row in rows.items():
        table.add_row(
            name,
            str(len(policies[name][0])),
            f"{row['ips'].effective_sample_size:.0f}",
            *(shown(row[kind]) for kind in ("ips", "snips", "dr")),
        )
    Console().print(table)
    if dropped:
        print("left out:", ", ".join(f"{number} {why}" for why, number in dropped.items()))
    logged = {"value": round(mean, 5), "standard_error": round(error, 5)}
    result: dict[str, object] = {
        "benchmark": "estimate_policy",
        "ratings": n,
        "dropped": dropped,
        "logged": logged,
        "policies": {
            name: {"ratings": len(policies[name][0])} | {k: as_json(e) for k, e in row.items()}
            for name, row in rows.items()
        },
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
