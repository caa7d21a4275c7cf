"""Keeps models up to date with the learning log, in the log's order."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event, EventLog
from echolm.learning.snapshot import fingerprint, pack, unpack

logger = logging.getLogger("echolm")

_FORMAT = 1


class OutdatedError(Exception):
    """The event is intact, but of something that is no longer there: not an error."""


class Learnable(Protocol):
    """A model that learns from events and from nothing else.

    After the same events in the same order its state must be the same, bit by bit: no clock
    but ``Event.at_ms``, and no randomness that is not part of the state.
    """

    @property
    def name(self) -> str:
        """Unique within a learner."""
        ...

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of events that :meth:`apply` is given."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs whenever a state of another configuration would be of no use.

        See :func:`echolm.learning.snapshot.fingerprint`; dimensions, names of arms, priors,
        rates and a version of the algorithm belong in it.
        """
        ...

    def apply(self, event: Event) -> None:
        """Learn from one event.

        Raises:
            OutdatedError: the event is of no use any more.
            Exception: the event is of no use. Nothing has changed in either case.
        """
        ...

    def state(self) -> dict[str, Any]:
        """All that was learnt: JSON values and numpy arrays, also nested (see ``snapshot``)."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state that :meth:`state` gave under the same fingerprint.

        Afterwards every event must do exactly what it would have done there. ValueError,
        or any other exception, if the state is damaged.
        """
        ...


class Learner:
    """Applies the log's events to models.

    Every process applies the same events in the same order, so all reach the same state. An
    event that cannot be applied is skipped, counted and logged, never fatal. Snapshots only
    shorten the replay at start: one that is missing, damaged or of another configuration
    costs time, and the log is replayed from its start.

    Attributes:
        position: of the last event that was read.
        applied: events that every model which takes their kind could use.
        skipped: damaged events, and events that a model could not use.
        ignored: events of kinds that no model here takes, and outdated ones.

    The counts start at the log's start, also where a snapshot stood in for a part of it.
    """

    def __init__(
        self, log: EventLog, learnables: Sequence[Learnable], snapshot_every: int = 0
    ) -> None:
        """
        Args:
            snapshot_every: events after which a snapshot is saved; 0: none is saved or used.
                Of several processes with the same models, the first to get there saves it.
        """
        self._log = log
        self._learnables = tuple(learnables)
        self._snapshot_every = snapshot_every
        self._snapshot_name = "+".join(sorted(one.name for one in self._learnables))
        self._fingerprint = fingerprint({one.name: one.fingerprint for one in self._learnables})
        self._started = False
        self._saved = 0  # events in the newest snapshot that we know of
        self._useless: tuple[str, bytes] | None = None  # the snapshot that did not fit
        self._foreign: set[str] = set()
        self.position = START
        self.applied = 0
        self.skipped = 0
        self.ignored = 0

    @property
    def events(self) -> int:
        """Events read, from the log's start."""
        return self.applied + self.skipped + self.ignored

    def catch_up(self, batch: int = 1_000) -> int:
        """Apply all new events and return how many were read.

        Raises:
            UnavailableError: the log cannot be read; calling again goes on where it ended.
        """
        if not self._started:
            self._resume()
            self._started = True
        count = 0
        while events := self._log.read(self.position, batch):
            for event in events:
                self._apply(event)
                self.position = event.position
            count += len(events)
        if self._snapshot_every and self.events - self._saved >= self._snapshot_every:
            self._save()
        return count

    def _apply(self, event: Event) -> None:
        takers = [one for one in self._learnables if event.kind in one.kinds]
        outdated = False
        if not event.body:
            problems = ["its body is damaged"]
        elif takers:
            results = [_teach(one, event) for one in takers]
            problems = [result for result in results if result]
            outdated = all(result is None for result in results)
        else:
            self.ignored += 1
            if event.kind not in self._foreign:
                self._foreign.add(event.kind)
                logger.info("learning log: no model here learns from %r events", event.kind)
            return
        if problems:
            self.skipped += 1
            logger.warning(
                "learning log: %r event at %s skipped: %s",
                event.kind,
                event.position,
                "; ".join(problems),
            )
        elif outdated:
            self.ignored += 1
        else:
            self.applied += 1

    def _resume(self) -> None:
        """Start from the newest snapshot, if there is one that fits."""
        if not self._snapshot_every:
            return
        found = self._log.load_snapshot(self._snapshot_name)
        if found is None:
            return
        position, data = found
        fresh = [copy.deepcopy(one.state()) for one in self._learnables]
        try:
            snapshot = self._read(data)
            counts = [int(snapshot[key]) for key in ("applied", "skipped", "ignored")]
            for one in self._learnables:
                one.restore(snapshot["models"][one.name])
        except Exception as error:  # it saves time, no more
            for one, state in zip(self._learnables, fresh, strict=True):
                one.restore(state)
            self._useless = found
            logger.warning(
                "snapshot %s at %s is of no use, the learning log is replayed from its start: %s",
                self._snapshot_name,
                position,
                error,
            )
            return
        self.applied, self.skipped, self.ignored = counts
        self.position = position
        self._saved = self.events
        logger.info("snapshot %s stands for %d events", self._snapshot_name, self.events)

    def _read(self, data: bytes) -> dict[str, Any]:
        snapshot = unpack(data)
        if snapshot.get("format") != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {snapshot.get('format')!r}")
        if snapshot.get("fingerprint") != self._fingerprint:
            raise ValueError("it was made under another configuration")
        return snapshot

    def _save(self) -> None:
        """Save a snapshot, unless another process has saved a recent one."""
        try:
            saved = self._saved_elsewhere()
            if self.events - saved >= self._snapshot_every:
                self._log.save_snapshot(self._snapshot_name, self.position, self._packed())
                saved = self.events
                self._useless = None
            self._saved = saved
        except UnavailableError as error:
            logger.warning("snapshot %s: %s; tried again later", self._snapshot_name, error)

    def _saved_elsewhere(self) -> int:
        found = self._log.load_snapshot(self._snapshot_name)
        if found is None or found == self._useless:
            return 0
        try:
            snapshot = self._read(found[1])
            return sum(int(snapshot[key]) for key in ("applied", "skipped", "ignored"))
        except (ValueError, KeyError, TypeError):
            return 0

    def _packed(self) -> bytes:
        return pack(
            {
                "format": _FORMAT,
                "fingerprint": self._fingerprint,
                "applied": self.applied,
                "skipped": self.skipped,
                "ignored": self.ignored,
                "models": {one.name: one.state() for one in self._learnables},
            }
        )


def _teach(model: Learnable, event: Event) -> str | None:
    """Apply the event to the model; returns what was wrong with it, or None if outdated."""
    try:
        model.apply(event)
    except OutdatedError:
        return None
    except Exception as error:  # one bad event must not end all learning
        return f"{model.name}: {error!r}"
    return ""
