from __future__ import annotations

import logging
import os
from multiprocessing import get_context
from pathlib import Path

import pytest
from echolm.retrieval.prefix import WarmPrefixes
from echolm.retrieval.prefix_index import SharedPrefixIndex

RECORD_BYTES = 8 * 34


def test_each_reads_what_the_others_wrote_once_and_not_its_own(tmp_path: Path) -> None:
    one, two, three = (SharedPrefixIndex(tmp_path / "board") for _ in range(3))
    one.append([[5, 2**62, 7], [1]])
    two.append([[9, 8]])
    assert one.news() == [(9, 8)]
    assert two.news() == [(5, 2**62, 7), (1,)]
    assert three.news() == [(5, 2**62, 7), (1,), (9, 8)]
    assert one.news() == two.news() == three.news() == []
    one.append([list(range(1, 33))])
    assert two.news() == [tuple(range(1, 33))]


def test_who_comes_later_does_not_read_what_was_before(tmp_path: Path) -> None:
    one = SharedPrefixIndex(tmp_path / "board")
    one.append([[1, 2]])
    two = SharedPrefixIndex(tmp_path / "board")
    assert two.news() == []
    one.append([[3]])
    assert two.news() == [(3,)]


def test_a_full_board_starts_anew_and_stays_small(tmp_path: Path) -> None:
    one, two = (SharedPrefixIndex(tmp_path / "board", records=8) for _ in range(2))
    read = []
    for k in range(100):
        one.append([[k]])
        read += two.news()
    assert read == [(k,) for k in range(100)]
    assert (tmp_path / "board").stat().st_size <= 8 * RECORD_BYTES


def test_a_record_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "board"
    one, two = SharedPrefixIndex(path), SharedPrefixIndex(path)
    one.append([[1, 2], [3, 4]])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert two.news() == [(1, 2)]
    path.write_bytes(whole)
    assert two.news() == [(3, 4)]


def test_a_damaged_file_is_emptied_by_who_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "board"
    path.write_bytes(b"x" * 100)
    one, two = SharedPrefixIndex(path), SharedPrefixIndex(path)
    one.append([[1, 2]])
    two.append([[3]])
    assert two.news() == [(1, 2)]
    assert one.news() == [(3,)]


def test_what_no_retriever_has_written_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "board"
    one = SharedPrefixIndex(path)
    with path.open("ab") as file:
        file.write(b"\xff" * RECORD_BYTES + bytes(RECORD_BYTES))
    assert one.news() == []


def test_without_a_file_nothing_is_shared_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    with caplog.at_level(logging.WARNING):
        board = SharedPrefixIndex(tmp_path / "file" / "board")
    board.append([[1]])
    assert board.news() == []
    assert len(caplog.records) == 1 and "not seen" in caplog.text


def test_a_full_disk_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    board = SharedPrefixIndex(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        board.append([[1]])
        board.append([[1]])
    assert board.news() == []
    assert "No space left" in caplog.text and len(caplog.records) == 1


def _write(path: Path, start: int) -> None:
    board = SharedPrefixIndex(path)
    for k in range(start, start + 500):
        board.append([[k] * 32] * 8)


def test_prompts_of_processes_that_write_at_once_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "board"
    reader = SharedPrefixIndex(path)
    writers = [get_context("spawn").Process(target=_write, args=(path, 500 * k)) for k in (1, 2, 3)]
    for writer in writers:
        writer.start()
    read = []
    while any(writer.is_alive() for writer in writers):
        read += reader.news()
    read += reader.news()
    assert all(writer.exitcode == 0 for writer in writers)
    assert sorted(read) == [(k,) * 32 for k in range(500, 2_000) for _ in range(8)]


def test_processes_that_share_a_board_choose_the_same_order(tmp_path: Path) -> None:
    one, two = (WarmPrefixes(SharedPrefixIndex(tmp_path / "board")) for _ in range(2))
    one.use([7, 3])
    two.catch_up()
    assert two.arrange([3, 7]) == [3, 7]
    one.tell()
    two.catch_up()
    assert two.arrange([3, 7]) == [7, 3]
    one.catch_up()
    assert one.arrange([3, 7]) == [7, 3]


def test_a_board_is_nobody_elses_to_read(tmp_path: Path) -> None:
    SharedPrefixIndex(tmp_path / "new" / "board")
    assert os.stat(tmp_path / "new" / "board").st_mode & 0o777 == 0o600
