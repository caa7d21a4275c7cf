"""The load over tables of one process, and over real processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from echolm.load.table import LoadTable

LLMS = ("small", "large")

# A router process: holds requests in flight until it is told to end, or is killed.
WORKER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from echolm.load.table import LoadTable
table = LoadTable(Path(sys.argv[1]), ["small", "large"])
assert not table.degraded, table.degraded
with ExitStack() as stack:
    for llm in sys.argv[2:]:
        stack.enter_context(table.serving(llm))
    print("ready", flush=True)
    sys.stdin.readline()
table.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "load.table"


class Clock:
    """Who is alive is looked up every half second only, and joining tried every ten."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def held(table: LoadTable, llm: str, number: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(table.serving(llm))
        yield


def worker(path: Path, *llms: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), *llms],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def becomes(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_load_is_the_sum_over_all_tables(path: Path) -> None:
    clock = Clock()
    one, two = (LoadTable(path, LLMS, half_life_s=2.0, clock=clock) for _ in range(2))
    assert one.degraded == two.degraded == ""
    with held(one, "large", 3), held(two, "large", 4), held(two, "small", 1):
        clock.now += 2.0
        for table in (one, two):
            assert (table.in_flight("large"), table.in_flight("small")) == (7, 1)
            assert table.load("large") == pytest.approx(3.5)
        assert (one.local.in_flight("large"), two.local.in_flight("large")) == (3, 4)
    assert one.in_flight("large") == 0
    clock.now += 2.0
    assert one.load("large") == pytest.approx(1.75)


def test_a_request_that_fails_is_no_longer_in_flight(path: Path) -> None:
    one, two = LoadTable(path, LLMS), LoadTable(path, LLMS)
    with pytest.raises(ValueError), one.serving("large"):
        raise ValueError
    assert two.in_flight("large") == 0


def test_a_table_that_is_closed_counts_no_longer_and_its_row_is_free(path: Path) -> None:
    clock = Clock()
    one = LoadTable(path, LLMS, clock=clock, rows=2)
    two = LoadTable(path, LLMS, clock=clock, rows=2)
    with held(two, "large", 5):
        clock.now += 0.6
        assert one.in_flight("large") == 5
        two.close()
        clock.now += 0.6
        assert one.in_flight("large") == 0
        assert two.in_flight("large") == 5  # its own, still
        clock.now += 60
        assert two.degraded == "closed"
    three = LoadTable(path, LLMS, clock=clock, rows=2)
    assert three.degraded == ""
    with held(three, "small", 2):
        clock.now += 0.6
        assert (one.in_flight("small"), one.in_flight("large")) == (2, 0)


def test_a_full_table_leaves_the_own_count_until_a_row_is_free(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    one = LoadTable(path, LLMS, clock=clock, rows=1)
    two = LoadTable(path, LLMS, clock=clock, rows=1)
    with held(one, "large", 3), held(two, "large", 2):
        assert (one.in_flight("large"), two.in_flight("large")) == (3, 2)
        clock.now += 11
        assert two.in_flight("large") == 2
        assert two.degraded == "all 1 rows are taken"
        assert caplog.text.count("all 1 rows are taken; this router sees only its own load") == 1
        one.close()
        clock.now += 11
        assert two.in_flight("large") == 2
        assert two.degraded == ""
        # What was in flight before it joined is in the table, too.
        assert LoadTable(path, LLMS, clock=clock, rows=1).degraded == "all 1 rows are taken"


def test_requests_from_before_joining_are_published(path: Path) -> None:
    clock = Clock()
    first = LoadTable(path, LLMS, clock=clock, rows=1)
    late = LoadTable(path, LLMS, clock=clock, rows=1)
    with held(late, "large", 2):
        first.close()
        clock.now += 11
        late.load("large")
        late_file = late._file
        assert late_file is not None
        assert [count.in_flight for count in late_file.read(0)] == [0, 2]


@pytest.mark.parametrize("content", [b"no table", b"\xff" * 100_000])
def test_a_damaged_file_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    one, two = LoadTable(path, LLMS), LoadTable(path, LLMS)
    with held(one, "large", 1):
        assert (one.degraded, two.in_flight("large")) == ("", 1)


def test_routers_with_other_llms_do_not_share_a_table(path: Path) -> None:
    clock = Clock()
    one = LoadTable(path, LLMS, clock=clock)
    other = LoadTable(path, ("large", "small"), clock=clock)
    assert "another configuration" in other.degraded
    with held(one, "large", 3):
        assert (other.in_flight("large"), other.in_flight("small")) == (0, 0)
    one.close()
    clock.now += 11
    assert other.in_flight("large") == 0
    assert other.degraded == ""


def test_a_file_that_was_deleted_is_made_again_and_all_meet_there(path: Path) -> None:
    clock = Clock()
    one, two = (LoadTable(path, LLMS, clock=clock) for _ in range(2))
    path.unlink()
    clock.now += 11
    with held(one, "large", 1), held(two, "large", 2):
        assert one.load("large") >= 0 <= two.load("large")
        clock.now += 1
        assert one.in_flight("large") == two.in_flight("large") == 3
    assert path.exists()


def test_a_path_that_cannot_be_written_leaves_the_own_count(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = LoadTable(tmp_path / "file" / "load.table", LLMS)
    with held(table, "large", 2):
        assert table.in_flight("large") == 2
    assert table.degraded


def test_a_write_that_never_ended_leaves_the_last_whole_reading(path: Path) -> None:
    one, two = LoadTable(path, LLMS), LoadTable(path, LLMS)
    with held(one, "large", 3):
        assert two.in_flight("large") == 3
        file = one._file
        assert file is not None
        sequence = file._base(file._row)
        file._ints[sequence] += 1  # as if it had been stopped there
        file._ints[sequence + 4] = 1_000_000
        assert two.in_flight("large") == 3


def test_closing_another_descriptor_of_the_file_does_not_lose_the_row(path: Path) -> None:
    """Classic POSIX locks would go with it."""
    clock = Clock()
    one, two = (LoadTable(path, LLMS, clock=clock) for _ in range(2))
    os.close(os.open(path, os.O_RDWR))
    clock.now += 1
    with held(one, "large", 1):
        assert two.in_flight("large") == 1


def test_the_load_of_a_killed_process_disappears_and_its_row_can_be_taken(path: Path) -> None:
    table = LoadTable(path, LLMS)
    killed = worker(path, "large", "large", "large", "small")
    stays = worker(path, "large")
    try:
        assert becomes(lambda: table.in_flight("large") == 4)
        assert table.in_flight("small") == 1
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(10) == -signal.SIGKILL
        assert becomes(lambda: table.in_flight("large") == 1)
        assert (table.in_flight("small"), table.load("small")) == (0, 0)
        rows = table._file.live_rows() if table._file else []
        assert len(rows) == 1
        next_one = worker(path, "small")
        try:
            assert becomes(lambda: (table.in_flight("large"), table.in_flight("small")) == (1, 1))
            # It took the dead process' row: rows do not run out as processes come and go.
            assert table._file is not None
            assert max(table._file.live_rows()) == 2
        finally:
            next_one.communicate("end\n", timeout=10)
    finally:
        stays.communicate("end\n", timeout=10)
        killed.communicate(timeout=10)
    assert becomes(lambda: table.in_flight("large") == 0)
