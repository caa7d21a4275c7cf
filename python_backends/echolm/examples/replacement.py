"""A better answer takes an example's place, at whatever moment the process may end.

Store and log cannot be changed at once, and texts must not be in the log. So the log is told
first which id shall follow which; then the store takes the new example, the log is told that it
has, the old one is deleted, and a ``REPLAY`` of the new one ends it. What was begun and has not
ended can be finished by any process that follows the log. Each step may be made twice.
"""

from __future__ import annotations

import logging

from echolm.examples.events import CHANGE, REPLAY, SUCCESSION, change, replayed, succession
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import EventLog
from echolm.store.base import Example, ExampleStore, Stored

logger = logging.getLogger("echolm")

_REASON = "replayed"


def succeed(
    store: ExampleStore, statistics: StatisticsTable, log: EventLog, old: int, better: Stored
) -> bool:
    """Let an example take the place of ``old``, which had been replayed for it.

    Returns:
        False if ``old`` is gone, or another process was first; nothing has changed then.

    Raises:
        UnavailableError: store, log or statistics cannot be reached; :func:`finish_interrupted`
            does the rest, or takes it back.
    """
    example, embedding = better
    log.append(SUCCESSION, succession(old, example.id))
    statistics.follow(log)
    first = any(one.new == example.id for one in statistics.successions())
    if not first or not statistics.known([old]):
        log.append(SUCCESSION, succession(old, example.id, abandoned=True))
        return False
    store.upsert([example], embedding[None])
    _complete(store, log, old, example)
    return True


def finish_interrupted(store: ExampleStore, statistics: StatisticsTable, log: EventLog) -> int:
    """Finish all successions that processes have left half done; gives how many there were.

    One whose new example has not reached the store is taken back, since its text is lost; so is
    one whose old example was removed meanwhile.

    Raises:
        UnavailableError: store, log or statistics cannot be reached; calling again goes on.
    """
    statistics.follow(log)
    pending = statistics.successions()
    for one in pending:
        arrived = [example for example, _ in store.get([one.new])]
        if arrived and not one.made and statistics.known([one.old]):
            _complete(store, log, one.old, arrived[0])
            continue
        if arrived and not one.made:  # the old one was deleted, and must not come back by this
            store.delete([one.new])
            if statistics.known([one.new]):
                log.append(CHANGE, change(removed=[one.new], reason=_REASON))
        if one.made:
            store.delete([one.old])
            if statistics.known([one.old]):  # found in the store and given an account since
                log.append(CHANGE, change(removed=[one.old], reason=_REASON))
        if arrived and one.made:
            log.append(REPLAY, replayed(one.new, 1))
        else:
            log.append(SUCCESSION, succession(one.old, one.new, abandoned=True))
    if pending:
        statistics.follow(log)
        logger.info("%d replacements of examples that were interrupted have ended", len(pending))
    return len(pending)


def _complete(store: ExampleStore, log: EventLog, old: int, example: Example) -> None:
    log.append(CHANGE, change([example], [old], _REASON, succeeded=[(old, example.id)]))
    store.delete([old])
    log.append(REPLAY, replayed(example.id, 1))
