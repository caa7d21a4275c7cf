"""``echolm estimate``: what other routing policies would have earned, from the learning log.

Reads the ratings of answers whose LLM the router drew, with the probability of the draw, and
estimates the mean rating of the policy that was logged, of always each LLM, and of the bandit's
greedy policy. For the last, the bandit learns from the older ratings and is evaluated on the
newest ones (``--holdout``), since a policy looks better than it is on what it has learnt from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echolm.errors import ConfigurationError

if TYPE_CHECKING:  # numpy and the store's client are loaded only when the command runs
    from echolm.learning.event_log import Event, EventLog
    from echolm.learning.off_policy import Estimate, LoggedDecisions, Probabilities
    from echolm.settings import Settings

_BATCH = 1_000
_KINDS = {"ips": "IPS", "snips": "SNIPS", "dr": "doubly robust"}


def add_subcommand(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``estimate``; sets ``func``."""
    parser = subparsers.add_parser(
        "estimate",
        help="what other routing policies would have scored",
        description="Estimate from the learning log what other routing policies would have "
        "scored: always one LLM, and the bandit without exploring. Mean rating and standard "
        "error by three estimators: inverse propensity scores (IPS), self-normalised (SNIPS), "
        "doubly robust.",
    )
    parser.add_argument("log", type=Path, nargs="?", help="SQLite file (default: the configured)")
    parser.add_argument(
        "--config", type=Path, default=None, help="echolm.toml (default: $ECHOLM_CONFIG)"
    )
    parser.add_argument("--data-dir", type=Path, default=None, help="of the server")
    parser.add_argument(
        "--holdout",
        type=_share,
        default=0.3,
        help="newest share of the ratings, on which the greedy policy is evaluated (default: 0.3)",
    )
    parser.add_argument(
        "--max-weight",
        type=_above_zero,
        default=math.inf,
        help="importance weights are clipped to this: less noise, some bias (default: none is)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the estimates.

    Raises:
        ConfigurationError: the log is missing, too short, or of another configuration.
        InvalidRequestError: the log holds no usable rating.
    """
    from echolm.learning.off_policy import doubly_robust, fit_reward_model, ips, read_ratings, snips
    from echolm.learning.sqlite_log import SQLiteEventLog
    from echolm.settings.loading import load_settings
    from echolm.wiring import build_bandit

    settings = load_settings(args.config)
    if args.data_dir is not None:
        settings = settings.model_copy(update={"data_dir": args.data_dir})
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
    newest = max(1, round(args.holdout * len(log)))
    if newest == len(log):
        raise ConfigurationError(
            f"learning log: expected at least 2 usable ratings, got {len(log)}"
        )
    dimension = build_bandit(settings)[0].dimension
    if log.contexts.shape[1] != dimension:
        raise ConfigurationError(
            f"learning log: expected contexts of {dimension} elements as configured "
            f"(routing.projection_dim), got {log.contexts.shape[1]}"
        )

    rewards = fit_reward_model(log)
    older, tail = slice(len(log) - newest), slice(len(log) - newest, None)
    evaluated = log.part(tail)
    policies = {f"always {arm}": (log, log.always(arm), rewards) for arm in log.arms}
    policies["greedy"] = (
        evaluated,
        _greedy(settings, log.part(older), evaluated),
        rewards[tail],
    )
    rows = {
        name: {
            "ips": ips(part, target, args.max_weight),
            "snips": snips(part, target, args.max_weight),
            "dr": doubly_robust(part, target, q, args.max_weight),
        }
        for name, (part, target, q) in policies.items()
    }
    ratings = {name: len(part) for name, (part, _, _) in policies.items()}
    if args.json:
        print(json.dumps(_report(log, ratings, rows, dropped)))
    else:
        print("\n".join(_table(log, ratings, rows, dropped)))
    return 0


def _events(log: EventLog) -> Iterator[Event]:
    from echolm.learning.event_log import START

    position = START
    while batch := log.read(position, _BATCH):
        yield from batch
        position = batch[-1].position


def _greedy(settings: Settings, older: LoggedDecisions, newer: LoggedDecisions) -> Probabilities:
    """What a bandit that has learnt from older decisions would draw without exploring."""
    import numpy as np

    from echolm.wiring import build_bandit

    _, bandit = build_bandit(settings)
    for x, drawn, reward in zip(older.contexts, older.drawn, older.rewards, strict=True):
        bandit.learn(older.arms[drawn], x, float(reward))
    costs = {llm.name: settings.routing.cost_weight * llm.cost for llm in settings.llms}
    scores = [newer.contexts @ bandit.arms[arm].mean - costs[arm] for arm in newer.arms]
    return np.asarray(np.eye(len(newer.arms))[np.argmax(scores, axis=0)])


def _logged(log: LoggedDecisions) -> tuple[float, float]:
    """Mean rating of the policy that was logged, and its standard error."""
    error = float(log.rewards.std(ddof=1)) / math.sqrt(len(log))
    return float(log.rewards.mean()), error


def _report(
    log: LoggedDecisions,
    ratings: Mapping[str, int],
    rows: Mapping[str, Mapping[str, Estimate]],
    dropped: Mapping[str, int],
) -> dict[str, Any]:
    value, error = _logged(log)
    return {
        "benchmark": "estimate_policy",
        "ratings": len(log),
        "dropped": dict(dropped),
        "logged": {"value": round(value, 5), "standard_error": round(error, 5)},
        "policies": {
            name: {"ratings": ratings[name]}
            | {
                kind: {k: None if math.isnan(v) else round(v, 5) for k, v in vars(found).items()}
                for kind, found in row.items()
            }
            for name, row in rows.items()
        },
    }


def _table(
    log: LoggedDecisions,
    ratings: Mapping[str, int],
    rows: Mapping[str, Mapping[str, Estimate]],
    dropped: Mapping[str, int],
) -> Iterator[str]:
    def line(*cells: str) -> str:
        policy, number, effective, *estimates = cells
        return f"{policy:<{width}} {number:>8} {effective:>9}" + "".join(
            f" {cell:>13}" for cell in estimates
        )

    def shown(value: float, error: float) -> str:
        return "nothing known" if math.isnan(value) else f"{value:.3f} ± {error:.3f}"

    width = max(len(name) for name in ("as logged", *rows))
    n = str(len(log))
    yield f"Mean rating by policy, from {n} ratings"
    yield line("policy", "ratings", "effective", *_KINDS.values())
    yield line("as logged", n, n, *[shown(*_logged(log))] * len(_KINDS))
    for name, row in rows.items():
        yield line(
            name,
            str(ratings[name]),
            f"{row['ips'].effective_sample_size:.0f}",
            *(shown(row[kind].value, row[kind].standard_error) for kind in _KINDS),
        )
    if dropped:
        yield "dropped: " + ", ".join(f"{number} {why}" for why, number in dropped.items())


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def _above_zero(text: str) -> float:
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
