"""``echolm estimate``: what other routing policies would have scored, from the learning log.

Reads the ratings of answers whose LLM the router drew, with the probability of the draw, and
estimates the mean rating of always each LLM, and of the bandit's greedy policy. For the latter,
the bandit learns from the older ratings and is evaluated on the newest ones (``--holdout``),
since a policy looks better than it is on what it has learnt from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
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

_BATCH = 1_000
_COLUMNS = (
    Column("policy", is_text=True),
    *(Column(title) for title in ("ratings", "ESS", "IPS", "SNIPS", "doubly robust")),
)


def add_subcommand(subparsers: Subparsers) -> None:
    """Add ``estimate``."""
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
    """Print the estimates.

    Raises:
        ConfigurationError: an option is out of range, or the log is missing, too short or of
            another configuration.
        InvalidRequestError: the log holds no usable rating.
    """
    from echolm.learning.off_policy import doubly_robust, fit_reward_model, ips, read_ratings, snips
    from echolm.learning.sqlite_log import SQLiteEventLog
    from echolm.wiring.routing import build_bandit

    if not 0 < args.holdout < 1:
        raise ConfigurationError(
            f"--holdout: expected a number between 0 and 1, got {args.holdout}"
        )
    if not args.max_weight > 0:
        raise ConfigurationError(f"--max-weight: expected a number above 0, got {args.max_weight}")
    settings = settings_from(args, must_exist=args.log is None)
    path = args.log or settings.event_log_path
    if path is None or not path.is_file():
        raise ConfigurationError(
            f"learning log: expected a SQLite file, got {path or settings.event_log}; name it, or "
            "give --data-dir"
        )
    source = SQLiteEventLog(path)
    try:
        log, dropped = read_ratings(
            _events(source),
            [llm.name for llm in settings.llms],
            {llm.name: llm.revision for llm in settings.llms},
        )
    finally:
        source.close()
    first = len(log) - max(1, round(args.holdout * len(log)))
    dimension = build_bandit(settings)[0].dimension
    if first < 1:
        raise ConfigurationError(
            f"learning log: expected ratings older than the newest {args.holdout:.0%}, got "
            f"{len(log)} usable ratings in all"
        )
    if log.contexts.shape[1] != dimension:
        raise ConfigurationError(
            f"learning log: expected contexts of {dimension} elements as configured "
            f"(routing.projection_dim), got {log.contexts.shape[1]}"
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
    logged = {
        "value": float(log.rewards.mean()),
        "standard_error": float(log.rewards.std(ddof=1)) / math.sqrt(len(log)),
    }
    if args.json:
        report = {"ratings": len(log), "dropped": dropped, "logged": logged, "policies": rows}
        write(json.dumps(_rounded({"benchmark": "estimate_policy", **report})) + "\n")
        return OK
    lines = [("as logged", str(len(log)), str(len(log)), *[_shown(logged)] * 3)]
    for name, row in rows.items():
        effective = f"{row['ips']['effective_sample_size']:.0f}"
        ips_shown, snips_shown, dr_shown = (_shown(row[kind]) for kind in ("ips", "snips", "dr"))
        lines.append((name, str(row["ratings"]), effective, ips_shown, snips_shown, dr_shown))
    write(f"Mean rating by policy, from {len(log)} ratings\n")
    write(table(_COLUMNS, lines, terminal_width()))
    if dropped:
        reasons = ", ".join(f"{number} {why}" for why, number in dropped.items())
        write(f"dropped: {reasons}\n")
    return OK


def _events(log: EventLog) -> Iterator[Event]:
    from echolm.learning.event_log import START

    position = START
    while batch := log.read(position, _BATCH):
        yield from batch
        position = batch[-1].position


def _greedy(settings: Settings, older: LoggedDecisions, newer: LoggedDecisions) -> Probabilities:
    """What a bandit that has learnt from older decisions would draw without exploring."""
    import numpy as np

    from echolm.wiring.routing import build_bandit

    _, bandit = build_bandit(settings)
    for x, drawn, reward in zip(older.contexts, older.drawn, older.rewards, strict=True):
        bandit.learn(older.arms[drawn], x, float(reward))
    costs = {llm.name: settings.routing.cost_weight * llm.cost for llm in settings.llms}
    scores = [newer.contexts @ bandit.arms[arm].mean - costs[arm] for arm in newer.arms]
    return np.asarray(np.eye(len(newer.arms))[np.argmax(scores, axis=0)])


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
