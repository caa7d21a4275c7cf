from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from echolm.errors import InvalidRequestError
from echolm.past_traffic import reading
from echolm.past_traffic.log import FORMATS, PastLog, Skips, fingerprint, open_log
from echolm.past_traffic.openai import OpenAI
from echolm.past_traffic.record import BROKEN, Logged
from log_lines import BATCH_INPUT, BATCH_OUTPUT, LANGFUSE, LITELLM_SPEND, OPENAI
from test_formats import column_names


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"request": f"request {n}", "response": f'answer {n} \\ "]}}'} for n in range(count)]


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_csv(path: Path, records: Sequence[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def read(*paths: Path, **options: Any) -> tuple[list[Logged], Skips]:
    skips = Skips()
    return list(open_log(paths, tenant="t", **options).read(skips)), skips


def test_all_ways_to_write_a_list_give_the_same(tmp_path: Path) -> None:
    records = numbered(30)
    lines = write_lines(tmp_path / "a.jsonl", records)
    texts = {
        "array.json": json.dumps(records),
        "lines_of_array.json": "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n",
        "indented.json": json.dumps(records, indent=2),
        "pages.jsonl": "\n".join(
            json.dumps({"object": "list", "data": records[k : k + 10]}) for k in (0, 10, 20)
        ),
        "marked.jsonl": "\ufeff" + lines.read_text(),
        "crlf.jsonl": lines.read_text().replace("\n", "\r\n"),
        "no_end.jsonl": lines.read_text().rstrip("\n"),
    }
    expected, skips = read(lines)
    assert len(expected) == 30 and not skips.counts
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes(text.encode())
        assert read(path) == (expected, Skips()), name
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    assert read(packed) == (expected, Skips())
    table = write_csv(tmp_path / "a.csv", records)
    assert read(table) == (expected, Skips())


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_an_array_is_read_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(numbered(9), indent=1))
    monkeypatch.setattr(reading, "_PIECE", piece)
    assert [row.record for row in reading.rows(path)] == numbered(9)


@pytest.mark.parametrize("seed", range(30))
def test_broken_lines_cost_only_themselves(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    good = [json.dumps(record).encode() for record in numbered(40)]
    broken: list[bytes] = [
        b"{",
        b"not json at all",
        b"\xff\xfe{}",
        b'{"request": "\xc3\x28", "response": "a"}',
        b'{"request": "\\ud800", "response": "a"}',
        b"[1, 2]",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"request": {"messages": 3}, "response": "a"}',
        b'{"request": {"messages": [3]}, "response": "a"}',
        b'{"request": {"messages": [{"role": "user", "content": {"a": 1}}]}, "response": "a"}',
        b'{"request": "q", "response": {"choices": [null]}}',
        b'{"request": "q", "response": {"choices": [{"message": 5, "index": "x"}]}}',
        b"\x00\x01\x02",
        b'{"n": ' + b"9" * 5_000 + b"}",
    ]
    broken += [line[: rng.randrange(1, len(line))] for line in rng.sample(good, 5)]
    damaged = bytearray(rng.choice(good))
    lines = [*good, *broken]
    order = sorted(range(len(lines)), key=lambda _: rng.random())
    # The format is recognised by the good ones; the first line decides what the file is.
    order.sort(key=lambda k: k != 0)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines[k] for k in order))
    logged, skips = read(path)
    expected = [f"request {k}" for k in order if k < len(good)]
    assert [one.request for one in logged] == expected
    assert skips.counts.total() == len(broken)
    first_broken = next(n for n, k in enumerate(order, 1) if k >= len(good))
    assert f"log.jsonl:{first_broken}" in skips.first.values()
    assert damaged


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bytes_never_end_the_reading(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    records = [OPENAI, LITELLM_SPEND, LANGFUSE, {**BATCH_INPUT, **BATCH_OUTPUT}]
    text = bytearray("\n".join(json.dumps(record) for record in records * 5).encode())
    for _ in range(60):
        text[rng.randrange(len(text))] = rng.randrange(256)
    for name in ("log.jsonl", "log.json", "log.csv"):
        path = tmp_path / name
        path.write_bytes((b"[" if name == "log.json" else b"") + bytes(text))
        for format in FORMATS:
            for logged in PastLog((path,), format, "t").read(Skips()):
                assert logged.request.strip() and logged.response.strip()
                logged.request.encode()
                logged.response.encode()


def test_rows_of_csv_that_do_not_fit_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    rows = ["request,response", "q1,a1", "q2", "q3,a3,more", '"q\n4",a4', "q\xff5,a5", "", "q6,a6"]
    path.write_bytes("\n".join(rows).encode("latin-1"))
    logged, skips = read(path)
    assert [one.request for one in logged] == ["q1", "q\n4", "q6"]
    assert skips.counts == {"broken row": 2, "not UTF-8": 1}
    assert skips.first == {"broken row": "log.csv:3", "not UTF-8": "log.csv:7"}


def test_a_record_of_any_length_takes_no_more_memory_than_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LONGEST", 1_000)
    monkeypatch.setattr(reading, "_PIECE", 100)
    good, long = numbered(2), {"request": "q" * 5_000, "response": "a"}
    lines = write_lines(tmp_path / "log.jsonl", [good[0], long, good[1]])
    array = tmp_path / "log.json"
    array.write_text(json.dumps([good[0], long, good[1]]))
    for path in (lines, array):
        logged, skips = read(path)
        assert [one.request for one in logged] == ["request 0", "request 1"]
        assert skips.counts == {"longer than 32 MiB": 1}


def test_strict_ends_at_the_first_record_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", [*numbered(2), {"messages": []}])
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(InvalidRequestError, match=r"log\.jsonl:3: .* unknown form; mend it"):
        read(path, strict=True)
    # What was logged and cannot be learnt from is no damage.
    conversation = {"request": {"messages": [{"role": "assistant", "content": "a"}]}}
    path = write_lines(tmp_path / "log.jsonl", [{**conversation, "response": "b"}, *numbered(1)])
    logged, skips = read(path, strict=True)
    assert len(logged) == 1 and skips.counts == {"conversation": 1}
    assert not skips.counts.keys() & BROKEN


@pytest.mark.parametrize(
    ("name", "record"),
    [("openai", OPENAI), ("litellm", LITELLM_SPEND), ("langfuse", LANGFUSE)],
)
def test_the_format_is_recognised(tmp_path: Path, name: str, record: dict[str, Any]) -> None:
    lines = write_lines(tmp_path / "log.jsonl", [record] * 3)
    assert open_log([lines], tenant="t").format.name == name
    if name != "openai":
        table = write_csv(tmp_path / "log.csv", [column_names(record)] * 3)
        assert open_log([table], tenant="t").format.name == name


def test_an_unknown_format_is_told_with_what_was_found(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", [{"weather": "fine"}])
    with pytest.raises(InvalidRequestError, match="got fields weather; name the format"):
        open_log([path], tenant="t")
    assert open_log([path], "openai", tenant="t").format.name == "openai"
    with pytest.raises(InvalidRequestError, match=r"none\.jsonl: expected a file to read"):
        open_log([tmp_path / "none.jsonl"], tenant="t")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    with pytest.raises(InvalidRequestError, match=r"bad\.gz: expected a file to read"):
        open_log([tmp_path / "bad.gz"], tenant="t")


def test_inputs_and_outputs_of_a_batch_are_joined_in_any_order(tmp_path: Path) -> None:
    def parts(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        body = {"messages": [{"role": "user", "content": f"request {number}"}]}
        answer = {"choices": [{"message": {"content": f"answer {number}"}}]}
        response = {"status_code": 200, "body": answer}
        id = {"custom_id": f"id-{number}"}
        return {**BATCH_INPUT, **id, "body": body}, {**BATCH_OUTPUT, **id, "response": response}

    inputs, outputs = zip(*map(parts, range(50)), strict=True)
    shuffled = random.Random(0).sample(outputs[:45], 45)
    output = write_lines(tmp_path / "output.jsonl", shuffled)
    more = [{"custom_id": 3, "body": {}}, {"custom_id": "both", "body": {}, "response": {}}]
    request = write_lines(tmp_path / "input.jsonl", [*inputs, *more])
    for paths in ((request, output), (output, request)):
        logged, skips = read(*paths)
        assert {(one.request, one.response) for one in logged} == {
            (f"request {n}", f"answer {n}") for n in range(45)
        }
        assert skips.counts == {"no answer": 5, "unknown form": 2}


def test_tenants_come_from_a_field_and_none_is_guessed(tmp_path: Path) -> None:
    other = {**LITELLM_SPEND, "metadata": "{}"}
    path = write_lines(tmp_path / "log.jsonl", [LITELLM_SPEND, other])
    logged, skips = read(path, tenant_from="metadata.user_api_key_team_id")
    assert [one.tenant for one in logged] == ["team-7"]
    assert skips.counts == {"no tenant": 1}
    assert [one.tenant for one in read(path)[0]] == ["t", "t"]


def test_the_fingerprint_is_that_of_the_contents(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", numbered(3))
    second = write_lines(tmp_path / "b.jsonl", numbered(3))
    assert fingerprint([first]) == fingerprint([second])
    write_lines(second, numbered(4))
    assert fingerprint([first]) != fingerprint([second])
    assert fingerprint([first, second]) != fingerprint([second, first])


def test_a_shape_that_nobody_thought_of_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: OpenAI, record: Any) -> Logged:
        raise KeyError("surprise")

    monkeypatch.setattr(OpenAI, "read", fails)
    path = write_lines(tmp_path / "log.jsonl", numbered(2))
    assert read(path)[1].counts == {"unknown form": 2}
