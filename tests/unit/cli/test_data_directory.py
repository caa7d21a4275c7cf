"""A data directory that is not there is an error for every verb that reads it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from echolm.cli.data_directory import settings_from
from echolm.cli.main import main
from echolm.errors import ConfigurationError

READING = (
    "stats",
    "top",
    "show 1",
    "delete --id 1 --yes",
    "export -",
    "reembed --from other",
    "check",
    "check --repair",
    "replay",
)


@pytest.mark.parametrize("verb", READING)
@pytest.mark.parametrize("where", ["option", "environment"])
def test_a_mistyped_data_directory_is_an_error_and_is_not_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    where: str,
) -> None:
    path = tmp_path / "mistyped"
    words = ["examples", *verb.split()]
    if where == "option":
        words += ["--data-dir", str(path)]
    else:
        monkeypatch.setenv("ECHOLM_DATA_DIR", str(path))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert f"data directory {path}: expected that of an EchoLM server, got nothing there" in err
    assert "--data-dir" in err
    assert list(tmp_path.iterdir()) == []


def test_an_import_of_nothing_makes_no_data_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "examples.jsonl"
    words = ["examples", "import", str(file), "--data-dir", str(tmp_path / "new")]
    assert main(words) == 2
    assert f"{file}: expected a file to read" in capsys.readouterr().err
    file.write_text("")
    assert main(words) == 2
    assert "got an empty file" in capsys.readouterr().err
    file.write_text("{}\n\n[1]\n[2]\n")
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "line 1: record: expected a request" in captured.err
    assert "lines 3-4: record: expected one JSON object" in captured.err
    assert "refused        3: 3 invalid" in captured.out
    assert not (tmp_path / "new").exists()


def arguments(path: Path | None) -> argparse.Namespace:
    return argparse.Namespace(config=None, data_dir=path)


def test_a_directory_of_something_else_and_a_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="got a directory with none of its files"):
        settings_from(arguments(tmp_path), must_exist=True)
    with pytest.raises(ConfigurationError, match="got a file"):
        settings_from(arguments(tmp_path / "file"), must_exist=True)
    assert settings_from(arguments(tmp_path), must_exist=False).data_dir == tmp_path


@pytest.mark.parametrize("file", ["lock", "milvus.db", "events.sqlite"])
def test_a_directory_that_was_used_is_taken(tmp_path: Path, file: str) -> None:
    (tmp_path / file).touch()
    assert settings_from(arguments(tmp_path), must_exist=True).data_dir == tmp_path


def test_where_everything_is_kept_on_servers_the_default_directory_need_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOLM_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("ECHOLM_RETRIEVAL__MILVUS_URI", "http://milvus:19530")
    monkeypatch.setenv("ECHOLM_EVENT_LOG", "redis://redis:6379/0")
    assert settings_from(arguments(None), must_exist=True).data_dir == tmp_path / "none"
    with pytest.raises(ConfigurationError, match="got nothing there"):
        settings_from(arguments(tmp_path / "mistyped"), must_exist=True)
