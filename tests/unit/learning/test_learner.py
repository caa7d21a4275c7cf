from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from echolm.errors import UnavailableError
from echolm.learning.event_log import Event
from echolm.learning.fake_log import MemoryEventLog
from echolm.learning.learner import Learnable, Learner
from echolm.learning.snapshot import fingerprint, pack, unpack


class Sum:
    """Adds the numbers of its events; refuses those above a limit."""

    def __init__(self, name: str = "sum", kinds: str = "number", limit: float = 100.0) -> None:
        self.name = name
        self.kinds = frozenset(kinds.split())
        self.fingerprint = fingerprint({"limit": limit})
        self.total = np.zeros(1)
        self._limit = limit

    def apply(self, event: Event) -> None:
        number = float(event.body["n"])
        if number > self._limit:
            raise ValueError(f"{number} is too much")
        # Such that the order of events shows in the last bits.
        self.total = self.total * 0.9 + number

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


class Broken(Sum):
    """Takes over half of a state, then fails."""

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if state["total"].any():
            raise KeyError("missing")


def log_of(*numbers: float) -> MemoryEventLog:
    log = MemoryEventLog()
    for number in numbers:
        log.append("number", {"n": number})
    return log


def caught_up(log: MemoryEventLog, *models: Learnable, snapshot_every: int = 0) -> Learner:
    learner = Learner(log, models, snapshot_every)
    learner.catch_up()
    return learner


def counts(learner: Learner) -> tuple[int, int, int]:
    return learner.applied, learner.skipped, learner.ignored


def test_a_sum_is_learnt_in_order_and_only_what_is_new() -> None:
    log, model = log_of(1, 2), Sum()
    learner = Learner(log, [model])
    assert learner.catch_up(batch=1) == 2
    assert (model.total.item(), learner.position) == (0.9 + 2, "2")
    assert learner.catch_up() == 0
    log.append("number", {"n": 3})
    assert learner.catch_up() == 1
    assert model.total.item() == (0.9 + 2) * 0.9 + 3
    assert counts(learner) == (3, 0, 0)


def test_each_model_gets_the_kinds_that_it_takes() -> None:
    log = log_of(1)
    log.append("other", {"n": 10})
    log.append("both", {"n": 5})
    one, two = Sum("one", "number both"), Sum("two", "other both")
    assert counts(caught_up(log, one, two)) == (3, 0, 0)
    assert (one.total.item(), two.total.item()) == (0.9 + 5, 9.0 + 5)


def test_bad_events_are_skipped_counted_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = log_of(1, 101)
    log.append_raw("number", b"{not json")
    log.append_raw("nobody's", b"{not json")
    log.append("number", {"m": 1})
    log.append("number", {"n": 2})
    one, two = Sum("one"), Sum("two", limit=1_000)
    learner = caught_up(log, one, two)
    assert counts(learner) == (2, 4, 0)
    assert one.total.item() == 0.9 + 2
    assert two.total.item() == (0.9 + 101) * 0.9 + 2  # what one refuses, the other may use
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [w.partition(": ")[2] for w in warnings] == [
        "'number' event at 2 skipped: one: ValueError('101.0 is too much')",
        "'number' event at 3 skipped: its body is damaged",
        '"nobody\'s" event at 4 skipped: its body is damaged',
        "'number' event at 5 skipped: one: KeyError('n'); two: KeyError('n')",
    ]


def test_unknown_kinds_are_counted_and_reported_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = log_of(1)
    for kind in ("new", "newer", "new"):
        log.append(kind, {"n": 1})
    assert counts(caught_up(log, Sum())) == (1, 0, 3)
    assert [r.getMessage() for r in caplog.records] == [
        "learning log: no model here learns from 'new' events",
        "learning log: no model here learns from 'newer' events",
    ]


def test_an_outage_is_told_and_nothing_is_lost_or_learnt_twice() -> None:
    log, model = log_of(1), Sum()
    learner = Learner(log, [model], snapshot_every=1)
    log.available = False
    with pytest.raises(UnavailableError):
        learner.catch_up()
    log.available = True
    learner.catch_up()
    log.append("number", {"n": 2})
    log.available = False
    with pytest.raises(UnavailableError):
        learner.catch_up()
    log.available = True
    learner.catch_up()
    assert model.total.item() == 0.9 + 2


# Snapshots


def test_a_snapshot_stands_for_the_events_before_it() -> None:
    log, model = log_of(0.1, 0.2, 101, 0.3), Sum()
    log.append("other", {"n": 1})
    first = caught_up(log, model, snapshot_every=5)
    for number in (0.4, 0.5):
        log.append("number", {"n": number})
    whole = Sum()
    replayed = caught_up(log, whole)

    restarted = Sum()
    learner = Learner(log, [restarted], snapshot_every=5)
    assert learner.catch_up() == 2
    first.catch_up()
    assert restarted.total.tobytes() == whole.total.tobytes() == model.total.tobytes()
    assert counts(learner) == counts(replayed) == counts(first) == (5, 1, 1)


def test_snapshots_are_saved_when_enough_is_new_and_by_one_process() -> None:
    log = log_of(*range(9))
    one, other = Learner(log, [Sum()], 10), Learner(log, [Sum()], 10)
    one.catch_up()
    other.catch_up()
    assert log.load_snapshot("sum") is None
    log.append("number", {"n": 1})
    one.catch_up()
    saved = log.load_snapshot("sum")
    assert saved is not None and saved[0] == "10"
    log.append("number", {"n": 1})
    other.catch_up()  # it has 11 new events, but one's snapshot is recent
    assert log.load_snapshot("sum") == saved
    for _ in range(9):
        log.append("number", {"n": 1})
    other.catch_up()
    newer = log.load_snapshot("sum")
    assert newer is not None and newer[0] == "20"


def test_without_snapshots_none_is_saved_or_used() -> None:
    log = log_of(*range(9))
    caught_up(log, Sum())
    assert log.load_snapshot("sum") is None
    log.save_snapshot("sum", "9", b"")
    assert caught_up(log, Sum()).applied == 9


def changed(data: bytes, **values: Any) -> bytes:
    return pack({**unpack(data), **values})


@pytest.mark.parametrize(
    "damaged",
    [
        lambda data: b"",
        lambda data: b"nonsense",
        lambda data: data[: len(data) // 2],
        lambda data: data[:90] + bytes([data[90] ^ 1]) + data[91:],
        lambda data: pack({}),
        lambda data: changed(data, format=2),
        lambda data: changed(data, fingerprint="other"),
        lambda data: changed(data, applied="many"),
        lambda data: changed(data, models={}),
        lambda data: changed(data, models={"sum": {}}),
        lambda data: changed(data, models=None),
    ],
)
def test_a_snapshot_that_is_of_no_use_is_reported_and_replaced(
    damaged: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_of(*range(6))
    caught_up(log, Sum(), snapshot_every=5)
    saved = log.load_snapshot("sum")
    assert saved is not None
    log.save_snapshot("sum", "3", damaged(saved[1]))
    model = Sum()
    learner = caught_up(log, model, snapshot_every=5)
    assert learner.applied == 6
    whole = Sum()
    caught_up(log, whole)
    assert model.total == whole.total
    assert "the learning log is replayed from its start" in caplog.text
    replaced = log.load_snapshot("sum")
    assert replaced is not None
    assert replaced[0] == "6"
    assert unpack(replaced[1])["applied"] == 6


def test_a_snapshot_of_another_configuration_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    log = log_of(1, 50, 3)
    caught_up(log, Sum(limit=100), snapshot_every=3)
    model = Sum(limit=10)
    assert counts(caught_up(log, model, snapshot_every=3)) == (2, 1, 0)
    assert model.total.item() == 0.9 + 3
    assert "made under another configuration" in caplog.text


def test_when_one_model_cannot_be_restored_all_start_afresh() -> None:
    log = log_of(1, 2, 3)
    caught_up(log, Sum("a"), Broken("b"), snapshot_every=3)
    assert log.load_snapshot("a+b") is not None
    one, broken = Sum("a"), Broken("b")
    learner = caught_up(log, one, broken, snapshot_every=3)
    assert learner.applied == 3
    whole = Sum()
    caught_up(log, whole)
    assert one.total == broken.total == whole.total


def test_a_snapshot_that_cannot_be_saved_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Full(MemoryEventLog):
        full = True

        def save_snapshot(self, name: str, position: str, state: bytes) -> None:
            if self.full:
                raise UnavailableError("the disk is full")
            super().save_snapshot(name, position, state)

    log = Full()
    log.append("number", {"n": 1})
    model = Sum()
    learner = caught_up(log, model, snapshot_every=1)
    assert "the disk is full; tried again later" in caplog.text
    assert model.total.item() == 1
    log.full = False
    learner.catch_up()
    assert log.load_snapshot("sum") is not None
