"""The command ``echolm`` as a process, on examples in memory.

echolm_on_fake_store.py N VERB …    with N examples; `--data-dir` must name a directory

Everything but the store is real.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from echolm.cli.examples import data
from echolm.cli.main import main
from echolm.examples.events import CHANGE, change
from echolm.examples.statistics import StatisticsTable
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.settings import Settings
from echolm.store.base import Example, scope_key
from echolm.testing.store import InMemoryStore
from echolm.wiring.learning import open_event_log

FIRST_ID = 9_007_199_254_740_993
DIMENSION = 4


def example(number: int) -> Example:
    request = f"request {number}:\n\x1b[31ma text of many words " + "and more " * 20
    scope = scope_key("t", "")
    return Example(FIRST_ID + number, request, "response", "t", scope, "large_llm", 0.5, 1, 1)


@contextmanager
def open_examples(settings: Settings) -> Iterator[data.ExampleData]:
    store: Any = InMemoryStore(DIMENSION)
    examples = [example(number) for number in range(NUMBER)]
    if examples:
        store.upsert(examples, np.ones((NUMBER, DIMENSION), np.float32))
    with (
        closing(open_event_log(settings)) as log,
        closing(StatisticsTable(settings.statistics_path, settings.relative_costs)) as statistics,
        closing(WriteAheadLog(settings.write_ahead_log_path, 10)) as write_ahead_log,
    ):
        log.append(CHANGE, change(examples))
        statistics.follow(log)
        yield data.ExampleData(settings, store, statistics, log, write_ahead_log)


if __name__ == "__main__":
    NUMBER = int(sys.argv.pop(1))
    data.open_examples = open_examples
    sys.exit(main())
