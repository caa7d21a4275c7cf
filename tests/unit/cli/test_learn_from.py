from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import ECHOLM, assert_message, run
from echolm.cli.learn_from import options as learn_from_options
from echolm.past_traffic.columns import FIELDS
from echolm.past_traffic.log import FORMATS


def test_help_names_what_there_is() -> None:
    # They stand twice, so that --help need not import what reads logs.
    assert set(learn_from_options.FORMATS) == {format.name for format in FORMATS}
    assert learn_from_options.FIELDS == FIELDS


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--budget", "none"], "expected an amount above 0, got 'none'"),
        (["--quality", "2"], "expected a number from 0 to 1, got '2'"),
        (["--sample", "0"], "expected a number above 0, got '0'"),
        (["--map", "gpt-4o"], "expected KEY=VALUE, got 'gpt-4o'"),
        (["--format", "parquet"], "invalid choice: 'parquet'"),
    ],
)
def test_a_wrong_option_is_told(options: list[str], expected: str) -> None:
    done = run(*ECHOLM, "learn-from", "log.jsonl", *options)
    assert done.returncode == 2 and expected in done.stderr


def test_a_missing_judge_or_embedder_is_told_before_the_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"request": "q", "response": "a"}) + "\n")
    config = tmp_path / "echolm.toml"
    config.write_text(
        f'data_dir = "{tmp_path / "data"}"\n[embedding]\nmodel_dir = "{tmp_path / "none"}"\n'
        '[retrieval]\nmilvus_uri = "http://localhost:9"\n'
    )
    done = run(*ECHOLM, "learn-from", str(log), "--config", str(config))
    assert done.returncode == 2
    assert_message(done.stderr, str(tmp_path / "none"))
