from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from echolm.errors import ConfigurationError, InvalidRequestError
from echolm_lab.tasks.requests import (
    Asked,
    check_judged,
    divide,
    exact,
    metric_of,
    read_requests,
)

REQUESTS = [{"request": f"request {n}", "reference": f"answer {n}"} for n in range(40)]


def written(folder: Path, records: list[Any]) -> Path:
    file = folder / "requests.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def test_requests_are_read_once_each_with_their_references(tmp_path: Path) -> None:
    more = [{"question": "Request 3.", "answer": "other"}, {"prompt": "last", "completion": "a"}]
    asked = read_requests(written(tmp_path, [*REQUESTS, *more]), exact)
    assert [(a.text, a.reference) for a in asked] == [
        *((r["request"], r["reference"]) for r in REQUESTS),
        ("last", "a"),
    ]
    assert asked[0].score("  answer 0\n") == 1.0
    assert asked[0].score("answer 1") == 0.0


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"request": ""}], "line 1: expected an object with a request"),
        ([*REQUESTS, [1]], "line 41: expected an object"),
        ([*REQUESTS, {"request": "\ud800"}], "line 41"),
        ([*REQUESTS, {"request": "no reference"}], "40 of 41"),
        (REQUESTS[:9], "at least 10 requests, got 9"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, records: list[Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_requests(written(tmp_path, records), exact)


def test_metrics() -> None:
    pytest.importorskip("sacrebleu")
    scores = [metric_of("chrf")("q", said, "ls -la /tmp") for said in ("ls -la /tmp", "ls /tmp")]
    assert scores[0] == 1.0 > scores[1] > 0.0
    assert metric_of("exact") is exact


def test_a_grader_of_one_s_own_is_a_metric(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def grade(request, answer, reference):\n    return len(answer) / 10\n")
    assert metric_of(f"{file}:grade")("q", "abc", "") == 0.3
    with pytest.raises(ConfigurationError, match="grader"):
        metric_of(f"{tmp_path}/none.py:grade")


def asked(count: int) -> list[Asked]:
    return [Asked(f"request {n}", "a", exact) for n in range(count)]


@pytest.mark.parametrize("count", [10, 61, 10_000])
def test_a_file_is_divided_and_nothing_measured_was_seen_before(count: int) -> None:
    everything = asked(count)
    parts = divide(everything, 1, 3_000, 1_000, 400)
    lists = [parts.past, parts.learning, parts.items, parts.others]
    texts = [item.text for part in lists for item in part]
    assert len(set(texts)) == len(texts) <= count
    assert all(lists)
    assert len(parts.past) <= 3_000 and len(parts.items) <= 400
    assert parts == divide(everything, 1, 3_000, 1_000, 400) != divide(everything, 2, 3_000, 1, 1)
    assert list(parts.steady(1)) == list(parts.others[:1])


def test_without_references_a_judge_is_needed() -> None:
    without = [Asked("q", "", exact)]
    check_judged(without, "judge", "large")
    check_judged(asked(1), "chrf", "reference")
    for metric, past in (("chrf", ""), ("judge", "reference")):
        with pytest.raises(ConfigurationError, match="--metric judge and --past large"):
            check_judged(without, metric, past)
