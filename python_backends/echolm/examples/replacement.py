"""A better answer replaces an example, at whatever moment the process may end.

The better answer gets an id of its own. An id stands for one text: processes keep features and
token counts by id, the shared prefix index knows prompts by the ids in them, and a late rating
must not credit a text that was not in the prompt. And a row of Milvus is written anew by a
deletion and an insertion, so a crash in between would lose the example's only copy.

Store and log cannot be changed at once, and texts must not be in the log. So the log is told
first which id shall replace which; then the store takes the new example, the log is told that it
has, the old one is deleted, and a ``REPLAY`` of the new one ends it. What was begun and has not
ended can be finished by any process that follows the log. Each step may be made twice.
"""

from __future__ import annotations

import logging

from echolm.examples.events import CHANGE, REPLACEMENT, REPLAY, change, replacement, replayed
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import EventLog
from echolm.store.base import Example, ExampleStore, Stored

logger = logging.getLogger("echolm")

_REASON = "replayed"


def replace_example(
    store: ExampleStore, statistics: StatisticsTable, log: EventLog, old: int, better: Stored
) -> bool:
    """Replace the example ``old`` by a better one, which replay has found.

    Gives False if ``old`` is gone, or another process was first; nothing has changed then.

    Raises:
        UnavailableError: store, log or statistics cannot be reached; :func:`finish_interrupted`
            does the rest, or takes it back.
    """
    example, embedding = better
    log.append(REPLACEMENT, replacement(old, example.id))
    statistics.follow(log)
    first = any(begun.new == example.id for begun in statistics.replacements())
    if not first or not statistics.known([old]):
        log.append(REPLACEMENT, replacement(old, example.id, abandoned=True))
        return False
    store.upsert([example], embedding[None])
    _complete(store, log, old, example)
    return True


def finish_interrupted(store: ExampleStore, statistics: StatisticsTable, log: EventLog) -> int:
    """Finish all replacements that processes have left half done; gives how many there were.

    One whose new example has not reached the store is taken back, since its text is lost; so is
    one whose old example was removed meanwhile.

    Raises:
        UnavailableError: store, log or statistics cannot be reached; calling again goes on.
    """
    statistics.follow(log)
    interrupted = statistics.replacements()
    for begun in interrupted:
        old, new = begun.old, begun.new
        arrived = [example for example, _ in store.get([new])]
        if arrived and not begun.logged and statistics.known([old]):
            _complete(store, log, old, arrived[0])
            continue
        if arrived or begun.logged:
            # If the old one was removed meanwhile, the new one must not bring it back.
            superfluous = old if begun.logged else new
            store.delete([superfluous])
            if statistics.known([superfluous]):  # it was seen in the store and adopted since
                log.append(CHANGE, change(removed=[superfluous], reason=_REASON))
        if arrived and begun.logged:
            log.append(REPLAY, replayed(new, 1))
        else:
            log.append(REPLACEMENT, replacement(old, new, abandoned=True))
    if interrupted:
        statistics.follow(log)
        logger.info("finished %d interrupted replacements of examples", len(interrupted))
    return len(interrupted)


def _complete(store: ExampleStore, log: EventLog, old: int, example: Example) -> None:
    log.append(CHANGE, change([example], [old], _REASON, replacements=[(old, example.id)]))
    store.delete([old])
    log.append(REPLAY, replayed(example.id, 1))
