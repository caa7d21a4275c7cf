"""What is known of examples, and what adds, removes and improves them.

``owner`` is the name of this replica, different from all others'.
"""

from __future__ import annotations

from collections.abc import Callable

from echolm.errors import ConfigurationError
from echolm.examples.maintenance import Maintenance
from echolm.examples.off_peak import OffPeakReplay
from echolm.examples.replay import Replayed, Replayer
from echolm.examples.statistics import StatisticsTable
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.examples.writer import ExampleWriter
from echolm.judges.similarity import TextEmbedder
from echolm.learning.event_log import EventLog
from echolm.learning.request_sample import NewestStatistics
from echolm.learning.retention import Retention
from echolm.load.tracker import LoadTracker, ServingLoad
from echolm.retrieval.relevance import SimilarityScale
from echolm.settings import Settings
from echolm.store.base import ExampleStore
from echolm.wiring.learning import needed_snapshots
from echolm.wiring.llms import build_endpoints, build_judge


def open_statistics(settings: Settings) -> StatisticsTable:
    """What each stored example is worth; UnavailableError if the file cannot be used."""
    return StatisticsTable(
        settings.statistics_path, settings.relative_costs, settings.examples.value_decay
    )


def open_write_ahead_log(settings: Settings) -> WriteAheadLog:
    """Admitted interactions that are not stored yet; UnavailableError if it cannot be used."""
    return WriteAheadLog(settings.write_ahead_log_path, settings.examples.max_pending)


def build_writer(
    settings: Settings, store: ExampleStore, write_ahead_log: WriteAheadLog, log: EventLog
) -> ExampleWriter:
    """What stores admitted interactions, in a thread that starts now."""
    return ExampleWriter(store, write_ahead_log, log, settings.examples)


def build_maintenance(
    settings: Settings,
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    owner: str,
    newest: NewestStatistics,
) -> Maintenance:
    """What keeps the store within its limits, by what requests look like."""

    def same_similarity() -> float:
        return SimilarityScale.of(newest.statistics).same

    return Maintenance(store, statistics, log, settings.examples, owner, same_similarity)


def build_retention(
    settings: Settings, statistics: StatisticsTable, log: EventLog, owner: str
) -> Retention:
    """What removes old events from the log; where no snapshots are made it removes none."""
    days = settings.learning.retention_days if settings.learning.snapshot_every else 0.0
    return Retention(log, days, needed_snapshots(settings), lambda: statistics.save(log), owner)


def build_replayer(
    settings: Settings,
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    embedder: TextEmbedder,
) -> Replayer:
    """What improves examples, with a judge of its own; ConfigurationError if there is none."""
    endpoints = build_endpoints(settings)
    # What replay asks of the LLMs is no load that replay has to make room for.
    judge = build_judge(settings, endpoints, embedder, LoadTracker())
    if judge is None:
        raise ConfigurationError(
            f"replay: expected a judge in judging.kind, but {settings.no_judge}: nothing else says "
            "which answer is better"
        )
    return Replayer(store, statistics, log, endpoints, judge, settings)


def build_off_peak_replay(
    settings: Settings,
    replayer: Replayer,
    log: EventLog,
    load: ServingLoad,
    owner: str,
    on_replayed: Callable[[Replayed], None],
) -> OffPeakReplay:
    """What improves examples while the LLMs are idle.

    Args:
        load: what all LLMs are serving now, replay not counted.
        on_replayed: is called with the result for each example.
    """

    def in_flight() -> int:
        return sum(load.in_flight(llm.name) for llm in settings.llms)

    return OffPeakReplay(replayer, log, settings.replay, in_flight, owner, on_replayed)
