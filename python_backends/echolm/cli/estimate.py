"""``echolm estimate``: what other routing policies would have scored, from the learning log.

It reads the ratings of answers whose LLM the router drew, with the probability of the draw and
that of being rated (:mod:`echolm.learning.off_policy`). For the policies of a bandit, one learns
from the older events of the log as the server does, and is evaluated on the newest ratings
(``--holdout``), since a policy looks better than it is on what it has learnt from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.console import terminal_width, write
from echolm_client.cli.exit_codes import OK
from echolm_client.cli.table import Column, table

from echolm.cli.data_directory import add_options, configuration_file, settings_from
from echolm.errors import ConfigurationError

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    import numpy as np
    from numpy.typing import NDArray

    from echolm.bandit.features import Featurizer
    from echolm.bandit.thompson import ThompsonSampling
    from echolm.learning.event_log import Event, EventLog
    from echolm.learning.logged_ratings import Ratings
    from echolm.learning.off_policy import LoggedDecisions, Probabilities
    from echolm.settings import Settings

_FIGURES = ("cost", "ESS", "IPS", "SNIPS", "doubly robust")
_COLUMNS = (Column("policy", is_text=True), *map(Column, _FIGURES))


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "estimate",
        help="what other routing policies would have scored",
        description="Estimate from the learning log what other routing policies would have "
        "scored: always one LLM, and the bandit without exploring or with another cost weight, "
        "all without load. Mean rating and standard error by three estimators: inverse propensity "
        "scores (IPS), self-normalised (SNIPS), doubly robust. ESS is the effective sample size; "
        "cost is the mean cost of an answer, where the strongest LLM's is 1.",
    )
    parser.add_argument(
        "log", nargs="?", help="SQLite file, or redis:// address (default: the configured)"
    )
    add_options(parser)
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.5,
        help="newest share of the ratings, on which the bandit's policies are evaluated "
        "(default: 0.5)",
    )
    parser.add_argument(
        "--cost-weight",
        type=float,
        action="append",
        default=[],
        metavar="W",
        help="estimate the bandit with this routing.cost_weight, too; can be repeated",
    )
    parser.add_argument(
        "--ratings",
        choices=("sampled", "asked", "judged", "volunteered", "all"),
        default="sampled",
        help="which ratings count: those that were asked for or judged at random, one of both, "
        "those that callers gave of their own accord, or all (default: sampled; volunteered if "
        "there are none)",
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
    from echolm.learning.off_policy import (
        doubly_robust,
        fit_reward_model,
        ips,
        logged_mean,
        snips,
    )

    _check(args)
    settings = _settings(args)
    with closing(_open(settings)) as events:
        log, dropped = read_decisions(settings, events, args.ratings)
        first = len(log) - max(1, round(args.holdout * len(log)))
        if first < 1:
            raise ConfigurationError(
                f"learning log: expected ratings older than the newest {args.holdout:.0%}, got "
                f"{len(log)} usable ratings in all"
            )
        rewards, newest = fit_reward_model(log), log.part(slice(first, None))
        bandit = learnt_bandit(settings, events, int(newest.order.min()))
    learnt = bandit_policies(bandit, newest.contexts, log.arms, args.cost_weight)
    policies = {f"always {arm}": (log, log.always(arm), rewards) for arm in log.arms}
    policies |= {name: (newest, target, rewards[first:]) for name, target in learnt.items()}
    costs = [settings.relative_costs[arm] for arm in log.arms]
    rows: dict[str, dict[str, Any]] = {
        name: {
            "ratings": len(part),
            "cost": float(part.weights @ (target @ costs) / part.weights.sum()),
            "ips": vars(ips(part, target, args.max_weight)),
            "snips": vars(snips(part, target, args.max_weight)),
            "dr": vars(doubly_robust(part, target, model, args.max_weight)),
        }
        for name, (part, target, model) in policies.items()
    }
    logged = vars(logged_mean(log))
    if args.json:
        report = {"ratings": len(log), "sources": log.sources(), "dropped": dropped}
        write(json.dumps(_rounded({**report, "logged": logged, "policies": rows})) + "\n")
        return OK
    lines = [["as logged", "", f"{logged['effective_sample_size']:.0f}", *[_shown(logged)] * 3]]
    for name, row in rows.items():
        figures = [f"{row['cost']:.2f}", f"{row['ips']['effective_sample_size']:.0f}"]
        lines.append([name, *figures, *(_shown(row[kind]) for kind in ("ips", "snips", "dr"))])
    used = ", ".join(f"{number} {source}" for source, number in log.sources().items())
    write(f"Mean rating by policy, from {len(log)} ratings ({used})\n")
    write(table(_COLUMNS, lines, terminal_width()))
    write(f"from the newest {len(newest)}: {', '.join(learnt)}\n")
    if dropped:
        reasons = ", ".join(f"{number} {why}" for why, number in dropped.items())
        write(f"not used: {reasons}\n")
    return OK


def _check(args: argparse.Namespace) -> None:
    """ConfigurationError if an option is out of its range."""
    if not 0 < args.holdout < 1:
        raise ConfigurationError(
            f"--holdout: expected a number between 0 and 1, got {args.holdout}"
        )
    if not args.max_weight > 0:
        raise ConfigurationError(f"--max-weight: expected a number above 0, got {args.max_weight}")
    for weight in args.cost_weight:
        if not (weight >= 0 and math.isfinite(weight)):
            raise ConfigurationError(f"--cost-weight: expected a number from 0, got {weight}")


def _settings(args: argparse.Namespace) -> Settings:
    """The settings, with the log that is named."""
    from echolm.settings.loading import load_settings

    # A log on a server is read without a data directory; a file lies in one, or is named.
    on_server = "://" in (args.log or load_settings(configuration_file(args)).event_log)
    settings = settings_from(args, must_exist=args.log is None and not on_server)
    if args.log is not None:
        changed = settings.model_dump() | {"event_log": args.log}
        settings = type(settings).model_validate(changed)
    path = settings.event_log_path
    if path is not None and not path.is_file():
        raise ConfigurationError(
            f"learning log: expected a SQLite file, or redis://host[:port][/database], got {path}; "
            "name it, or give --data-dir"
        )
    return settings


def _open(settings: Settings) -> EventLog:
    from echolm.wiring.learning import open_event_log

    return open_event_log(settings)


def read_decisions(
    settings: Settings, log: EventLog, ratings: Ratings = "sampled"
) -> tuple[LoggedDecisions, dict[str, int]]:
    """The usable ratings with contexts by the newest statistics, and how many others there are."""
    from echolm.bandit.features import DIMENSION, Featurizer
    from echolm.learning.logged_ratings import read_ratings

    featurizer = Featurizer()

    def convert(x: NDArray[np.float32], version: int) -> NDArray[np.float32]:
        if x.shape != (DIMENSION,):
            raise ValueError(f"context: expected {DIMENSION} elements, got {len(x)}")
        return featurizer.convert(x, version)

    revisions = {llm.name: llm.revision for llm in settings.llms}
    events = _adopting(featurizer, _events(log))
    return read_ratings(events, list(revisions), revisions, ratings, convert)


def _events(log: EventLog) -> Iterator[Event]:
    from echolm.learning.event_log import START

    position = START
    while batch := log.read(position, 1_000):
        yield from batch
        position = batch[-1].position


def _adopting(featurizer: Featurizer, events: Iterable[Event]) -> Iterator[Event]:
    """The same events; the featurizer adopts the request statistics among them."""
    from echolm.learning.request_statistics import REQUEST_STATISTICS, RequestStatistics

    for event in events:
        if event.kind == REQUEST_STATISTICS:
            with suppress(KeyError, TypeError, ValueError):  # a damaged event ends nothing
                statistics = RequestStatistics.read(event.body)
                if statistics.version > featurizer.statistics.version:
                    featurizer.adopt(statistics)
        yield event


def learnt_bandit(settings: Settings, log: EventLog, events: int) -> ThompsonSampling:
    """A bandit that has learnt from the log's first events as a server does.

    Request statistics are adopted from all of the log, since the newest contexts are made by them.

    Args:
        events: how many, other ones than ratings and preferences included.
    """
    from echolm.bandit.learning import BanditLearning
    from echolm.learning.request_statistics import REQUEST_STATISTICS
    from echolm.wiring.routing import build_bandit

    featurizer, bandit = build_bandit(settings)
    learning = BanditLearning(bandit, featurizer)
    for number, event in enumerate(_events(log)):
        known = event.kind in learning.kinds and number < events
        if known or event.kind == REQUEST_STATISTICS:
            with suppress(Exception):  # one bad event ends nothing in a server, either
                learning.apply(event)
    return bandit


def bandit_policies(
    bandit: ThompsonSampling,
    contexts: NDArray[np.float64],
    arms: Sequence[str],
    cost_weights: Sequence[float],
) -> dict[str, Probabilities]:
    """What a bandit would draw, without load: greedy; and exploring and greedy at cost weights."""
    import numpy as np

    names, own = list(bandit.arms), bandit.cost_weight
    columns = [names.index(arm) for arm in arms]
    eligible = np.tile([name in arms for name in names], (len(contexts), 1))
    qualities = bandit.qualities(contexts)[:, columns]
    relative_costs = np.array([bandit.costs[arm] for arm in arms])

    def greedy(cost_weight: float) -> Probabilities:
        best = (qualities - cost_weight * relative_costs).argmax(axis=1)
        return np.asarray(np.eye(len(arms))[best])

    policies = {"greedy": greedy(own)}
    try:
        for weight in cost_weights:
            bandit.cost_weight = weight
            # Only the probabilities are used, and not what is drawn.
            choices = bandit.choose_many(contexts, {}, np.random.default_rng(0), eligible)
            drawn = [[choice.probabilities[arm] for arm in arms] for choice in choices]
            policies[f"cost weight {weight:g}"] = np.array(drawn)
            policies[f"{weight:g}, greedy"] = greedy(weight)
    finally:
        bandit.cost_weight = own
    return policies


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
