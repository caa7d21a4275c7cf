"""``echolm estimate``: what other routing policies would have scored, from the learning log.

It reads the ratings of answers whose LLM the router drew, with the probability of the draw. For
the greedy policy, the bandit learns from the older ratings and is evaluated on the newest ones
(``--holdout``), since a policy looks better than it is on what it has learnt from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.console import terminal_width, write
from echolm_client.cli.exit_codes import OK
from echolm_client.cli.table import Column, table

from echolm.cli.data_directory import add_options, settings_from
from echolm.errors import ConfigurationError

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    from echolm.learning.event_log import Event, EventLog
    from echolm.learning.off_policy import LoggedDecisions, Probabilities
    from echolm.settings import Settings

_FIGURES = ("ratings", "ESS", "IPS", "SNIPS", "doubly robust")
_COLUMNS = (Column("policy", is_text=True), *map(Column, _FIGURES))


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "estimate",
        help="what other routing policies would have scored",
        description="Estimate from the learning log what other routing policies would have "
        "scored: always one LLM, and the bandit without exploring. Mean rating and standard "
        "error by three estimators: inverse propensity scores (IPS), self-normalised (SNIPS), "
        "doubly robust. ESS is the effective sample size.",
    )
    parser.add_argument("log", type=Path, nargs="?", help="SQLite file (default: the configured)")
    add_options(parser)
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.3,
        help="newest share of the ratings, on which the greedy policy is evaluated (default: 0.3)",
    )
    parser.add_argument(
        "--max-weight",
        type=float,
        default=math.inf,
        help="importance weights are clipped to this: less noise, some bias (default: none is)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the estimates; returns the exit code."""
    from echolm.learning.off_policy import doubly_robust, fit_reward_model, ips, snips

    if not 0 < args.holdout < 1:
        raise ConfigurationError(
            f"--holdout: expected a number between 0 and 1, got {args.holdout}"
        )
    if not args.max_weight > 0:
        raise ConfigurationError(f"--max-weight: expected a number above 0, got {args.max_weight}")
    settings = settings_from(args, must_exist=args.log is None)
    log, dropped = _read(settings, args.log)
    first = len(log) - max(1, round(args.holdout * len(log)))
    if first < 1:
        raise ConfigurationError(
            f"learning log: expected ratings older than the newest {args.holdout:.0%}, got "
            f"{len(log)} usable ratings in all"
        )
    rewards, newest = fit_reward_model(log), log.part(slice(first, None))
    greedy = _greedy(settings, log.part(slice(first)), newest)
    policies = {f"always {arm}": (log, log.always(arm), rewards) for arm in log.arms}
    policies["greedy"] = (newest, greedy, rewards[first:])
    rows: dict[str, dict[str, Any]] = {
        name: {
            "ratings": len(part),
            "ips": vars(ips(part, target, args.max_weight)),
            "snips": vars(snips(part, target, args.max_weight)),
            "dr": vars(doubly_robust(part, target, model, args.max_weight)),
        }
        for name, (part, target, model) in policies.items()
    }
    error = float(log.rewards.std(ddof=1)) / math.sqrt(len(log))
    logged = {"value": float(log.rewards.mean()), "standard_error": error}
    if args.json:
        report = {"ratings": len(log), "dropped": dropped, "logged": logged, "policies": rows}
        write(json.dumps(_rounded({"benchmark": "estimate_policy", **report})) + "\n")
        return OK
    lines = [["as logged", str(len(log)), str(len(log)), *[_shown(logged)] * 3]]
    for name, row in rows.items():
        effective = f"{row['ips']['effective_sample_size']:.0f}"
        estimates = [_shown(row[kind]) for kind in ("ips", "snips", "dr")]
        lines.append([name, str(row["ratings"]), effective, *estimates])
    write(f"Mean rating by policy, from {len(log)} ratings\n")
    write(table(_COLUMNS, lines, terminal_width()))
    if dropped:
        reasons = ", ".join(f"{number} {why}" for why, number in dropped.items())
        write(f"dropped: {reasons}\n")
    return OK


def _read(settings: Settings, path: Path | None) -> tuple[LoggedDecisions, dict[str, int]]:
    """The usable ratings, and how many others there are by reason."""
    from echolm.learning.off_policy import read_ratings
    from echolm.learning.sqlite_log import SQLiteEventLog

    path = path or settings.event_log_path
    if path is None or not path.is_file():
        raise ConfigurationError(
            f"learning log: expected a SQLite file, got {path or settings.event_log}; name it, or "
            "give --data-dir"
        )
    revisions = {llm.name: llm.revision for llm in settings.llms}
    with closing(SQLiteEventLog(path)) as log:
        return read_ratings(_events(log), list(revisions), revisions)


def _events(log: EventLog) -> Iterator[Event]:
    from echolm.learning.event_log import START

    position = START
    while batch := log.read(position, 1_000):
        yield from batch
        position = batch[-1].position


def _greedy(settings: Settings, older: LoggedDecisions, newer: LoggedDecisions) -> Probabilities:
    """What a bandit that has learnt from older decisions would draw without exploring."""
    import numpy as np

    from echolm.bandit.features import DIMENSION
    from echolm.wiring.routing import build_bandit

    _, bandit = build_bandit(settings)
    if older.contexts.shape[1] != DIMENSION:
        raise ConfigurationError(
            f"learning log: expected contexts of {DIMENSION} elements, got "
            f"{older.contexts.shape[1]}: they are of another version of EchoLM"
        )
    for x, drawn, reward in zip(older.contexts, older.drawn, older.rewards, strict=True):
        bandit.learn(older.arms[drawn], x, float(reward))
    costs = {n: settings.routing.cost_weight * c for n, c in settings.relative_costs.items()}
    scores = bandit.qualities(newer.contexts) - [costs[arm] for arm in bandit.arms]
    return np.asarray(np.eye(len(newer.arms))[np.argmax(scores, axis=1)])


def _shown(estimate: Mapping[str, float]) -> str:
    if math.isnan(estimate["value"]):
        return "nothing known"
    return f"{estimate['value']:.3f} ± {estimate['standard_error']:.3f}"


def _rounded(value: Any) -> Any:
    """A value for JSON, which knows no NaN, with five decimals."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 5)
    return value
