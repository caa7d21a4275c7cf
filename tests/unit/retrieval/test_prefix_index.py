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
    one, two, three = (SharedPrefixIndex(tmp_path / "prefixes") for _ in range(3))
    one.publish([[5, 2**62, 7], [1]])
    two.publish([[9, 8]])
    assert one.poll() == [(9, 8)]
    assert two.poll() == [(5, 2**62, 7), (1,)]
    assert three.poll() == [(5, 2**62, 7), (1,), (9, 8)]
    assert one.poll() == two.poll() == three.poll() == []
    one.publish([list(range(1, 33))])
    assert two.poll() == [tuple(range(1, 33))]


def test_who_comes_later_does_not_read_what_was_before(tmp_path: Path) -> None:
    one = SharedPrefixIndex(tmp_path / "prefixes")
    one.publish([[1, 2]])
    two = SharedPrefixIndex(tmp_path / "prefixes")
    assert two.poll() == []
    one.publish([[3]])
    assert two.poll() == [(3,)]


def test_a_full_index_starts_anew_and_stays_small(tmp_path: Path) -> None:
    one, two = (SharedPrefixIndex(tmp_path / "prefixes", records=8) for _ in range(2))
    read = []
    for k in range(100):
        one.publish([[k]])
        read += two.poll()
    assert read == [(k,) for k in range(100)]
    assert (tmp_path / "prefixes").stat().st_size <= 8 * RECORD_BYTES


def test_a_record_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "prefixes"
    one, two = SharedPrefixIndex(path), SharedPrefixIndex(path)
    one.publish([[1, 2], [3, 4]])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert two.poll() == [(1, 2)]
    path.write_bytes(whole)
    assert two.poll() == [(3, 4)]


def test_a_damaged_file_is_emptied_by_who_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "prefixes"
    path.write_bytes(b"x" * 100)
    one, two = SharedPrefixIndex(path), SharedPrefixIndex(path)
    one.publish([[1, 2]])
    two.publish([[3]])
    assert two.poll() == [(1, 2)]
    assert one.poll() == [(3,)]


def test_what_no_retriever_has_written_is_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "prefixes"
    one = SharedPrefixIndex(path)
    with path.open("ab") as file:
        file.write(b"\xff" * RECORD_BYTES + bytes(RECORD_BYTES))
    assert one.poll() == []


def test_without_a_file_nothing_is_shared_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    with caplog.at_level(logging.WARNING):
        index = SharedPrefixIndex(tmp_path / "file" / "prefixes")
    index.publish([[1]])
    assert index.poll() == []
    assert len(caplog.records) == 1 and "not seen" in caplog.text


def test_a_full_disk_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    index = SharedPrefixIndex(Path("/dev/full"))
    with caplog.at_level(logging.WARNING):
        index.publish([[1]])
        index.publish([[1]])
    assert index.poll() == []
    assert "No space left" in caplog.text and len(caplog.records) == 1


def _write(path: Path, start: int) -> None:
    index = SharedPrefixIndex(path)
    for k in range(start, start + 500):
        index.publish([[k] * 32] * 8)


def test_prompts_of_processes_that_write_at_once_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "prefixes"
    reader = SharedPrefixIndex(path)
    writers = [get_context("spawn").Process(target=_write, args=(path, 500 * k)) for k in (1, 2, 3)]
    for writer in writers:
        writer.start()
    read = []
    while any(writer.is_alive() for writer in writers):
        read += reader.poll()
    read += reader.poll()
    assert all(writer.exitcode == 0 for writer in writers)
    assert sorted(read) == [(k,) * 32 for k in range(500, 2_000) for _ in range(8)]


def test_processes_that_share_an_index_choose_the_same_order(tmp_path: Path) -> None:
    one, two = (WarmPrefixes(SharedPrefixIndex(tmp_path / "prefixes")) for _ in range(2))
    one.use([7, 3])
    two.poll()
    assert two.arrange([3, 7]) == [3, 7]
    one.publish()
    two.poll()
    assert two.arrange([3, 7]) == [7, 3]
    one.poll()
    assert one.arrange([3, 7]) == [7, 3]


def test_an_index_is_nobody_elses_to_read(tmp_path: Path) -> None:
    SharedPrefixIndex(tmp_path / "new" / "prefixes")
    assert os.stat(tmp_path / "new" / "prefixes").st_mode & 0o777 == 0o600
