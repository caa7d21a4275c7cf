"""What the subcommands of ``echolm examples`` share: the data directory that they work on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.console import write
from echolm_client.cli.exit_codes import OK

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
    subparsers: Subparsers,
    run: Callable[[argparse.Namespace], int],
    name: str,
    text: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """The parser of a subcommand, with the options of the data directory.

    Args:
        text: what it does, in a line.
        details: more sentences, for its own help.
    """
    description = f"{text[0].upper()}{text[1:]}. {details}".strip()
    parser = add_verb(subparsers, name, help=text, description=description)
    add_options(parser, default=argparse.SUPPRESS)
    parser.set_defaults(func=run)
    return parser


def opened(
    args: argparse.Namespace, *, must_exist: bool = True
) -> AbstractContextManager[ExampleData]:
    """The examples of the data directory that the options name, which ``import`` may make."""
    return open_examples(settings_from(args, must_exist=must_exist))


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

    with (
        attached(settings) as settings,
        closing(open_store(settings)) as store,
        closing(open_event_log(settings)) as log,
        closing(open_statistics(settings)) as statistics,
        closing(open_write_ahead_log(settings)) as write_ahead_log,
    ):
        statistics.follow(log)
        yield ExampleData(settings, store, statistics, log, write_ahead_log)


def write_report(args: argparse.Namespace, figures: dict[str, Any], lines: Sequence[str]) -> int:
    """Print figures, with ``--json`` as one object, else as lines; returns the exit code."""
    write((json.dumps(figures) if args.json else "\n".join(lines)) + "\n")
    return OK


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; gives a function that takes how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total)
        yield lambda count: shown.advance(task, count)
