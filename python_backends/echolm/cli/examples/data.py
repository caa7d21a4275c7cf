"""What the subcommands of ``echolm examples`` share: the data directory that they work on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echolm_client.cli.arguments import Subparsers, add_verb

from echolm.cli.data_directory import add_options, settings_from
from echolm.settings import Settings

if TYPE_CHECKING:
    from echolm.examples.statistics import StatisticsTable
    from echolm.examples.write_ahead_log import WriteAheadLog
    from echolm.learning.event_log import EventLog
    from echolm.store.milvus import MilvusStore


@dataclass
class ExampleData:
    """Everything that examples are kept in."""

    settings: Settings
    store: MilvusStore
    statistics: StatisticsTable
    log: EventLog
    write_ahead_log: WriteAheadLog


def add_example_verb(
    subparsers: Subparsers, name: str, text: str, details: str = ""
) -> argparse.ArgumentParser:
    """The parser of a subcommand, with the options of the data directory.

    Args:
        text: what it does, in a line.
        details: more sentences, for its own help.
    """
    description = f"{text[0].upper()}{text[1:]}. {details}".strip()
    parser = add_verb(subparsers, name, help=text, description=description)
    add_options(parser, default=argparse.SUPPRESS)
    return parser


@contextmanager
def opened(args: argparse.Namespace, *, must_exist: bool = True) -> Iterator[ExampleData]:
    """The examples of the data directory that the options name.

    Args:
        must_exist: whether the subcommand reads what is in the directory.

    Raises:
        ConfigurationError: there is no such data directory.
        ConfigurationError, UnavailableError: as :func:`open_examples`.
    """
    with open_examples(settings_from(args, must_exist=must_exist)) as data:
        yield data


@contextmanager
def open_examples(settings: Settings) -> Iterator[ExampleData]:
    """Store, statistics and logs of a data directory, with the statistics up to date.

    Raises:
        ConfigurationError, UnavailableError: a part cannot be used.
    """
    from echolm.serving.attach import attached
    from echolm.wiring.examples import open_statistics, open_write_ahead_log
    from echolm.wiring.learning import open_event_log
    from echolm.wiring.retrieval import open_store

    with ExitStack() as closing:
        settings = closing.enter_context(attached(settings))
        store = open_store(settings)
        closing.callback(store.close)
        log = open_event_log(settings)
        closing.callback(log.close)
        statistics = open_statistics(settings)
        closing.callback(statistics.close)
        statistics.follow(log)
        write_ahead_log = open_write_ahead_log(settings)
        closing.callback(write_ahead_log.close)
        yield ExampleData(settings, store, statistics, log, write_ahead_log)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error.

    Args:
        total: how many there are to do; None: not known.

    Returns:
        A function that takes how many more have been done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total)
        yield lambda count: shown.advance(task, count)
