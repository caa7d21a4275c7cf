"""What every learning log must do; the tests of each log inherit it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from echolm.clock import now_ms
from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event, EventLog, TrimmedError

OpenLog = Callable[[], EventLog]
FOR_EVER = 2**50
"""A time in milliseconds that does not come."""

Damage = Callable[[bytes], None]


class EventLogContract:
    """Subclasses give the fixtures ``open_log``, a new connection to one and the same log each
    time, and ``damage``, which puts an event with these bytes as its body into it."""

    @pytest.fixture
    def log(self, open_log: OpenLog) -> EventLog:
        return open_log()

    def test_events_come_back_in_order_with_what_they_hold(self, log: EventLog) -> None:
        bodies = [{"n": n, "text": "é", "list": [0.1, None]} for n in range(5)]
        positions = [log.append("rating", body) for body in bodies]
        events = log.read(START, 100)
        assert [e.body for e in events] == bodies
        assert [e.position for e in events] == positions
        assert len(set(positions)) == 5 and START not in positions
        assert {e.kind for e in events} == {"rating"}
        assert all(1_700_000_000_000 < e.at_ms < 4_000_000_000_000 for e in events)

    def test_an_empty_log_has_no_events(self, log: EventLog) -> None:
        assert log.read(START, 10) == []

    def test_reading_starts_behind_a_position_and_stops_at_the_limit(self, log: EventLog) -> None:
        positions = [log.append("k", {"n": n}) for n in range(12)]
        assert [e.body["n"] for e in log.read(positions[1], 3)] == [2, 3, 4]
        assert [e.body["n"] for e in log.read(positions[8], 30)] == [9, 10, 11]
        assert log.read(positions[-1], 3) == []

    def test_all_connections_share_events_and_snapshots(self, open_log: OpenLog) -> None:
        one, other = open_log(), open_log()
        one.append("k", {"n": 1})
        one.save_snapshot("s", "1", b"x")
        assert [e.body for e in other.read(START, 10)] == [{"n": 1}]
        assert other.load_snapshot("s") == ("1", b"x")

    def test_writers_at_once_lose_nothing(self, open_log: OpenLog) -> None:
        logs = [open_log() for _ in range(2)]

        def write(worker: int) -> None:
            for n in range(25):
                logs[worker % 2].append("k", {"worker": worker, "n": n})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        events = logs[0].read(START, 1_000)
        assert events == logs[1].read(START, 1_000)
        assert len({(e.body["worker"], e.body["n"]) for e in events}) == len(events) == 100
        for worker in range(4):
            assert [e.body["n"] for e in events if e.body["worker"] == worker] == list(range(25))

    def test_a_reader_that_tails_sees_every_event_once(self, open_log: OpenLog) -> None:
        """No event may become visible behind one that was already read."""
        logs, tail = [open_log() for _ in range(3)], open_log()
        seen: list[Event] = []

        def write(log: EventLog) -> None:
            for n in range(20):
                log.append("k", {"n": n})

        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(write, log) for log in logs]
            while True:
                written = all(one.done() for one in work)
                found = tail.read(seen[-1].position if seen else START, 7)
                seen += found
                if written and not found:
                    break
            for one in work:
                one.result()
        assert seen == tail.read(START, 1_000)
        assert len(seen) == 60

    @pytest.mark.parametrize(
        "body", [b"{not json", b"[1, 2]", b"null", b"", b"\xff\xfe", b'{"a": "\xff"}', b"[" * 9_999]
    )
    def test_a_damaged_body_reads_as_an_empty_one(
        self, log: EventLog, damage: Damage, body: bytes
    ) -> None:
        damage(body)
        log.append("rating", {"n": 2})
        assert [dict(e.body) for e in log.read(START, 10)] == [{}, {"n": 2}]

    def test_a_snapshot_replaces_the_one_before(self, log: EventLog) -> None:
        assert log.load_snapshot("a") is None
        log.save_snapshot("a", "7", b"\x00\xff" * 100_000)
        log.save_snapshot("b", "8", b"")
        assert log.load_snapshot("a") == ("7", b"\x00\xff" * 100_000)
        assert log.load_snapshot("b") == ("8", b"")
        assert log.save_snapshot("a", "9", b"new", replaces="7")
        assert log.load_snapshot("a") == ("9", b"new")

    def test_a_snapshot_replaces_none_but_the_one_that_was_seen(self, open_log: OpenLog) -> None:
        one, other = open_log(), open_log()
        assert not one.save_snapshot("a", "7", b"", replaces="6")
        assert one.load_snapshot("a") is None
        assert one.save_snapshot("a", "7", b"one's")
        assert not other.save_snapshot("a", "8", b"other's")
        assert other.load_snapshot("a") == ("7", b"one's")
        assert other.save_snapshot("a", "9", b"later", replaces="7")
        assert not one.save_snapshot("a", "8", b"slower", replaces="7")
        assert one.load_snapshot("a") == ("9", b"later")

    def test_of_many_that_replace_a_snapshot_at_once_one_does(self, open_log: OpenLog) -> None:
        logs = [open_log() for _ in range(4)]
        assert logs[0].save_snapshot("a", "1-0", b"")
        seen = "1-0"
        for number in range(2, 20):
            positions = [f"{number}-{k}" for k in range(len(logs))]
            with ThreadPoolExecutor(len(logs)) as pool:
                tries = [
                    pool.submit(log.save_snapshot, "a", position, b"x", seen)
                    for log, position in zip(logs, positions, strict=True)
                ]
                saved = [one.result() for one in tries]
            assert saved.count(True) == 1
            seen = positions[saved.index(True)]
            assert logs[0].load_snapshot("a") == (seen, b"x")

    def test_snapshots_are_listed_and_dropped(self, log: EventLog) -> None:
        assert log.snapshots() == []
        before = now_ms()
        log.save_snapshot("a@1.0", "7", b"x")
        log.save_snapshot("b+c@2", "8", b"y")
        found = {one.name: one for one in log.snapshots()}
        assert {name: one.position for name, one in found.items()} == {"a@1.0": "7", "b+c@2": "8"}
        assert all(before <= one.saved_at_ms <= before + 60_000 for one in found.values())
        log.drop_snapshot("a@1.0")
        log.drop_snapshot("unknown")
        assert [one.name for one in log.snapshots()] == ["b+c@2"]
        assert log.load_snapshot("a@1.0") is None

    def test_only_what_all_have_taken_in_is_removed(self, open_log: OpenLog) -> None:
        log, other = open_log(), open_log()
        positions = [log.append("k", {"n": n}) for n in range(8)]
        assert log.trim(FOR_EVER, [positions[5], positions[2], positions[7]]) == 3
        assert log.trim(FOR_EVER, [positions[2]]) == 0
        assert [e.body["n"] for e in other.read(START, 100)] == [3, 4, 5, 6, 7]
        assert [e.body["n"] for e in other.read(positions[2], 100)] == [3, 4, 5, 6, 7]
        assert [e.position for e in other.read(positions[4], 1)] == [positions[5]]

    def test_only_what_is_old_enough_is_removed(self, log: EventLog) -> None:
        old = [log.append("k", {"n": n}) for n in range(3)]
        time.sleep(0.02)
        new = [log.append("k", {"n": n}) for n in range(3, 6)]
        before_ms = log.read(START, 100)[3].at_ms
        assert log.trim(before_ms, [new[-1]]) == len(old)
        assert [e.position for e in log.read(START, 100)] == new
        assert log.trim(0, [new[-1]]) == 0

    def test_a_reader_that_has_missed_something_is_told(self, open_log: OpenLog) -> None:
        log, other = open_log(), open_log()
        positions = [log.append("k", {"n": n}) for n in range(5)]
        log.trim(FOR_EVER, [positions[3]])
        for position in positions[:3]:
            with pytest.raises(TrimmedError, match=f"events behind {position} were removed"):
                other.read(position, 10)
        assert [e.body["n"] for e in other.read(positions[3], 10)] == [4]

    def test_positions_go_on_where_everything_was_removed(self, open_log: OpenLog) -> None:
        log = open_log()
        last = [log.append("k", {"n": n}) for n in range(3)][-1]
        assert log.trim(FOR_EVER, [last]) == 3
        assert log.read(START, 10) == log.read(last, 10) == []
        assert log.trim(FOR_EVER, [last]) == 0
        again = open_log()
        position = again.append("k", {"n": 3})
        assert [e.position for e in log.read(last, 10)] == [position]
        assert [e.body["n"] for e in log.read(START, 10)] == [3]

    def test_who_reads_while_it_is_trimmed_sees_all_or_is_told(self, open_log: OpenLog) -> None:
        writer, trimmer, reader = (open_log() for _ in range(3))
        positions = [writer.append("k", {"n": n}) for n in range(200)]

        def trim() -> None:
            for position in positions[::7]:
                trimmer.trim(FOR_EVER, [position])

        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(trim)
            seen, position = -1, START
            while not work.done() or seen < 199:
                try:
                    events = reader.read(position, 3)
                except TrimmedError:
                    seen, position = -1, START
                    continue
                for event in events:
                    assert seen in (-1, event.body["n"] - 1)
                    seen, position = event.body["n"], event.position
            work.result()

    def test_a_closed_log_is_unavailable(self, log: EventLog) -> None:
        log.close()
        with pytest.raises(UnavailableError, match=r"learning log .*"):
            log.append("k", {})
        with pytest.raises(UnavailableError, match="learning log"):
            log.read(START, 1)
        with pytest.raises(UnavailableError, match="learning log"):
            log.load_snapshot("s")


class DurableEventLogContract(EventLogContract):
    """And what outlives the process."""

    def test_all_survives_a_reopening(self, open_log: OpenLog) -> None:
        first = open_log()
        position = first.append("k", {"n": 1})
        first.save_snapshot("s", position, b"x")
        first.close()
        again = open_log()
        assert [e.body for e in again.read(START, 10)] == [{"n": 1}]
        assert again.load_snapshot("s") == (position, b"x")
        later = again.append("k", {"n": 2})
        assert [e.position for e in again.read(position, 10)] == [later]

    def test_a_lease_is_held_by_one_owner_at_a_time(self, open_log: OpenLog) -> None:
        one, other = open_log(), open_log()
        assert one.lease("work", "a", 60.0)
        assert not other.lease("work", "b", 60.0)
        assert other.lease("other work", "b", 60.0)
        assert one.lease("work", "a", 0.05)  # goes on, for a shorter time
        time.sleep(0.1)
        assert other.lease("work", "b", 60.0)
        assert not one.lease("work", "a", 60.0)
