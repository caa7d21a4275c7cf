"""Keeps models up to date with the learning log, in the log's order."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Protocol

from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event, EventLog, TrimmedError
from echolm.learning.snapshot import fingerprint, pack, unpack

logger = logging.getLogger("echolm")

_FORMAT = 1
_COUNTS = ("applied", "skipped", "ignored")
_RENEW_S = 24 * 3_600.0
_RENEW_FIRST_S = 600.0


class OutdatedError(Exception):
    """The event is intact, but is about something that is no longer there: not an error."""


class Learnable(Protocol):
    """A model that learns from events and from nothing else.

    After the same events in the same order its state must be the same, bit by bit: no clock
    but ``Event.at_ms``, and no randomness that is not part of the state.
    """

    @property
    def name(self) -> str:
        """Unique within a learner."""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of events that :meth:`apply` is given."""

    @property
    def fingerprint(self) -> str:
        """A text that differs whenever a state of another configuration could not be used.

        Dimensions, names of arms, priors, rates and a version of the algorithm belong in it.
        """

    def apply(self, event: Event) -> None:
        """Learn from one event.

        Raises:
            OutdatedError: the event is about something that is no longer there.
            Exception: the event cannot be applied. Nothing has changed in either case.
        """

    def state(self) -> dict[str, Any]:
        """All that was learnt, in the form that :func:`~echolm.learning.snapshot.pack` takes."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state that :meth:`state` gave under the same fingerprint.

        Afterwards every event must do exactly what it would have done there. Raises any exception
        if the state is damaged.
        """


SEPARATOR = "@"
"""Between the names of models and the fingerprint in a snapshot's name."""


class Learner:
    """Applies the log's events to models.

    Every process applies the same events in the same order, so all reach the same state. An event
    that cannot be applied is skipped, counted and logged. Snapshots shorten the replay at start,
    and stand for events that were removed from the log since. Each configuration has its own.
    Where there is none, or a damaged one, what is left of the log is learnt anew.

    What is left of the log differs from time to time. So a process that has learnt anew saves a
    snapshot at once; of several processes the first one's snapshot counts, and the others take it
    over. A snapshot that is in use is saved again every day at least, since retention drops those
    of abandoned configurations.

    Args:
        snapshot_every: events after which a snapshot is saved; with 0 none is saved or used. Of
            several processes with the same models, the first to get there saves it.

    Attributes:
        position: that of the last event that was read.
        applied: events that every model which takes their kind could use.
        skipped: damaged events, and events that a model could not use.
        ignored: events of kinds that no model takes, and outdated events.

    The counts start at the log's start, also where a snapshot stood in for a part of it.
    """

    def __init__(
        self, log: EventLog, learnables: Sequence[Learnable], snapshot_every: int = 0
    ) -> None:
        self._log = log
        self._learnables = tuple(learnables)
        self._snapshot_every = snapshot_every
        self._fingerprint = fingerprint({model.name: model.fingerprint for model in learnables})
        names = "+".join(sorted(model.name for model in learnables))
        self.snapshot_name = f"{names}{SEPARATOR}{self._fingerprint}"
        self._initial_states = [copy.deepcopy(model.state()) for model in learnables]
        self._started = False
        self._anew = True  # whether no snapshot holds what was learnt yet
        self._since_ms = 0
        self._saved = 0  # events in the newest snapshot that we know of
        self._renew_at = 0.0
        self._useless: tuple[str, bytes] | None = None  # a damaged snapshot
        self._foreign: set[str] = set()
        self.position = START
        self.applied = self.skipped = self.ignored = 0

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
        try:
            count = self._follow(batch)
        except TrimmedError as error:
            logger.warning("%s; learning starts anew", error)
            count = self._follow_anew(batch)
        if self._snapshot_every and self.events:
            try:
                if not self._anew:
                    self._save()
                elif not self._save_first() and self._resume():
                    count += self._follow(batch)
            except UnavailableError as error:
                logger.warning("snapshot %s: %s; tried again later", self.snapshot_name, error)
        return count

    def _follow(self, batch: int) -> int:
        count = 0
        while events := self._log.read(self.position, batch):
            if self.position == START:
                self._since_ms = events[0].at_ms
            for event in events:
                self._apply(event)
                self.position = event.position
            count += len(events)
        return count

    def _follow_anew(self, batch: int) -> int:
        """Go on from the snapshot that stands for what was missed, or from what is left."""
        while True:
            resumed = self.position if self._resume() else None
            if resumed is None:
                self._forget()
            try:
                return self._follow(batch)
            except TrimmedError:
                snapshot = self._log.load_snapshot(self.snapshot_name)
                # It may be newer by now, and events behind the former one be gone for that.
                if snapshot is None or snapshot == self._useless or snapshot[0] == resumed:
                    self._useless = snapshot
                    self._forget()
                    raise

    def _forget(self) -> None:
        """Be as before the first event."""
        for model, state in zip(self._learnables, self._initial_states, strict=True):
            model.restore(copy.deepcopy(state))
        self.applied = self.skipped = self.ignored = 0
        self.position = START
        self._anew = True

    def _apply(self, event: Event) -> None:
        results: list[str | None] = ["its body is damaged"]
        if event.body:
            takers = [model for model in self._learnables if event.kind in model.kinds]
            results = [_teach(model, event) for model in takers]
            if not takers and event.kind not in self._foreign:
                self._foreign.add(event.kind)
                logger.info("learning log: no model here learns from %r events", event.kind)
        if problems := "; ".join(filter(None, results)):
            self.skipped += 1
            message = "learning log: %r event at %s skipped: %s"
            logger.warning(message, event.kind, event.position, problems)
        elif all(result is None for result in results):  # outdated, or no model takes it
            self.ignored += 1
        else:
            self.applied += 1

    def _resume(self) -> bool:
        """Start from the newest snapshot; False if there is none that can be used."""
        saved = self._log.load_snapshot(self.snapshot_name) if self._snapshot_every else None
        if saved is None:
            return False
        position, data = saved
        try:
            counts, states = self._read(data)
            for model in self._learnables:
                model.restore(states[model.name])
        except Exception as error:  # the rest of the log may have to do
            self._forget()
            self._useless = saved
            message = (
                "snapshot %s at %s is of no use, what is left of the learning log is learnt anew: "
                "%s"
            )
            logger.warning(message, self.snapshot_name, position, error)
            return False
        self.applied, self.skipped, self.ignored = counts
        self.position = position
        self._anew = False
        self._saved = self.events
        self._renew_at = time.monotonic() + _RENEW_FIRST_S
        logger.info("snapshot %s stands for %d events", self.snapshot_name, self.events)
        return True

    def _read(self, data: bytes) -> tuple[list[int], dict[str, Any]]:
        """The counts of a snapshot, and the states of the models."""
        snapshot = unpack(data)
        if snapshot.get("format") != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {snapshot.get('format')!r}")
        if snapshot.get("fingerprint") != self._fingerprint:
            raise ValueError("it was made under another configuration")
        return [int(snapshot[key]) for key in _COUNTS], snapshot["models"]

    def _save_first(self) -> bool:
        """Save what was learnt without a snapshot; False if another process was faster."""
        saved = self._put(START if self._useless is None else self._useless[0])
        if saved:
            since = datetime.fromtimestamp(self._since_ms // 1_000, timezone.utc).isoformat()
            message = (
                "snapshot %s: learnt anew from the %d events that the learning log has, since %s"
            )
            logger.info(message, self.snapshot_name, self.events, since)
        return saved

    def _save(self) -> None:
        """Save a snapshot if enough is new or much time has passed, unless another process has."""
        due = time.monotonic() >= self._renew_at
        if not due and self.events - self._saved < self._snapshot_every:
            return
        replaces, saved = self._saved_elsewhere()
        if self.events - saved >= self._snapshot_every or (due and self.events >= saved):
            self._put(replaces)
        else:
            self._saved = saved
            self._renew_at = max(self._renew_at, time.monotonic() + _RENEW_FIRST_S)

    def _put(self, replaces: str) -> bool:
        """Save a snapshot in the place of another; False if it is no longer there."""
        state = {
            "format": _FORMAT,
            "fingerprint": self._fingerprint,
            **{key: getattr(self, key) for key in _COUNTS},
            "models": {model.name: model.state() for model in self._learnables},
        }
        name = self.snapshot_name
        saved = self._log.save_snapshot(name, self.position, pack(state), replaces)
        if saved:
            self._anew, self._useless = False, None
            self._saved = self.events
            self._renew_at = time.monotonic() + _RENEW_S
        return saved

    def _saved_elsewhere(self) -> tuple[str, int]:
        """Position of the log's snapshot, and how many events it stands for; 0 if it is damaged."""
        saved = self._log.load_snapshot(self.snapshot_name)
        if saved is None:
            return START, 0
        position, data = saved
        try:
            return position, sum(self._read(data)[0])
        except (ValueError, KeyError, TypeError):
            return position, 0


def _teach(model: Learnable, event: Event) -> str | None:
    """Apply the event to the model; returns what was wrong with it, or None if outdated."""
    try:
        model.apply(event)
    except OutdatedError:
        return None
    except Exception as error:  # one bad event must not end all learning
        return f"{model.name}: {error!r}"
    return ""
