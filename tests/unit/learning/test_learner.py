from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event
from echolm.learning.learner import Learnable, Learner
from echolm.learning.snapshot import fingerprint, pack, unpack
from echolm.testing.event_log import MemoryEventLog
from event_log_contract import FOR_EVER


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


NAME = Learner(MemoryEventLog(), [Sum()]).snapshot_name


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
    first = log.load_snapshot(NAME)
    assert first is not None and first[0] == "9"  # so that all who learn anew have the same
    log.append("number", {"n": 1})
    other.catch_up()
    assert log.load_snapshot(NAME) == first
    for _ in range(9):
        log.append("number", {"n": 1})
    one.catch_up()
    saved = log.load_snapshot(NAME)
    assert saved is not None and saved[0] == "19"
    log.append("number", {"n": 1})
    other.catch_up()  # it has 11 new events, but one's snapshot is recent
    assert log.load_snapshot(NAME) == saved
    for _ in range(9):
        log.append("number", {"n": 1})
    other.catch_up()
    newer = log.load_snapshot(NAME)
    assert newer is not None and newer[0] == "29"


def saved_and_removed(log: MemoryEventLog, learner: Learner) -> int:
    """Learn five more events, and remove what snapshots have taken in; gives how many."""
    for n in range(5):
        log.append("number", {"n": n})
    learner.catch_up()
    return log.trim(FOR_EVER, [one.position for one in log.snapshots()])


def test_a_slow_process_does_not_put_an_older_snapshot_over_a_newer_one() -> None:
    """What is behind the newer one may be removed by then, and the older one of no use."""

    class Slow(MemoryEventLog):
        def save_snapshot(
            self, name: str, position: str, state: bytes, replaces: str = START
        ) -> bool:
            if meanwhile:
                meanwhile.pop()()
            return super().save_snapshot(name, position, state, replaces)

    def another_saves_and_events_are_removed() -> None:
        assert saved_and_removed(log, quick) == 15

    meanwhile: list[Any] = []
    log = Slow()
    for n in range(5):
        log.append("number", {"n": n})
    slow, quick = Learner(log, [Sum()], 5), Learner(log, [Sum()], 5)
    slow.catch_up()
    quick.catch_up()
    for n in range(5):
        log.append("number", {"n": n})
    meanwhile.append(another_saves_and_events_are_removed)
    slow.catch_up()
    assert not meanwhile
    found = log.load_snapshot(NAME)
    assert found is not None and found[0] == "15"
    slow.catch_up()
    late = caught_up(log, Sum(), snapshot_every=5)
    assert slow.events == late.events == 15


def test_a_snapshot_that_is_replaced_while_it_is_loaded_costs_nothing() -> None:
    class Busy(MemoryEventLog):
        times = 0

        def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
            found = super().load_snapshot(name)
            times, self.times = self.times, 0
            if times:
                another_saves_and_events_are_removed()
                self.times = times - 1
            return found

    def another_saves_and_events_are_removed() -> None:
        assert saved_and_removed(log, quick) == 5

    log = Busy()
    quick, late = (Learner(log, [Sum()], 5) for _ in range(2))
    another_saves_and_events_are_removed()
    log.times = 3
    late.catch_up()
    assert log.times == 0
    log.append("number", {"n": 1})
    late.catch_up()
    replayed = caught_up(log, Sum(), snapshot_every=5)
    assert late.events == replayed.events == 21


def test_without_snapshots_none_is_saved_or_used() -> None:
    log = log_of(*range(9))
    caught_up(log, Sum())
    assert log.load_snapshot(NAME) is None
    log.save_snapshot(NAME, "9", b"")
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
    saved = log.load_snapshot(NAME)
    assert saved is not None
    log.save_snapshot(NAME, "3", damaged(saved[1]), replaces=saved[0])
    model = Sum()
    learner = caught_up(log, model, snapshot_every=5)
    assert learner.applied == 6
    whole = Sum()
    caught_up(log, whole)
    assert model.total == whole.total
    assert "what is left of the learning log is learnt anew" in caplog.text
    replaced = log.load_snapshot(NAME)
    assert replaced is not None
    assert replaced[0] == "6"
    assert unpack(replaced[1])["applied"] == 6


def test_a_snapshot_of_another_configuration_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    log = log_of(1, 50, 3)
    caught_up(log, Sum(limit=100), snapshot_every=3)
    model = Sum(limit=10)
    caplog.set_level(logging.INFO)
    assert counts(caught_up(log, model, snapshot_every=3)) == (2, 1, 0)
    assert model.total.item() == 0.9 + 3
    assert "learnt anew from the 3 events that the learning log has, since 20" in caplog.text
    # Nor is it lost: whoever goes back to that configuration goes on with it.
    again = Sum(limit=100)
    learner = Learner(log, [again], 3)
    assert learner.catch_up() == 0
    assert again.total.item() == (0.9 + 50) * 0.9 + 3


def test_when_one_model_cannot_be_restored_all_start_afresh() -> None:
    log = log_of(1, 2, 3)
    caught_up(log, Sum("a"), Broken("b"), snapshot_every=3)
    [saved] = log.snapshots()
    assert saved.name.startswith("a+b@")
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

        def save_snapshot(
            self, name: str, position: str, state: bytes, replaces: str = START
        ) -> bool:
            if self.full:
                raise UnavailableError("the disk is full")
            return super().save_snapshot(name, position, state, replaces)

    log = Full()
    log.append("number", {"n": 1})
    model = Sum()
    learner = caught_up(log, model, snapshot_every=1)
    assert "the disk is full; tried again later" in caplog.text
    assert model.total.item() == 1
    log.full = False
    learner.catch_up()
    assert log.load_snapshot(NAME) is not None


# A log whose oldest events were removed


def test_what_was_removed_is_in_the_snapshot() -> None:
    log, whole = log_of(0.1, 0.2, 0.3), Sum()
    running = caught_up(log, whole, snapshot_every=3)
    assert log.trim(FOR_EVER, [running.position]) == 3
    log.append("number", {"n": 0.4})
    running.catch_up()
    model = Sum()
    restarted = caught_up(log, model, snapshot_every=3)
    assert model.total.tobytes() == whole.total.tobytes()
    assert counts(restarted) == counts(running) == (4, 0, 0)


def test_one_that_had_slept_through_a_removal_goes_on_from_the_snapshot() -> None:
    log, whole, sleeper = log_of(0.1, 0.2), Sum(), Sum()
    running, asleep = Learner(log, [whole], 2), Learner(log, [sleeper], 2)
    running.catch_up()
    asleep.catch_up()
    for number in (0.3, 0.4, 0.5):
        log.append("number", {"n": number})
    running.catch_up()
    log.trim(FOR_EVER, [running.position])
    log.append("number", {"n": 0.6})
    running.catch_up()
    asleep.catch_up()
    assert sleeper.total.tobytes() == whole.total.tobytes()
    assert counts(asleep) == counts(running) == (6, 0, 0)


@pytest.mark.parametrize("old_snapshot", [False, True])
def test_without_a_snapshot_it_learns_from_what_is_left(old_snapshot: bool) -> None:
    log, model = log_of(1, 2), Sum()
    learner = caught_up(log, model, snapshot_every=9)
    snapshot = log.load_snapshot(NAME)
    assert snapshot is not None
    for number in (3, 4, 5):
        log.append("number", {"n": number})
    log.trim(FOR_EVER, ["4"])
    if not old_snapshot:
        log.drop_snapshot(NAME)
        learner.catch_up()
    else:  # which nobody should have ignored
        with pytest.raises(UnavailableError):
            learner.catch_up()
        learner.catch_up()
    assert counts(learner) == (1, 0, 0)
    assert model.total.item() == 5
    assert caught_up(log, Sum(), snapshot_every=9).events == 1


def test_of_those_that_learn_anew_the_first_snapshot_counts() -> None:
    log = log_of(1, 2, 3)
    early, late = Sum(), Sum()

    class Meanwhile(Learner):
        """More is removed while it learns, and another learns faster."""

        def _save_first(self) -> bool:
            log.trim(FOR_EVER, ["2"])
            caught_up(log, late, snapshot_every=5)
            return super()._save_first()

    Meanwhile(log, [early], 5).catch_up()
    assert early.total.tobytes() == late.total.tobytes()
    log.append("number", {"n": 4})
    restarted = Sum()
    caught_up(log, restarted, snapshot_every=5)
    assert restarted.total.item() == 3 * 0.9 + 4


def test_a_snapshot_in_use_is_saved_again_once_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = log_of(1), 1_000.0
    monkeypatch.setattr("echolm.learning.learner.time.monotonic", lambda: now)
    learner = caught_up(log, Sum(), snapshot_every=5)
    saved = log.snapshots()
    learner.catch_up()
    assert log.snapshots() == saved
    now += 25 * 3_600
    log.append("number", {"n": 1})
    learner.catch_up()
    [renewed] = log.snapshots()
    assert renewed.position == "2"
    # Soon after a start, too: what was at rest for long is in use again.
    restarted = caught_up(log, Sum(), snapshot_every=5)
    log.append("number", {"n": 1})
    now += 601
    restarted.catch_up()
    assert log.snapshots()[0].position == "3"
