from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from echolm.errors import UnavailableError
from echolm.sqlite import SQLiteFile

TABLE = "CREATE TABLE IF NOT EXISTS numbers (n INTEGER)"


def opened(path: Path, durable: bool = True) -> SQLiteFile:
    return SQLiteFile(path, "numbers", lambda db: db.execute(TABLE), durable=durable)


def numbers(file: SQLiteFile) -> list[int]:
    with file.transaction() as db:
        return [n for (n,) in db.execute("SELECT n FROM numbers ORDER BY n")]


def test_threads_and_connections_take_turns(tmp_path: Path) -> None:
    files = [opened(tmp_path / "made" / "numbers.sqlite") for _ in range(2)]

    def add(n: int) -> None:
        with files[n % 2].transaction() as db:
            db.execute("INSERT INTO numbers VALUES (?)", (n,))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(100)))
    assert numbers(files[0]) == list(range(100))
    for file in files:
        file.close()


def test_a_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "numbers.sqlite")) as file:
        with pytest.raises(ValueError, match="stop"), file.transaction() as db:
            db.execute("INSERT INTO numbers VALUES (1)")
            raise ValueError("stop")
        assert numbers(file) == []


@pytest.mark.parametrize(("durable", "level"), [(True, 2), (False, 1)])
def test_a_durable_file_waits_for_the_disk(tmp_path: Path, durable: bool, level: int) -> None:
    with closing(opened(tmp_path / "numbers.sqlite", durable)) as file, file.transaction() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (level,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_error_names_the_file_and_how_to_mend_it(tmp_path: Path) -> None:
    file = opened(tmp_path / "numbers.sqlite")
    file.close()
    expected = r"^numbers .*numbers\.sqlite: .*; try again$"
    with pytest.raises(UnavailableError, match=expected), file.transaction("; try again") as db:
        db.execute(TABLE)
    (tmp_path / "other").write_bytes(b"no database" * 100)
    for path in (tmp_path / "other", tmp_path / "other" / "below-a-file"):
        with pytest.raises(UnavailableError, match=r"^numbers .*other"):
            opened(path)


def test_its_files_are_the_owner_s_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(opened(tmp_path / "made" / "numbers.sqlite")) as file:
            with file.transaction() as db:
                db.execute("INSERT INTO numbers VALUES (1)")
            made = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    files = {f"numbers.sqlite{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}
    assert made == {"made": 0o700, **files}
